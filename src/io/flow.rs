//! What happens inside a relay, as both sides of the seam see it: the engine reports bytes, ends
//! and stalls here; the connection's watch reads them and decides. No timer runs and no clock is
//! read while a connection just carries bytes.
//!
//! Always true: a flow that broke stays broken; a side that finished stays finished.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// One end of a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer that was accepted.
    Client,
    /// The peer that was dialled.
    App,
}

/// Bytes carried so far, readable from any thread. One writer: the worker that relays.
#[derive(Debug, Default)]
pub struct Traffic {
    from: [AtomicU64; 2],
}

/// How long a relay may stay in each state. `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Nothing moves either way.
    pub idle: Option<Duration>,
    /// One side does not take the bytes that are there for it.
    pub write_stall: Option<Duration>,
    /// One side has ended and the other sends nothing more, and does not end either.
    pub abandon: Option<Duration>,
}

impl Patience {
    /// For ever.
    pub const ENDLESS: Self = Self { idle: None, write_stall: None, abandon: None };
}

/// Why a relay has to be broken off from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Nothing moved for `idle`.
    Idle,
    /// This side took nothing for `write_stall`.
    Stalled(Side),
    /// The other side had finished, and this one did not for `abandon`.
    Unfinished(Side),
}

/// The state of one relay.
pub struct Flow {
    traffic: Arc<Traffic>,
    /// Where the bytes of all relays of a port are added up, by side.
    totals: Arc<[AtomicU64; 2]>,
    /// Whether `last_moved` is kept: costs a clock reading per read.
    timed: Cell<bool>,
    patience: Patience,
    last_moved: Cell<Instant>,
    finished: [Cell<bool>; 2],
    /// All of this side's bytes have been delivered, or will never be.
    delivered: [Cell<bool>; 2],
    /// Since when bytes for this side wait to be taken.
    blocked: [Cell<Option<Instant>>; 2],
    /// What a blocked side's kernel had not acknowledged when it was last asked.
    unacknowledged: [Cell<Option<i32>>; 2],
    broke: Cell<Option<Side>>,
    /// Whether the relay has to stop, whatever state it is in.
    broken_off: Cell<bool>,
    /// Whether the watch has to look again, and who does.
    changed: Cell<bool>,
    watch: Cell<Option<Waker>>,
}

