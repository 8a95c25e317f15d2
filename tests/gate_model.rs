//! The gate against a model too simple to be wrong: whatever happens, in whatever order, both give the
//! same answers and show the same numbers, and nobody is left asleep. Then the gate alone, among real
//! threads.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tidegate::limit::{Client, Entry, Gate, Mode, Permit, Settings, Snapshot, Ticket};
use tidegate::outcome::Reason;

/// So many client addresses take part.
const CLIENTS: u8 = 3;

/// One thing that happens. An index picks among what there is at that moment.
#[derive(Clone, Debug)]
enum Event {
    Enter(Option<u8>),
    Poll(Index),
    DropTicket(Index),
    DropPermit(Index),
    PollRoom,
    Advance(Duration),
    Apply(Settings),
    Close,
}

/// An answer of the gate or of the model, without the rights that come with it.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Admitted,
    Waits,
    Refused(Reason),
    Room(bool),
    None,
}

/// The gate as one would explain it.
struct Model {
    settings: Settings,
    now: Instant,
    /// Each permit's client.
    permits: Vec<Option<u8>>,
    /// First come first, the called among those who wait.
    tickets: Vec<Waiter>,
    closed: bool,
    peak: usize,
    would_refuse: u64,
    shadow: BTreeMap<u32, u64>,
}

struct Waiter {
    client: Option<u8>,
    enqueued: Instant,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Waiting,
    Called,
    SentAway,
}

/// The gate itself, with what its answers gave.
struct Real {
    gate: Gate,
    permits: Vec<Permit>,
    tickets: Vec<(Ticket, Task)>,
    accept_loop: Task,
}

/// Who polls: whether it was told to wait, and whether it was woken since.
#[derive(Clone, Default)]
struct Task {
    asleep: Arc<AtomicBool>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

impl Task {
    fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let waker = Waker::from(Arc::new(self.clone()));
        self.asleep.store(true, Ordering::Relaxed);
        let answer = poll(&mut Context::from_waker(&waker));
        if answer.is_ready() {
            self.asleep.store(false, Ordering::Relaxed);
        }
        answer
    }

    fn asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
}

impl Model {
    fn new(settings: &Settings, now: Instant) -> Self {
        let mut model = Self {
            settings: settings.clone(),
            now,
            permits: Vec::new(),
            tickets: Vec::new(),
            closed: false,
            peak: 0,
            would_refuse: 0,
            shadow: BTreeMap::new(),
        };
        model.apply(settings);
        model
    }

    fn count(&self, standing: Standing) -> usize {
        let stands = |ticket: &&Waiter| ticket.standing == standing;
        self.tickets.iter().filter(stands).count()
    }

    fn active(&self) -> usize {
        self.permits.len() + self.count(Standing::Called)
    }

    fn limit(&self) -> usize {
        match (self.settings.mode, self.settings.limit) {
            (Mode::Enforce, Some(limit)) => limit.get() as usize,
            _ => usize::MAX,
        }
    }

    fn slot_is_free(&self) -> bool {
        self.count(Standing::Waiting) == 0 && self.active() < self.limit()
    }

    fn queue_has_room(&self) -> bool {
        self.count(Standing::Waiting) < self.settings.queue_length as usize
    }

    fn has_room(&self) -> bool {
        self.closed || self.slot_is_free() || self.queue_has_room()
    }

    fn deadline(&self, ticket: &Waiter) -> Instant {
        ticket.enqueued + self.settings.queue_timeout
    }

    fn position(&self, index: usize) -> usize {
        let ahead = &self.tickets[..=index];
        match self.tickets[index].standing {
            Standing::Waiting => ahead.iter().filter(|t| t.standing == Standing::Waiting).count(),
            Standing::Called | Standing::SentAway => 0,
        }
    }

