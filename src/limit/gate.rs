//! The gate: one word for who comes and goes unhindered, one lock for everything else.
//!
//! Always true, whenever the lock is free:
//! - While somebody waits, all slots are taken: a slot that comes free is reserved for the head of the
//!   queue before the lock is released (`Line::settle`).
//! - SLOW is set in the word exactly while somebody waits in the queue or for room, or the gate is
//!   closed. So a permit dropped while somebody waits comes to the lock, and meets the waiter there;
//!   and nobody arrives past a waiter without meeting him.
//!
//! Why no wake-up is lost: who is about to wait sets SLOW under the lock, in one step that fails if a
//! slot is free (`Word::slow_down_if_full`). A drop that comes earlier in the order of the word makes
//! that step fail, and the arrival takes the slot; one that comes later sees SLOW and waits for the
//! lock, and then finds the waiter in the queue. Wakers are woken after the lock is released, but what
//! they are woken for was written under it, and a poll looks under it.

use super::clients::{Census, Client, Clients};
use super::line::{Calls, Decision, Line};
use super::queue::Number;
use super::shadow::Shadow;
use super::sync::{Arc, Mutex, lock};
use super::word::{UNLIMITED, Word};
use super::{Entry, Permit, Settings, Sight, Snapshot, Ticket};
use crate::outcome::Reason;
use std::fmt;
use std::task::{Context, Poll};
use std::time::Instant;

/// Lets in as many at once as its settings say. A handle: clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

/// What all handles, permits and tickets of one gate share.
pub(super) struct Shared {
    word: Word,
    clients: Clients,
    shadow: Shadow,
    line: Mutex<Line>,
}

/// An arrival's hold on the gate and its place in the census, left when dropped.
pub(super) struct Seat {
    shared: Arc<Shared>,
    client: Option<Client>,
}

