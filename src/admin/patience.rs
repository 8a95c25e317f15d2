//! Requests that take their time: a probe of the application, and the wait for a drain. They come from the
//! network, and their connections are not closed to make room for others; so there are bounds.
//!
//! Always true: an address never has more than [`MOST_OF_ONE`] of them, all together never more than
//! [`MOST`]; a place is a value, and its `Drop` is the only way back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Every container of a pod has three probes and a hook at most, and all of them come from one kubelet.
const MOST_OF_ONE: usize = 64;

/// What eight such kubelets could want.
const MOST: usize = 512;

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Patience {
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

/// One client: where from, and whether something is being done for it that takes time.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    /// `None`: over the control socket, whose clients are trusted.
    address: Option<IpAddr>,
    busy: Arc<AtomicBool>,
    patience: Arc<Patience>,
}

/// A place among those who wait.
#[derive(Debug)]
pub(super) struct Place(Visitor);

impl Visitor {
    pub(super) fn new(address: Option<IpAddr>, patience: Arc<Patience>) -> Self {
        Self { address, busy: Arc::default(), patience }
    }

    /// Whether its connection is to be left alone.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Let it wait, unless too many do.
    pub(super) fn wait(&self) -> Option<Place> {
        if let Some(address) = self.address {
            let mut waiting = self.patience.lock();
            let all: usize = waiting.values().sum();
            let of_one = waiting.entry(address).or_default();
            if *of_one >= MOST_OF_ONE || all >= MOST {
                // Without a trace of addresses that nobody waits at.
                waiting.retain(|_, count| *count > 0);
                return None;
            }
            *of_one += 1;
        }
        self.busy.store(true, Ordering::Relaxed);
        Some(Place(self.clone()))
    }
}

impl Patience {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
        let Some(address) = self.0.address else { return };
        let mut waiting = self.0.patience.lock();
        if let Some(count) = waiting.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others_and_all_are_given_back() {
        let patience = Arc::<Patience>::default();
        let visitor = |last: u8| Visitor::new(Some([10, 0, 0, last].into()), patience.clone());
        let greedy: Vec<_> = (0..).map_while(|_| visitor(1).wait()).collect();
        assert_eq!(greedy.len(), MOST_OF_ONE);
        let kubelet = visitor(2);
        let place = kubelet.wait().expect("there is room for others");
        assert!(kubelet.is_busy());
        let others: Vec<_> =
            (0..2 * MOST).filter_map(|n| visitor((n % 200) as u8).wait()).collect();
        assert_eq!(greedy.len() + 1 + others.len(), MOST);
        assert!(Visitor::new(None, patience.clone()).wait().is_some(), "the owner's socket");
        drop((place, greedy, others));
        assert!(!kubelet.is_busy());
        assert!(patience.lock().is_empty());
    }
}
