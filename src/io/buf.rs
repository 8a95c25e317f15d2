//! Relay buffers, per worker: taken when bytes are there to be moved, given back when they have
//! been. An idle connection holds none.
//!
//! Always true: taking and giving back neither allocates nor zeroes after warm-up; the pool keeps
//! at most `KEEP` idle buffers of a size, the rest goes back to the allocator.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Gauges;

/// One read of a usual request or response. Small, because it is what a slow peer pins.
pub const SMALL: usize = 16 * 1024;

/// One read of a bulk transfer: large enough that the kernel's copy, not the call, is the cost,
/// and still inside a usual L2 cache. Chosen with `make bench` (row bulk).
pub const LARGE: usize = 64 * 1024;

/// Buffers of each size kept for reuse: enough for every connection that moves bytes in one turn
/// of the loop; 64 × 16 KiB + 16 × 64 KiB = 2 MiB at most.
const KEEP: [usize; 2] = [64, 16];

/// A pool of buffers of two sizes. Cheap to clone; one per worker thread.
#[derive(Clone)]
pub struct Pool {
    shelves: Rc<Shelves>,
}

/// A buffer on loan. Dropping it gives it back.
pub struct Buf {
    /// `None` only while being dropped.
    bytes: Option<Box<[u8]>>,
    home: Rc<Shelves>,
}

/// Which size is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// [`SMALL`]
    Small,
    /// [`LARGE`]
    Large,
}

struct Shelves {
    free: [RefCell<Vec<Box<[u8]>>>; 2],
    gauges: Arc<Gauges>,
}

impl Pool {
    /// A pool with `warm` small buffers ready.
    pub fn new(warm: usize, gauges: Arc<Gauges>) -> Self {
        let mut small = Vec::with_capacity(KEEP[0]);
        small.extend((0..warm.min(KEEP[0])).map(|_| Size::Small.allocate()));
        let free = [RefCell::new(small), RefCell::new(Vec::with_capacity(KEEP[1]))];
        Self { shelves: Rc::new(Shelves { free, gauges }) }
    }

    /// Borrow a buffer. Its content is whatever the last user left.
    pub fn take(&self, size: Size) -> Buf {
        let shelf = &self.shelves.free[size as usize];
        let bytes = shelf.borrow_mut().pop().unwrap_or_else(|| size.allocate());
        self.shelves.gauges.buffers.fetch_add(1, Ordering::Relaxed);
        Buf { bytes: Some(bytes), home: self.shelves.clone() }
    }
}

impl Size {
    const fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }

    fn allocate(self) -> Box<[u8]> {
        vec![0; self.bytes()].into_boxed_slice()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let Some(bytes) = self.bytes.take() else { return };
        let shelf = usize::from(bytes.len() == LARGE);
        self.home.gauges.buffers.fetch_sub(1, Ordering::Relaxed);
        let mut free = self.home.free[shelf].borrow_mut();
        if free.len() < KEEP[shelf] {
            free.push(bytes);
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().expect("present until dropped")
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().expect("present until dropped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_used_again() {
        let pool = Pool::new(1, Arc::default());
        let first = pool.take(Size::Small).as_ptr();
        assert_eq!(pool.take(Size::Small).as_ptr(), first);
        assert_eq!(pool.shelves.gauges.buffers.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_pool_does_not_hoard() {
        let pool = Pool::new(0, Arc::default());
        let burst: Vec<_> = (0..200).map(|_| pool.take(Size::Large)).collect();
        drop(burst);
        assert_eq!(pool.shelves.free[1].borrow().len(), KEEP[1]);
    }
}