    fn enter(&mut self, client: Option<u8>) -> Answer {
        if self.closed {
            return Answer::Refused(Reason::Draining);
        }
        let beyond_cap = client.is_some() && {
            let clients = self.permits.iter().copied().chain(self.tickets.iter().map(|t| t.client));
            let count = clients.filter(|&other| other == client).count();
            self.settings.per_client_limit.is_some_and(|cap| count >= cap.get() as usize)
        };
        if beyond_cap && self.settings.mode == Mode::Enforce {
            return Answer::Refused(Reason::PerClientLimit);
        }
        if self.slot_is_free() {
            if self.settings.mode == Mode::Observe {
                let found = self.active();
                let over = |limit: NonZeroU32| found >= limit.get() as usize;
                self.would_refuse += u64::from(beyond_cap || self.settings.limit.is_some_and(over));
                for (&limit, count) in &mut self.shadow {
                    *count += u64::from(found >= limit as usize);
                }
            }
            self.permits.push(client);
            return Answer::Admitted;
        }
        if self.queue_has_room() {
            let (enqueued, standing) = (self.now, Standing::Waiting);
            self.tickets.push(Waiter { client, enqueued, standing });
            return Answer::Waits;
        }
        Answer::Refused(match self.settings.queue_length {
            0 => Reason::LimitReached,
            _ => Reason::QueueFull,
        })
    }

    fn poll(&mut self, index: usize) -> Answer {
        let ticket = &self.tickets[index];
        let (standing, client, deadline) = (ticket.standing, ticket.client, self.deadline(ticket));
        let enforce = self.settings.mode == Mode::Enforce;
        let answer = match standing {
            Standing::Waiting if self.now < deadline => return Answer::Waits,
            Standing::Waiting => Answer::Refused(Reason::QueueTimeout),
            Standing::Called if enforce && self.now > deadline => {
                Answer::Refused(Reason::QueueTimeout)
            }
            Standing::Called => Answer::Admitted,
            Standing::SentAway => Answer::Refused(Reason::Draining),
        };
        self.tickets.remove(index);
        if answer == Answer::Admitted {
            self.permits.push(client);
        }
        answer
    }

    fn apply(&mut self, settings: &Settings) {
        self.settings = settings.clone();
        let kept = std::mem::take(&mut self.shadow);
        for limit in &settings.shadow_limits {
            let count = kept.get(&limit.get()).copied().unwrap_or(0);
            self.shadow.insert(limit.get(), count);
        }
    }

    fn close(&mut self) {
        self.closed = true;
        for ticket in &mut self.tickets {
            if ticket.standing == Standing::Waiting {
                ticket.standing = Standing::SentAway;
            }
        }
    }

    /// Slots that are free go to those who wait, first come, first served.
    fn settle(&mut self) {
        while self.active() < self.limit()
            && let Some(head) = self.tickets.iter_mut().find(|t| t.standing == Standing::Waiting)
        {
            head.standing = Standing::Called;
        }
        self.peak = self.peak.max(self.active());
    }

    fn snapshot(&self) -> Snapshot {
        let limits = self.settings.shadow_limits.iter();
        Snapshot {
            settings: self.settings.clone(),
            active: self.active() as u32,
            queued: self.count(Standing::Waiting) as u32,
            peak_active: self.peak as u32,
            shadow: limits.map(|limit| (limit.get(), self.shadow[&limit.get()])).collect(),
            would_refuse: self.would_refuse,
        }
    }
}

impl Real {
    fn enter(&mut self, now: Instant, client: Option<u8>) -> Answer {
        match self.gate.enter(now, client.map(address)) {
            Entry::Admit(permit) => {
                self.permits.push(permit);
                Answer::Admitted
            }
            Entry::Wait(ticket) => {
                self.tickets.push((ticket, Task::default()));
                Answer::Waits
            }
            Entry::Refuse(reason) => Answer::Refused(reason),
        }
    }

    fn poll(&mut self, now: Instant, index: usize) -> Answer {
        let (ticket, task) = &mut self.tickets[index];
        let Poll::Ready(answer) = task.poll(|cx| ticket.poll(now, cx)) else {
            return Answer::Waits;
        };
        drop(self.tickets.remove(index));
        match answer {
            Ok(permit) => {
                self.permits.push(permit);
                Answer::Admitted
            }
            Err(reason) => Answer::Refused(reason),
        }
    }
}

/// The same client, by IPv4 or through an IPv6 socket, is the same.
fn address(client: u8) -> Client {
    Client::from(match client % 2 {
        0 => IpAddr::from([192, 0, 2, client]),
        _ => IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0200 | u16::from(client)]),
    })
}