impl Gate {
    /// A gate with nobody inside.
    pub fn new(settings: &Settings) -> Self {
        let shared = Shared {
            word: Word::new(settings.enforced_limit()),
            clients: Clients::new(settings),
            shadow: Shadow::new(settings),
            line: Mutex::new(Line::new(settings)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Admits, queues or refuses one arrival, which counts towards `client`'s share if that is known.
    pub fn enter(&self, now: Instant, client: Option<Client>) -> Entry {
        let shared = &self.shared;
        let beyond_cap = match client.map(|client| shared.clients.join(client)) {
            None | Some(Census::Within) => false,
            Some(Census::Beyond) => true,
            Some(Census::Refused) => {
                return Entry::Refuse(shared.unless_closed(Reason::PerClientLimit));
            }
        };
        let seat = Seat { shared: Arc::clone(shared), client };
        let decision = match shared.word.take() {
            Some(found) => Decision::Admit(found),
            None => shared.with_line(|line, _| line.decide(&shared.word)),
        };
        match decision {
            Decision::Admit(found) => {
                shared.shadow.arrival(found, beyond_cap);
                Entry::Admit(Permit::new(seat))
            }
            Decision::Wait(number) => Entry::Wait(Ticket::new(seat, number, now)),
            Decision::Refuse(reason) => Entry::Refuse(reason),
        }
    }

    /// Puts other settings into force, for those who wait too. Whoever is inside stays, and whoever
    /// waits keeps the place; all who wait are woken, because their deadlines may have moved.
    pub fn apply(&self, settings: &Settings) {
        let shared = &self.shared;
        let before = shared.with_line(|line, calls| {
            shared.clients.apply(settings);
            shared.shadow.apply(settings);
            shared.word.set_limit(settings.enforced_limit());
            calls.extend(line.queue.wakers());
            std::mem::replace(&mut line.settings, settings.clone())
        });
        drop(before); // frees memory, and need not do so under the lock
    }

    /// Ends admission: all who wait, and all who come from now on, are told `draining`. Whoever has a
    /// slot, or has one reserved, keeps it.
    pub fn close(&self) {
        self.shared.with_line(|line, calls| line.close(&self.shared.word, calls));
    }

    /// Begins admission again after [`close`](Self::close). Whoever was told `draining` stays told.
    pub fn open(&self) {
        self.shared.with_line(|line, _| line.open());
    }

    /// Ready when an arrival would not be refused for want of a slot or of room in the queue. May be
    /// ready in vain, as somebody else may come first.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &self.shared;
        if !shared.word.slow() && !shared.word.full() {
            return Poll::Ready(());
        }
        shared.with_line(|line, calls| line.room(&shared.word, cx.waker(), calls))
    }

    /// The gate at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let shared = &self.shared;
        let line = lock(&shared.line);
        Snapshot {
            active: shared.word.in_use(),
            queued: u32::try_from(line.queue.len()).unwrap_or(u32::MAX),
            peak_active: shared.shadow.peak(),
            shadow: shared.shadow.counts(&line.settings.shadow_limits),
            would_refuse: shared.shadow.would_refuse(),
            settings: line.settings.clone(),
        }
    }

    /// What explains a decision about `client`. Cheaper than a [`snapshot`](Self::snapshot): every
    /// refusal looks here.
    pub fn sight(&self, client: Option<Client>) -> Sight {
        let shared = &self.shared;
        let line = lock(&shared.line);
        let settings = &line.settings;
        let mut sight = Sight {
            limit: settings.enforced_limit(),
            active: shared.word.in_use(),
            queued: u32::try_from(line.queue.len()).unwrap_or(u32::MAX),
            queue_length: settings.queue_length,
            queue_timeout: settings.queue_timeout,
            of_client: None,
            per_client_limit: settings.per_client_limit,
        };
        drop(line);
        if let (Some(client), Some(_)) = (client, sight.per_client_limit) {
            sight.of_client = Some(shared.clients.count(client));
        }
        sight
    }

    /// The limit in force, without the lock; a number beyond reach if there is none.
    pub fn limit(&self) -> u32 {
        self.shared.word.limit()
    }

    /// Whether anybody can be refused, without the lock: a limit is in force, and not only observed.
    pub fn is_enforcing(&self) -> bool {
        self.limit() < UNLIMITED
    }

    /// How many slots are taken, without the lock.
    pub fn active(&self) -> u32 {
        self.shared.word.in_use()
    }

    /// How many wait, those with a reservation not counted.
    pub fn queued(&self) -> u32 {
        // While nobody waits the word says so, without the lock.
        if !self.shared.word.slow() {
            return 0;
        }
        u32::try_from(lock(&self.shared.line).queue.len()).unwrap_or(u32::MAX)
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        lock(&self.shared.line).settings.clone()
    }
}

impl Shared {
    /// Does something under the lock, hands on what it freed, and wakes whom that concerns once the
    /// lock is released: a waker may run anything, this gate's own code included.
    pub(super) fn with_line<R>(&self, act: impl FnOnce(&mut Line, &mut Calls) -> R) -> R {
        let mut calls = Calls::default();
        let mut line = lock(&self.line);
        let answer = act(&mut line, &mut calls);
        line.settle(&self.word, &self.shadow, &mut calls);
        drop(line);
        calls.wake();
        answer
    }

    /// Gives one slot back: to nobody in particular, or, if somebody waits, to the head of the queue.
    pub(super) fn give_back(&self) {
        if !self.word.give_back() {
            self.with_line(|_, _| self.word.give_back_locked());
        }
    }

    /// The reason for a refusal made without the lock. A closed gate has SLOW set as long as it is.
    fn unless_closed(&self, reason: Reason) -> Reason {
        if self.word.slow() && lock(&self.line).closed() {
            return Reason::Draining;
        }
        reason
    }
}

impl Seat {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn deadline(&self, enqueued: Instant) -> Instant {
        lock(&self.shared.line).deadline(enqueued)
    }

    pub(super) fn position(&self, number: Number) -> usize {
        lock(&self.shared.line).queue.position(number)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            self.shared.clients.leave(client);
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.snapshot()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Mode;
    use crate::limit::line::MAX_ROOM_WAITERS;
    use std::num::NonZeroU32;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A task: a waker and how often it was woken.
    struct Task(std::sync::Arc<Woken>, Waker);

    impl Task {
        fn new() -> Self {
            let woken = std::sync::Arc::new(Woken::default());
            Self(woken.clone(), Waker::from(woken))
        }

        fn cx(&self) -> Context<'_> {
            Context::from_waker(&self.1)
        }

        fn woken(&self) -> usize {
            self.0.0.load(Ordering::Relaxed)
        }
    }

