//! Who may take their time: kubelets while an application is probed or while they wait for a drain. They come
//! from the network, and their connections are not closed to make room for others; so there are bounds.
//!
//! Always true: those who ask for probes and those who wait for a drain take no places of each other; of
//! either kind an address never has more than [`MOST_OF_ONE`], all together never more than [`MOST`]. When all
//! are taken, whoever has fewer than another takes the place that one has had longest: a crowd keeps nobody
//! out who wants little. A place is a value, and its `Drop` is the only way back.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Every container of a pod has three probes and a hook at most, and all of them come from one kubelet.
const MOST_OF_ONE: usize = 64;

/// What eight such kubelets could want.
const MOST: usize = 512;

/// What somebody takes his time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A probe of the application.
    Probe,
    /// The end of a drain.
    Drain,
}

/// Who waits, and for what.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// In the order of [`For`].
    rooms: [Mutex<Room>; 2],
}

/// The places of one kind that are taken, by address, the oldest first.
type Room = HashMap<IpAddr, VecDeque<Taken>>;

#[derive(Debug)]
struct Taken {
    number: u64,
    /// Cancelled when it is taken away.
    lost: CancellationToken,
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
pub(super) struct Place {
    visitor: Visitor,
    what: For,
    number: u64,
    lost: CancellationToken,
}

impl Visitor {
    pub(super) fn new(address: Option<IpAddr>, patience: Arc<Patience>) -> Self {
        Self { address, busy: Arc::default(), patience }
    }

    /// Whether its connection is to be left alone.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Let it wait, unless too many do who want no more than it.
    pub(super) fn wait(&self, what: For) -> Option<Place> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let lost = CancellationToken::new();
        if let Some(address) = self.address {
            let mut room = self.patience.room(what);
            let has = room.get(&address).map_or(0, VecDeque::len);
            let all: usize = room.values().map(VecDeque::len).sum();
            if has >= MOST_OF_ONE || all >= MOST && !push_out(&mut room, has) {
                return None;
            }
            room.entry(address).or_default().push_back(Taken { number, lost: lost.clone() });
        }
        self.busy.store(true, Ordering::Relaxed);
        Some(Place { visitor: self.clone(), what, number, lost })
    }
}

/// Make room for somebody who `has` so many, if another has more.
fn push_out(room: &mut Room, has: usize) -> bool {
    let by_size = |places: &&mut VecDeque<Taken>| {
        (places.len(), Reverse(places.front().map(|oldest| oldest.number)))
    };
    let Some(most) = room.values_mut().max_by_key(by_size) else { return false };
    let oldest = if most.len() > has { most.pop_front() } else { None };
    oldest.map(|taken| taken.lost.cancel()).is_some()
}

impl Patience {
    fn room(&self, what: For) -> MutexGuard<'_, Room> {
        self.rooms[what as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when it has been given to somebody else.
    pub(super) async fn is_lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.visitor.busy.store(false, Ordering::Relaxed);
        let Some(address) = self.visitor.address else { return };
        let mut room = self.visitor.patience.room(self.what);
        if let Some(places) = room.get_mut(&address) {
            places.retain(|taken| taken.number != self.number);
            if places.is_empty() {
                // Without a trace of addresses that nobody waits at.
                room.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitor(patience: &Arc<Patience>, last: u8) -> Visitor {
        Visitor::new(Some([10, 0, 0, last].into()), patience.clone())
    }

    fn still_there(places: &[Place]) -> usize {
        places.iter().filter(|place| !place.lost.is_cancelled()).count()
    }

    #[test]
    fn nobody_takes_the_places_of_others_and_all_are_given_back() {
        let patience = Arc::<Patience>::default();
        let visitor = |last| visitor(&patience, last);
        let greedy: Vec<_> = (0..).map_while(|_| visitor(1).wait(For::Drain)).collect();
        assert_eq!(greedy.len(), MOST_OF_ONE);
        let kubelet = visitor(2);
        let place = kubelet.wait(For::Drain).expect("there is room for others");
        assert!(kubelet.is_busy());
        let others: Vec<_> =
            (0..4 * MOST).filter_map(|n| visitor(3 + (n % 200) as u8).wait(For::Drain)).collect();
        assert_eq!(still_there(&greedy) + 1 + still_there(&others), MOST);
        assert!(!place.lost.is_cancelled(), "nobody has fewer");
        let owner = Visitor::new(None, patience.clone());
        assert!(owner.wait(For::Drain).is_some(), "the owner's socket");
        drop((place, greedy, others));
        assert!(!kubelet.is_busy());
        assert!(patience.room(For::Drain).is_empty());
    }

    #[test]
    fn a_crowd_keeps_nobody_out_who_wants_little() {
        let patience = Arc::<Patience>::default();
        let crowd: Vec<_> =
            (0..MOST).filter_map(|n| visitor(&patience, (n % 8) as u8).wait(For::Drain)).collect();
        assert_eq!(crowd.len(), MOST);
        let probe = visitor(&patience, 1).wait(For::Probe);
        assert!(probe.is_some() && still_there(&crowd) == MOST, "another kind");
        let kubelet: Vec<_> =
            (0..4).map_while(|_| visitor(&patience, 9).wait(For::Drain)).collect();
        assert_eq!((kubelet.len(), still_there(&kubelet)), (4, 4));
        assert_eq!(still_there(&crowd), MOST - 4);
        assert_eq!(still_there(&crowd[..4]), 0, "those that had been there longest");
        drop((crowd, kubelet, probe));
        assert!([For::Probe, For::Drain].map(|what| patience.room(what).is_empty()) == [true; 2]);
    }
}