/// Lets `event` happen to both, and compares all there is to see.
fn step(model: &mut Model, real: &mut Real, event: &Event) {
    let pick = |index: &Index, len: usize| (len > 0).then(|| index.index(len));
    let mut woken_for_all = false;
    let (expected, actual) = match event {
        Event::Enter(client) => (model.enter(*client), real.enter(model.now, *client)),
        Event::Poll(index) => match pick(index, model.tickets.len()) {
            Some(index) => (model.poll(index), real.poll(model.now, index)),
            None => return,
        },
        Event::DropTicket(index) => {
            if let Some(index) = pick(index, model.tickets.len()) {
                model.tickets.remove(index);
                drop(real.tickets.remove(index));
            }
            (Answer::None, Answer::None)
        }
        Event::DropPermit(index) => {
            if let Some(index) = pick(index, model.permits.len()) {
                model.permits.remove(index);
                drop(real.permits.remove(index));
            }
            (Answer::None, Answer::None)
        }
        Event::PollRoom => {
            let ready = real.accept_loop.poll(|cx| real.gate.poll_room(cx)).is_ready();
            (Answer::Room(model.has_room()), Answer::Room(ready))
        }
        Event::Advance(time) => {
            model.now += *time;
            (Answer::None, Answer::None)
        }
        Event::Apply(settings) => {
            model.apply(settings);
            real.gate.apply(settings);
            woken_for_all = true;
            (Answer::None, Answer::None)
        }
        Event::Close => {
            model.close();
            real.gate.close();
            (Answer::None, Answer::None)
        }
    };
    model.settle();

    assert_eq!(actual, expected);
    assert_eq!(real.gate.snapshot(), model.snapshot());
    assert_eq!(real.gate.settings(), model.settings);
    for (index, (waiter, (ticket, task))) in model.tickets.iter().zip(&real.tickets).enumerate() {
        assert_eq!(ticket.position(), model.position(index));
        assert_eq!(ticket.deadline(), model.deadline(waiter));
        let may_sleep = waiter.standing == Standing::Waiting && !woken_for_all;
        assert!(may_sleep || !task.asleep(), "ticket {index} was not woken");
    }
    assert!(!(model.has_room() && real.accept_loop.asleep()), "nobody told of the room");
}

fn number(range: std::ops::Range<u32>) -> impl Strategy<Value = Option<NonZeroU32>> {
    range.prop_map(NonZeroU32::new)
}