    fn enforcing(limit: u32, queue_length: u32) -> Settings {
        Settings { limit: NonZeroU32::new(limit), queue_length, ..Settings::plain(Mode::Enforce) }
    }

    fn admitted(entry: Entry) -> Permit {
        match entry {
            Entry::Admit(permit) => permit,
            other => panic!("not admitted: {other:?}"),
        }
    }

    fn waiting(entry: Entry) -> Ticket {
        match entry {
            Entry::Wait(ticket) => ticket,
            other => panic!("does not wait: {other:?}"),
        }
    }

    fn refused(entry: Entry) -> Reason {
        match entry {
            Entry::Refuse(reason) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn the_handles_are_what_tasks_and_threads_need() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        fn moved<T: Send + Unpin + 'static>() {}
        shared::<Gate>();
        moved::<Permit>();
        moved::<Ticket>();
        assert!(size_of::<Permit>() <= 32, "a connection holds one for its whole life");
    }

    #[test]
    fn a_full_gate_says_whether_there_was_a_queue() {
        let now = Instant::now();
        let gate = Gate::new(&enforcing(1, 0));
        let _inside = admitted(gate.enter(now, None));
        assert_eq!(refused(gate.enter(now, None)), Reason::LimitReached);
        gate.apply(&enforcing(1, 1));
        let _ticket = waiting(gate.enter(now, None));
        assert_eq!(refused(gate.enter(now, None)), Reason::QueueFull);
    }

    #[test]
    fn a_freed_slot_is_kept_for_the_head_and_nobody_barges() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 2)), Task::new());
        let inside = admitted(gate.enter(now, None));
        let mut first = waiting(gate.enter(now, None));
        assert!(first.poll(now, &mut task.cx()).is_pending());
        drop(inside);
        assert_eq!(task.woken(), 1);
        assert_eq!(gate.snapshot().active, 1, "reserved");
        let second = waiting(gate.enter(now, None));
        assert_eq!((first.position(), second.position()), (0, 1));
        assert!(matches!(first.poll(now, &mut task.cx()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn who_comes_too_late_passes_the_slot_on() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 2)), Task::new());
        let inside = admitted(gate.enter(now, None));
        let mut first = waiting(gate.enter(now, None));
        let later = now + Duration::from_millis(500);
        let mut second = waiting(gate.enter(later, None));
        assert!(second.poll(later, &mut task.cx()).is_pending());
        drop(inside);
        assert_eq!(task.woken(), 0, "the head is not the second");

        let late = first.deadline() + Duration::from_nanos(1);
        let answer = first.poll(late, &mut task.cx());
        assert!(matches!(answer, Poll::Ready(Err(Reason::QueueTimeout))));
        assert_eq!(task.woken(), 1);
        assert!(matches!(second.poll(late, &mut task.cx()), Poll::Ready(Ok(_))));
        assert_eq!(gate.snapshot().active, 0);
    }

    #[test]
    fn the_deadline_itself_is_in_time_for_a_reserved_slot_and_too_late_for_none() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 2)), Task::new());
        let inside = admitted(gate.enter(now, None));
        let mut first = waiting(gate.enter(now, None));
        let mut second = waiting(gate.enter(now, None));
        drop(inside);
        let deadline = first.deadline();
        let permit = first.poll(deadline, &mut task.cx());
        assert!(matches!(permit, Poll::Ready(Ok(_))));
        let answer = second.poll(deadline, &mut task.cx());
        assert!(matches!(answer, Poll::Ready(Err(Reason::QueueTimeout))));
        assert_eq!(gate.snapshot().queued, 0);
    }

    #[test]
    fn a_dropped_ticket_leaves_the_queue_or_passes_the_slot_on() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 3)), Task::new());
        let inside = admitted(gate.enter(now, None));
        let [first, second, mut third] = [(); 3].map(|()| waiting(gate.enter(now, None)));
        assert!(third.poll(now, &mut task.cx()).is_pending());
        drop(first);
        assert_eq!((second.position(), third.position()), (1, 2));
        drop(inside);
        drop(second); // had been called
        assert_eq!(task.woken(), 1);
        assert!(matches!(third.poll(now, &mut task.cx()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn a_raised_limit_lets_in_who_waits_before_who_comes() {
        let now = Instant::now();
        let gate = Gate::new(&enforcing(1, 9));
        let _inside = admitted(gate.enter(now, None));
        let tickets = [(); 3].map(|()| waiting(gate.enter(now, None)));
        gate.apply(&enforcing(3, 9));
        assert_eq!(tickets.each_ref().map(Ticket::position), [0, 0, 1]);
        let _behind = waiting(gate.enter(now, None));
        assert_eq!(gate.snapshot().active, 3);
    }

    #[test]
    fn a_lowered_limit_kills_nothing_and_admits_nothing_until_below_it() {
        let now = Instant::now();
        let gate = Gate::new(&enforcing(3, 9));
        let mut inside = Vec::from([(); 3].map(|()| admitted(gate.enter(now, None))));
        gate.apply(&enforcing(1, 9));
        let ticket = waiting(gate.enter(now, None));
        drop(inside.pop());
        drop(inside.pop());
        assert_eq!((gate.snapshot().active, ticket.position()), (1, 1));
        drop(inside.pop());
        assert_eq!((gate.snapshot().active, ticket.position()), (1, 0));
    }

    #[test]
    fn a_changed_timeout_moves_deadlines_and_wakes_who_waits() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 9)), Task::new());
        let _inside = admitted(gate.enter(now, None));
        let mut ticket = waiting(gate.enter(now, None));
        assert!(ticket.poll(now, &mut task.cx()).is_pending());
        let queue_timeout = Duration::from_millis(10);
        gate.apply(&Settings { queue_timeout, ..enforcing(1, 9) });
        assert_eq!(task.woken(), 1);
        assert_eq!(ticket.deadline(), now + queue_timeout);
        gate.apply(&Settings { queue_timeout: Duration::MAX, ..enforcing(1, 9) });
        assert!(ticket.deadline() > now + Duration::from_secs(3600), "and does not overflow");
    }

    #[test]
    fn observing_admits_all_who_wait_and_counts_what_it_would_refuse() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 9)), Task::new());
        let inside = admitted(gate.enter(now, None));
        let tickets = [(); 2].map(|()| waiting(gate.enter(now, None)));
        let observing = Settings { mode: Mode::Observe, ..enforcing(1, 0) };
        gate.apply(&observing);
        let late = now + Duration::from_secs(60);
        let permits = tickets.map(|mut ticket| ticket.poll(late, &mut task.cx()));
        assert!(permits.iter().all(|answer| matches!(answer, Poll::Ready(Ok(_)))));
        let more = admitted(gate.enter(now, None));
        let seen = gate.snapshot();
        assert_eq!((seen.active, seen.peak_active, seen.would_refuse), (4, 4, 1));

        gate.apply(&enforcing(1, 0));
        drop((permits, more));
        assert_eq!(refused(gate.enter(now, None)), Reason::LimitReached, "not below it yet");
        drop(inside);
        drop(admitted(gate.enter(now, None)));
    }

    #[test]
    fn a_closed_gate_tells_all_but_the_called_that_it_drains() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 9)), Task::new());
        let client = Some(Client::named(b"one"));
        let inside = admitted(gate.enter(now, client));
        let mut called = waiting(gate.enter(now, None));
        drop(inside);
        let mut waits = waiting(gate.enter(now, client));
        assert!(waits.poll(now, &mut task.cx()).is_pending());
        assert!(gate.poll_room(&mut task.cx()).is_ready());

        gate.close();
        assert_eq!(task.woken(), 1);
        let answer = waits.poll(now, &mut task.cx());
        assert!(matches!(answer, Poll::Ready(Err(Reason::Draining))));
        let per_client_limit = NonZeroU32::new(1);
        gate.apply(&Settings { per_client_limit, ..enforcing(9, 9) });
        assert_eq!(refused(gate.enter(now, client)), Reason::Draining);
        assert!(matches!(called.poll(now, &mut task.cx()), Poll::Ready(Ok(_))));
        assert!(gate.poll_room(&mut task.cx()).is_ready(), "it would answer, though not kindly");
        assert_eq!(gate.snapshot().active, 0);
    }

    #[test]
    fn a_gate_that_is_opened_again_is_as_before() {
        let now = Instant::now();
        let gate = Gate::new(&enforcing(1, 0));
        let inside = admitted(gate.enter(now, None));
        gate.close();
        gate.open();
        assert_eq!(refused(gate.enter(now, None)), Reason::LimitReached);
        drop(inside);
        assert!(!gate.shared.word.slow(), "nobody is sent to the lock any more");
        drop(admitted(gate.enter(now, None)));
    }

    #[test]
    fn a_clients_share_counts_what_is_active_and_what_waits() {
        let now = Instant::now();
        let capped = Settings { per_client_limit: NonZeroU32::new(2), ..enforcing(1, 9) };
        let gate = Gate::new(&capped);
        let client = |name: u8| Some(Client::named(&[name]));
        let inside = admitted(gate.enter(now, client(1)));
        let queued = waiting(gate.enter(now, client(1)));
        assert_eq!(refused(gate.enter(now, client(1))), Reason::PerClientLimit);
        drop(waiting(gate.enter(now, client(2))));
        drop(waiting(gate.enter(now, None)));
        drop(queued);
        let _again = waiting(gate.enter(now, client(1)));
        drop(inside);
        let _and_again = waiting(gate.enter(now, client(1)));
    }

    #[test]
    fn what_explains_a_decision_can_be_seen() {
        let now = Instant::now();
        let capped = Settings { per_client_limit: NonZeroU32::new(2), ..enforcing(1, 9) };
        let gate = Gate::new(&capped);
        let client = Some(Client::named(b"one"));
        let _inside = admitted(gate.enter(now, client));
        let _queued = waiting(gate.enter(now, client));
        assert_eq!(refused(gate.enter(now, client)), Reason::PerClientLimit);
        let seen = gate.sight(client);
        assert_eq!((seen.limit, seen.active), (NonZeroU32::new(1), 1));
        assert_eq!((seen.queued, seen.queue_length), (1, 9));
        assert_eq!((seen.of_client, seen.per_client_limit), (Some(2), NonZeroU32::new(2)));
        let other = Some(Client::named(b"other"));
        assert_eq!((gate.sight(other).of_client, gate.sight(None).of_client), (Some(0), None));
    }

    #[test]
    fn who_holds_back_connections_is_woken_by_room_in_slots_or_queue() {
        let now = Instant::now();
        let (gate, task) = (Gate::new(&enforcing(1, 1)), Task::new());
        assert!(gate.poll_room(&mut task.cx()).is_ready());
        let inside = admitted(gate.enter(now, None));
        assert!(gate.poll_room(&mut task.cx()).is_ready(), "the queue has room");
        let ticket = waiting(gate.enter(now, None));

        assert!(gate.poll_room(&mut task.cx()).is_pending());
        drop(inside); // the head is called, so one may queue
        assert_eq!(task.woken(), 1);

        gate.apply(&enforcing(1, 0));
        assert!(gate.poll_room(&mut task.cx()).is_pending());
        drop(ticket);
        assert_eq!(task.woken(), 2);
        drop(admitted(gate.enter(now, None)));

        let _inside = admitted(gate.enter(now, None));
        assert!(gate.poll_room(&mut task.cx()).is_pending());
        gate.close();
        assert_eq!(task.woken(), 3);
    }

    #[test]
    fn many_who_look_for_room_are_all_woken_in_the_end() {
        let now = Instant::now();
        let gate = Gate::new(&enforcing(1, 0));
        let inside = admitted(gate.enter(now, None));
        let tasks: Vec<_> = (0..2 * MAX_ROOM_WAITERS).map(|_| Task::new()).collect();
        for task in &tasks {
            assert!(gate.poll_room(&mut task.cx()).is_pending());
        }
        drop(inside);
        assert!(tasks.iter().all(|task| task.woken() == 1));
    }

    #[test]
    fn the_lock_is_not_asked_once_nobody_waits() {
        let now = Instant::now();
        let gate = Gate::new(&enforcing(1, 1));
        let inside = admitted(gate.enter(now, None));
        let ticket = waiting(gate.enter(now, None));
        assert!(gate.shared.word.slow());
        drop(ticket);
        assert!(!gate.shared.word.slow());
        drop(inside);
    }
}