impl Side {
    /// The other end.
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::App,
            Self::App => Self::Client,
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl Traffic {
    /// Bytes that were carried otherwise than by a relay: read from the client, written to it.
    pub fn add(&self, totals: &[AtomicU64; 2], carried: [u64; 2]) {
        for ((count, total), bytes) in self.from.iter().zip(totals).zip(carried) {
            count.fetch_add(bytes, Ordering::Relaxed);
            total.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes read from `side` and written to the other.
    pub fn from(&self, side: Side) -> u64 {
        self.from[side.index()].load(Ordering::Relaxed)
    }
}

impl Flow {
    /// A relay that begins now.
    pub fn new(
        traffic: Arc<Traffic>,
        totals: Arc<[AtomicU64; 2]>,
        patience: Patience,
        now: Instant,
    ) -> Self {
        Self {
            traffic,
            totals,
            timed: Cell::new(patience.idle.is_some()),
            patience,
            last_moved: Cell::new(now),
            finished: Default::default(),
            delivered: Default::default(),
            blocked: Default::default(),
            unacknowledged: Default::default(),
            broke: Cell::new(None),
            broken_off: Cell::new(false),
            changed: Cell::new(false),
            watch: Cell::new(None),
        }
    }

    /// The engine wrote bytes that came from `side` to the other.
    pub fn moved(&self, side: Side, bytes: usize) {
        // One writer, so load and store make an increment.
        let count = &self.traffic.from[side.index()];
        count.store(count.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
        self.totals[side.index()].fetch_add(bytes as u64, Ordering::Relaxed);
        if self.timed.get() {
            self.last_moved.set(Instant::now());
        }
        self.blocked[side.other().index()].set(None);
        self.unacknowledged[side.other().index()].set(None);
    }

    /// The engine has read the end of `side`'s bytes.
    pub fn finish(&self, side: Side) {
        self.finished[side.index()].set(true);
        self.timed.set(true);
        self.last_moved.set(Instant::now());
        self.wake();
    }

    /// The engine has delivered all of `side`'s bytes, and their end is an end of file. Whether the
    /// other side has to be told with a FIN: not if the connection is broken, because a reset must
    /// not look like an end; nor if both are done, because the sockets will be closed now.
    pub fn passes_on_end_of(&self, side: Side) -> bool {
        self.delivered[side.index()].set(true);
        self.broke.get().is_none() && !self.delivered[side.other().index()].get()
    }

    /// The engine has bytes for `side` which it does not take.
    pub fn block(&self, side: Side) {
        let since = &self.blocked[side.index()];
        if since.get().is_none() {
            since.set(Some(Instant::now()));
            self.wake();
        }
    }

    /// `side` has been blocked for too long, and its kernel has not acknowledged this many bytes.
    /// Whether that is less than the last time, so that it takes them after all, if slowly: the
    /// engine is told of room only when much has come free. The first time counts as yes.
    pub fn takes_slowly(&self, side: Side, unacknowledged: Option<i32>) -> bool {
        let before = self.unacknowledged[side.index()].replace(unacknowledged);
        let takes = before.is_none() || unacknowledged < before;
        if takes {
            self.blocked[side.index()].set(Some(Instant::now()));
        }
        takes
    }

    /// `side` reset the connection, or it failed on that side.
    pub fn fail(&self, side: Side) {
        if self.broke.get().is_none() {
            self.broke.set(Some(side));
        }
    }

    /// Which side broke the connection, if one did.
    pub fn broken(&self) -> Option<Side> {
        self.broke.get()
    }

    /// The relay has to stop. Whoever calls this polls it afterwards.
    pub fn break_off(&self) {
        self.broken_off.set(true);
    }

    /// Whether the relay has to stop.
    pub fn is_broken_off(&self) -> bool {
        self.broken_off.get()
    }

    /// Whether the end of `side`'s bytes has been read.
    pub fn is_finished(&self, side: Side) -> bool {
        self.finished[side.index()].get()
    }

    /// Resolves when the relay has been in one state for longer than its patience allows.
    pub async fn overdue<S: Future<Output = ()>>(
        &self,
        sleep_until: impl Fn(Instant) -> S,
    ) -> Overdue {
        loop {
            let Some((why, at)) = self.next_deadline() else {
                poll_fn(|cx| self.poll_changed(cx)).await;
                continue;
            };
            if at <= Instant::now() {
                return why;
            }
            // In a box: most connections never need one.
            let mut sleep = Box::pin(sleep_until(at));
            poll_fn(|cx| match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => self.poll_changed(cx),
            })
            .await;
        }
    }

    /// What will be overdue first if nothing changes, and when.
    fn next_deadline(&self) -> Option<(Overdue, Instant)> {
        let (patience, moved) = (self.patience, self.last_moved.get());
        let stalled = |side: Side| {
            let since = self.blocked[side.index()].get()?;
            Some((Overdue::Stalled(side), since + patience.write_stall?))
        };
        let unfinished = |side: Side| {
            let alone = self.is_finished(side.other()) && !self.is_finished(side);
            let abandon = patience.abandon.filter(|_| alone)?;
            Some((Overdue::Unfinished(side), moved + abandon))
        };
        [
            patience.idle.map(|idle| (Overdue::Idle, moved + idle)),
            stalled(Side::Client),
            stalled(Side::App),
            unfinished(Side::Client),
            unfinished(Side::App),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(_, at)| *at)
    }

    /// Ready when the flow has entered another state that may have a deadline.
    fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.changed.take() {
            return Poll::Ready(());
        }
        self.watch.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn wake(&self) {
        self.changed.set(true);
        if let Some(watch) = self.watch.take() {
            watch.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        idle: None,
        write_stall: Some(Duration::from_secs(30)),
        abandon: Some(Duration::from_secs(10)),
    };

    fn flow() -> Flow {
        Flow::new(Arc::default(), Arc::default(), PATIENCE, Instant::now())
    }

    #[test]
    fn a_connection_that_just_carries_bytes_has_no_deadline() {
        let flow = flow();
        flow.moved(Side::Client, 10);
        assert_eq!(flow.next_deadline(), None);
        assert_eq!(flow.traffic.from(Side::Client), 10);
    }

    #[test]
    fn progress_ends_a_stall() {
        let flow = flow();
        flow.block(Side::App);
        assert_eq!(flow.next_deadline().unwrap().0, Overdue::Stalled(Side::App));
        flow.moved(Side::Client, 1);
        assert_eq!(flow.next_deadline(), None);
    }

    #[test]
    fn who_acknowledges_a_little_is_not_stuck() {
        let flow = flow();
        flow.block(Side::Client);
        assert!(flow.takes_slowly(Side::Client, Some(900)));
        assert!(flow.takes_slowly(Side::Client, Some(800)));
        assert!(!flow.takes_slowly(Side::Client, Some(800)));
    }

    #[test]
    fn the_side_that_has_not_finished_is_the_one_waited_for() {
        let flow = flow();
        flow.finish(Side::Client);
        assert_eq!(flow.next_deadline().unwrap().0, Overdue::Unfinished(Side::App));
        flow.finish(Side::App);
        assert_eq!(flow.next_deadline(), None);
    }
}