fn settings() -> impl Strategy<Value = Settings> {
    let mode =
        prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Observe), 1 => Just(Mode::Off)];
    let timeout = (0_u64..20).prop_map(Duration::from_millis);
    let shadow = vec((1_u32..6).prop_filter_map("not 0", NonZeroU32::new), 0..4);
    // 0 is "none"; a limit is seldom none, a cap often.
    let limit = prop_oneof![6 => number(1..5), 1 => number(0..1)];
    let cap = prop_oneof![1 => number(1..4), 2 => number(0..1)];
    (mode, limit, 0_u32..5, timeout, cap, shadow).prop_map(
        |(mode, limit, queue_length, queue_timeout, per_client_limit, shadow_limits)| Settings {
            mode,
            limit,
            queue_length,
            queue_timeout,
            per_client_limit,
            shadow_limits,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        90 => proptest::option::of(0..CLIENTS).prop_map(Event::Enter),
        60 => any::<Index>().prop_map(Event::Poll),
        50 => any::<Index>().prop_map(Event::DropPermit),
        15 => any::<Index>().prop_map(Event::DropTicket),
        15 => Just(Event::PollRoom),
        30 => (0_u64..15).prop_map(|ms| Event::Advance(Duration::from_millis(ms))),
        12 => settings().prop_map(Event::Apply),
        1 => Just(Event::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_gate_does_what_the_model_does(first in settings(), events in vec(event(), 1..150)) {
        let now = Instant::now();
        let mut model = Model::new(&first, now);
        let mut real = Real {
            gate: Gate::new(&first),
            permits: Vec::new(),
            tickets: Vec::new(),
            accept_loop: Task::default(),
        };
        for event in &events {
            step(&mut model, &mut real, event);
        }
        let Real { gate, permits, tickets, .. } = real;
        drop((permits, tickets));
        assert_nothing_left(&gate, model.closed);
    }
}

/// No slot is taken, nobody waits, and no client is still counted: each may have its one.
fn assert_nothing_left(gate: &Gate, closed: bool) {
    let seen = gate.snapshot();
    assert_eq!((seen.active, seen.queued), (0, 0));
    let one_each = NonZeroU32::new(1);
    gate.apply(&Settings {
        mode: Mode::Enforce,
        limit: None,
        per_client_limit: one_each,
        ..seen.settings
    });
    let entries: Vec<_> =
        (0..CLIENTS).map(|c| gate.enter(Instant::now(), Some(address(c)))).collect();
    for entry in entries {
        match entry {
            Entry::Admit(_) => assert!(!closed),
            Entry::Refuse(reason) => assert!(closed && reason == Reason::Draining, "{reason:?}"),
            Entry::Wait(_) => panic!("nothing is limited"),
        }
    }
}

/// Wakes a thread that parks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait(mut ticket: Ticket, now: Instant) -> Result<Permit, Reason> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match ticket.poll(now, &mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn threads_never_outnumber_the_limit_and_leave_nothing_behind() {
    const THREADS: u32 = 4;
    const ARRIVALS: u32 = 25_000; // of each thread
    const LIMIT: u32 = 2;
    const TIMEOUT: Duration = Duration::from_secs(1);
    let settings = Settings {
        mode: Mode::Enforce,
        limit: NonZeroU32::new(LIMIT),
        queue_length: 2, // so that, of four threads, some find it full
        queue_timeout: TIMEOUT,
        per_client_limit: NonZeroU32::new(2),
        shadow_limits: Vec::new(),
    };
    let gate = Gate::new(&settings);
    let inside = AtomicU32::new(0);
    let admitted = AtomicU32::new(0);
    let now = Instant::now();

    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (gate, inside, admitted) = (&gate, &inside, &admitted);
            scope.spawn(move || {
                for n in 0..ARRIVALS {
                    let dice = (n ^ thread).wrapping_mul(0x9e37_79b9) >> 16;
                    let client = (dice % 4 < 3).then(|| address((dice % 4) as u8));
                    let permit = match gate.enter(now, client) {
                        Entry::Admit(permit) => permit,
                        Entry::Wait(ticket) if dice % 5 == 0 => {
                            drop(ticket);
                            continue;
                        }
                        Entry::Wait(ticket) => {
                            // Some look only when it is too late.
                            let late = if dice % 7 == 0 { TIMEOUT * 2 } else { Duration::ZERO };
                            match wait(ticket, now + late) {
                                Ok(permit) => permit,
                                Err(reason) => {
                                    assert_eq!(reason, Reason::QueueTimeout);
                                    continue;
                                }
                            }
                        }
                        Entry::Refuse(_) => continue,
                    };
                    let others = inside.fetch_add(1, Ordering::SeqCst);
                    assert!(others < LIMIT, "{others} others inside");
                    admitted.fetch_add(1, Ordering::Relaxed);
                    if dice % 3 == 0 {
                        thread::yield_now();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            });
        }
    });

    assert!(admitted.into_inner() > ARRIVALS, "most were admitted");
    assert!(gate.snapshot().peak_active <= LIMIT);
    assert_nothing_left(&gate, false);
}

#[test]
fn threads_find_their_way_through_changing_settings() {
    const THREADS: u32 = 3;
    const ARRIVALS: u32 = 10_000; // of each thread
    let settings = |n: u32| Settings {
        mode: [Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Observe][n as usize % 4],
        limit: NonZeroU32::new(1 + n % 2),
        queue_length: n % 5,
        queue_timeout: Duration::from_secs(1),
        per_client_limit: None,
        shadow_limits: Vec::new(),
    };
    let gate = Gate::new(&settings(0));
    let now = Instant::now();
    let running = AtomicU32::new(THREADS);

    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for n in 0..ARRIVALS {
                    let permit = match gate.enter(now, Some(address((n % 3) as u8))) {
                        Entry::Admit(permit) => permit,
                        Entry::Wait(ticket) => wait(ticket, now).expect("nobody is late"),
                        Entry::Refuse(_) => continue,
                    };
                    if n % 3 == 0 {
                        thread::yield_now();
                    }
                    drop(permit);
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut n = 0;
        while running.load(Ordering::SeqCst) > 0 {
            n += 1;
            gate.apply(&settings(n));
            thread::yield_now();
        }
    });
    assert_nothing_left(&gate, false);
}
