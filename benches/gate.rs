//! What the gate costs. The bar is 100 ns for an arrival that finds a free slot and leaves again.
//!
//! `cargo bench --bench gate`

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tidegate::limit::{Client, Entry, Gate, Mode, Permit, Settings, Ticket};

fn settings(mode: Mode, limit: u32, queue_length: u32) -> Settings {
    Settings {
        mode,
        limit: NonZeroU32::new(limit),
        queue_length,
        queue_timeout: Duration::from_secs(5),
        per_client_limit: NonZeroU32::new(1_000_000),
        shadow_limits: [25, 50, 100, 200, 400].into_iter().filter_map(NonZeroU32::new).collect(),
    }
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

/// Enter and leave while slots are free.
fn uncontended(c: &mut Criterion) {
    let now = Instant::now();
    let mut group = c.benchmark_group("uncontended");
    let v4 = Some(Client::from(IpAddr::from([192, 0, 2, 1])));
    let v6 = Some("2001:db8::1".parse::<IpAddr>().expect("an address").into());
    let gate = Gate::new(&settings(Mode::Enforce, 100, 100));
    for (name, client) in [("no client", None), ("IPv4 client", v4), ("IPv6 client", v6)] {
        group.bench_function(name, |b| b.iter(|| drop(gate.enter(now, black_box(client)))));
    }
    let gate = Gate::new(&settings(Mode::Observe, 100, 100));
    group.bench_function("observing, 5 shadow limits", |b| {
        b.iter(|| drop(gate.enter(now, black_box(None))));
    });
    group.finish();

    // Two threads on one gate with slots to spare: the price of the shared cache line.
    let gate = Gate::new(&settings(Mode::Enforce, 100, 100));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop(gate.enter(now, None));
            }
        });
        c.bench_function("uncontended/beside another thread", |b| {
            b.iter(|| drop(gate.enter(now, black_box(None))));
        });
        done.store(true, Ordering::Relaxed);
    });
}

/// A full gate.
fn contended(c: &mut Criterion) {
    let now = Instant::now();
    let mut cx = Context::from_waker(Waker::noop());
    let mut group = c.benchmark_group("contended");

    let gate = Gate::new(&settings(Mode::Enforce, 1, 0));
    let inside = admitted(gate.enter(now, None));
    group.bench_function("refuse", |b| b.iter(|| drop(gate.enter(now, black_box(None)))));
    drop(inside);

    // Queue, be called by the permit before, take its slot: the whole life of one who waits.
    for waiters in [1, 100, 10_000] {
        let gate = Gate::new(&settings(Mode::Enforce, 1, 20_000));
        let mut inside = Some(admitted(gate.enter(now, None)));
        let mut line: std::collections::VecDeque<_> =
            (1..waiters).map(|_| waiting(gate.enter(now, None))).collect();
        group.bench_function(format!("hand over, {waiters} waiting"), |b| {
            b.iter(|| {
                let mut last = waiting(gate.enter(now, None));
                assert!(last.poll(now, &mut cx).is_pending());
                line.push_back(last);
                inside.take();
                let mut head = line.pop_front().expect("one has just joined");
                match head.poll(now, &mut cx) {
                    Poll::Ready(Ok(permit)) => inside = Some(permit),
                    other => panic!("the head has no slot: {other:?}"),
                }
            });
        });
    }

    // Joining and leaving at the end of a long queue.
    let gate = Gate::new(&settings(Mode::Enforce, 1, 20_000));
    let inside = admitted(gate.enter(now, None));
    let line: Vec<_> = (0..10_000).map(|_| waiting(gate.enter(now, None))).collect();
    group.bench_function("give up, 10000 waiting", |b| {
        b.iter(|| drop(waiting(gate.enter(now, None))));
    });
    drop((line, inside));
    group.finish();
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// One slot between two threads that each want it all the time; the other is parked while it waits.
fn between_threads(c: &mut Criterion) {
    fn pass(gate: &Gate, now: Instant, waker: &Waker) -> Permit {
        let mut ticket = match gate.enter(now, None) {
            Entry::Wait(ticket) => ticket,
            entry => return admitted(entry),
        };
        loop {
            match ticket.poll(now, &mut Context::from_waker(waker)) {
                Poll::Ready(answer) => return answer.expect("nobody is late"),
                Poll::Pending => thread::park(),
            }
        }
    }
    let now = Instant::now();
    let gate = Gate::new(&settings(Mode::Enforce, 1, 1));
    let done = AtomicBool::new(false);
    let waker = || Waker::from(Arc::new(Unpark(thread::current())));
    thread::scope(|scope| {
        scope.spawn(|| {
            let waker = waker();
            while !done.load(Ordering::Relaxed) {
                drop(pass(&gate, now, &waker));
            }
        });
        let waker = waker();
        c.bench_function("contended/one slot, two threads", |b| {
            b.iter(|| drop(pass(&gate, now, &waker)));
        });
        done.store(true, Ordering::Relaxed);
    });
}

criterion_group!(benches, uncontended, contended, between_threads);
criterion_main!(benches);
