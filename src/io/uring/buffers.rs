//! The provided buffers of a relay ring: memory the kernel fills with received bytes, and from
//! which those bytes are sent on, without a copy of ours.
//!
//! ```text
//!   free (a stack: the buffer used last is still in the cache)
//!    │ offer            ▲ give_back
//!    ▼                  │
//!   registered ring ──→ filled ──→ being sent
//!        kernel's       a connection's
//! ```
//!
//! Always true: a buffer is in exactly one of the three places; the memory is freed only when the
//! kernel cannot write to it any more, else it is leaked.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use rustix::mm::{Advice, madvise};

/// One receive: as [`crate::io::buf::SMALL`].
pub const SIZE: usize = 16 * 1024;

/// The buffer group the ring knows them by; there is only one.
pub const GROUP: u16 = 0;

/// From one buffer to the next. Not a power of two: most messages are small, and the first lines of
/// buffers 16 KiB apart would all compete for the same few sets of the cache.
const STRIDE: usize = SIZE + 5 * 64;

/// Buffers the kernel has to choose from, at first and at most. It takes them in turn, so this many
/// are the working set of a busy relay; when they run out in one turn of the loop it gets twice as
/// many, until nothing holds bytes any more.
const OFFERED: [usize; 2] = [32, 256];

/// Buffers are allocated in chunks of this many, when none is left.
const CHUNK: usize = 64;

/// At most, and the most a ring can have: two for each of 16 000 stalled ways. Only pages that held
/// bytes count; receiving beyond it waits until a buffer comes back.
const MOST: usize = 32_768;

/// A buffer with received bytes, or part of them.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    /// Which buffer.
    pub id: u16,
    /// Where its unsent bytes begin.
    pub at: u32,
    /// How many there are.
    pub len: u32,
}

/// All buffers of one ring.
pub struct Buffers {
    entries: NonNull<BufRingEntry>,
    tail: u16,
    chunks: Vec<NonNull<u8>>,
    free: Vec<u16>,
    /// In the registered ring.
    offered: usize,
    /// How many of them there are to be.
    target: usize,
    /// With connections.
    filled: usize,
    /// Memory of chunks beyond the first may be in use and can be handed back when all is quiet.
    grown: bool,
}

#[allow(unsafe_code, reason = "memory shared with the kernel has no safe interface")]
impl Buffers {
    /// Allocate the first chunk and register the ring.
    pub fn register(ring: &IoUring) -> io::Result<Self> {
        let entries = allocate(layout_of_entries()).cast();
        let mut buffers = Self {
            entries,
            tail: 0,
            chunks: Vec::new(),
            free: Vec::new(),
            offered: 0,
            target: OFFERED[0],
            filled: 0,
            grown: false,
        };
        // SAFETY: the entries are MOST zeroed BufRingEntry, page-aligned as the kernel wants them,
        // and are never freed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.entries.as_ptr() as u64,
                MOST as u16,
                GROUP,
                0,
            )?;
        }
        buffers.grow();
        buffers.offer();
        Ok(buffers)
    }

    /// The kernel has put bytes into buffer `id`.
    pub fn take(&mut self, id: u16, len: u32) -> Filled {
        self.offered -= 1;
        self.filled += 1;
        Filled { id, at: 0, len }
    }

    /// A buffer's bytes have been sent, or are not wanted any more.
    pub fn give_back(&mut self, id: u16) {
        self.filled -= 1;
        self.free.push(id);
        if self.filled == 0 {
            self.target = OFFERED[0];
            if self.grown {
                self.trim();
            }
        }
    }

    /// The kernel had none left when bytes came.
    pub fn ran_out(&mut self) {
        self.target = (self.target * 2).min(OFFERED[1]);
    }

    /// Give the kernel buffers to choose from. `false`: it has none, and none can be had now.
    pub fn offer(&mut self) -> bool {
        let before = self.tail;
        while self.offered < self.target {
            if self.free.is_empty() && self.chunks.len() * CHUNK < MOST {
                self.grow();
            }
            let Some(id) = self.free.pop() else { break };
            let slot = usize::from(self.tail) % MOST;
            // SAFETY: `slot` is inside the MOST entries; the kernel reads an entry only after the
            // tail below has passed it, and it is passed only once per lap.
            let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
            entry.set_addr(self.address(id) as u64);
            entry.set_len(SIZE as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            self.offered += 1;
        }
        if self.tail != before {
            // SAFETY: the tail lies in the first entry's reserved field, which nothing else writes;
            // the kernel reads it with acquire, so the entries above are visible before it is.
            unsafe {
                let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
                AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
            }
        }
        self.offered > 0
    }

    /// Where the unsent bytes of `filled` are. Valid until it is given back.
    pub fn pointer(&self, filled: Filled) -> *const u8 {
        debug_assert!((filled.at + filled.len) as usize <= SIZE);
        self.address(filled.id).wrapping_add(filled.at as usize)
    }

    /// The unsent bytes of `filled`.
    pub fn bytes(&self, filled: Filled) -> &[u8] {
        // SAFETY: the kernel has written these bytes, and does not touch the buffer until it has been
        // given back, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.pointer(filled), filled.len as usize) }
    }

    /// Buffers that hold bytes of connections.
    pub fn filled(&self) -> usize {
        self.filled
    }

    fn address(&self, id: u16) -> *mut u8 {
        let (chunk, at) = (usize::from(id) / CHUNK, usize::from(id) % CHUNK);
        self.chunks[chunk].as_ptr().wrapping_add(at * STRIDE)
    }

    fn grow(&mut self) {
        let first = self.chunks.len() * CHUNK;
        self.grown = first > 0;
        self.chunks.push(allocate(layout_of_chunk()));
        self.free.extend((first..first + CHUNK).rev().map(|id| id as u16));
    }

    /// After a time of many stalled connections: let the kernel have the pages of free buffers
    /// back. Their addresses stay valid and read as zero.
    fn trim(&mut self) {
        const PAGE: usize = 4096;
        for &id in self.free.iter().filter(|id| usize::from(**id) >= CHUNK) {
            let buffer = self.address(id);
            let skip = buffer.align_offset(PAGE);
            let (page, length) = (buffer.wrapping_add(skip), (SIZE - skip) / PAGE * PAGE);
            // SAFETY: whole pages inside the buffer, and the buffer is free: neither the kernel nor
            // a connection refers to it.
            let _ = unsafe { madvise(page.cast(), length, Advice::LinuxDontNeed) };
        }
        self.grown = false;
    }
}

// No Drop: the memory is the kernel's to write to until the ring is gone, and a ring goes away some
// time after its descriptor has been closed. There is one set of buffers per worker and process.

fn layout_of_entries() -> Layout {
    Layout::array::<BufRingEntry>(MOST)
        .and_then(|layout| layout.align_to(4096))
        .expect("512 KiB is a valid layout")
}

fn layout_of_chunk() -> Layout {
    Layout::from_size_align(CHUNK * STRIDE, 4096).expect("1 MiB is a valid layout")
}

#[allow(unsafe_code, reason = "page-aligned memory for the kernel")]
fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: both layouts above have a size that is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
