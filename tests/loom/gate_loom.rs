//! The gate under loom, which runs every interleaving of a few threads (up to a number of preemptions):
//!
//! `RUSTFLAGS="--cfg tidegate_loom" cargo test --release --manifest-path tests/loom/Cargo.toml`
//!
//! The first eight scenarios are those of tokio's semaphore (tokio/src/sync/tests/loom_semaphore_batch.rs,
//! "batch" becoming a limit above one, since a permit here is always one slot). Each asserts that the
//! holders never outnumber the limit, that whoever waits is woken (loom reports a thread that is parked
//! for ever), and that nothing is left at the end.

use loom::future::block_on;
use loom::thread;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tidegate::limit::{Client, Entry, Gate, Mode, Permit, Settings, Ticket};
use tidegate::outcome::Reason;

/// The queue timeout in all scenarios; the clock only moves where one says so.
const TIMEOUT: Duration = Duration::from_secs(1);

fn settings(limit: u32) -> Settings {
    Settings {
        mode: Mode::Enforce,
        limit: NonZeroU32::new(limit),
        queue_length: 8,
        queue_timeout: TIMEOUT,
        per_client_limit: None,
        shadow_limits: Vec::new(),
    }
}

/// Runs a scenario in every interleaving with at most `preemptions` forced switches.
fn model(preemptions: usize, scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(scenario);
}

/// A gate, one frozen moment, and who is inside. The count is a plain atomic: loom runs one thread at a
/// time, so it sees them in the order they really ran, and does not multiply the interleavings.
#[derive(Clone)]
struct Scene {
    gate: Gate,
    now: Instant,
    inside: Arc<AtomicU32>,
}

/// A permit, counted.
struct Inside {
    permit: Option<Permit>,
    inside: Arc<AtomicU32>,
}

impl Scene {
    fn new(limit: u32) -> Self {
        Self { gate: Gate::new(&settings(limit)), now: Instant::now(), inside: Arc::default() }
    }

    fn enter(&self) -> Entry {
        self.gate.enter(self.now, None)
    }

    /// Enters, waiting if need be; never more than `limit` are then inside.
    fn pass(&self, limit: u32) -> Result<Inside, Reason> {
        let permit = match self.enter() {
            Entry::Admit(permit) => permit,
            Entry::Wait(ticket) => self.wait(ticket)?,
            Entry::Refuse(reason) => return Err(reason),
        };
        Ok(self.count(permit, limit))
    }

    fn wait(&self, mut ticket: Ticket) -> Result<Permit, Reason> {
        block_on(poll_fn(|cx| ticket.poll(self.now, cx)))
    }

    fn count(&self, permit: Permit, limit: u32) -> Inside {
        let others = self.inside.fetch_add(1, Ordering::SeqCst);
        assert!(others < limit, "{others} others inside, the limit is {limit}");
        Inside { permit: Some(permit), inside: self.inside.clone() }
    }

    fn spawn(&self, act: impl FnOnce(Self) + 'static) -> thread::JoinHandle<()> {
        let scene = self.clone();
        thread::spawn(move || act(scene))
    }

    /// Nothing is left: no permit, no ticket, and the next can come in.
    fn assert_empty(&self) {
        let seen = self.gate.snapshot();
        assert_eq!((seen.active, seen.queued), (0, 0));
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
        drop(self.permit.take());
    }
}

fn poll_once(ticket: &mut Ticket, now: Instant) -> Poll<Result<Permit, Reason>> {
    ticket.poll(now, &mut Context::from_waker(Waker::noop()))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn basic_usage() {
    model(2, || {
        let scene = Scene::new(1);
        let pass = |scene: Scene| drop(scene.pass(1).unwrap());
        let threads = [scene.spawn(pass), scene.spawn(pass)];
        pass(scene.clone());
        join(threads);
        scene.assert_empty();
    });
}

#[test]
fn release() {
    model(3, || {
        let scene = Scene::new(1);
        let held = scene.pass(1).unwrap();
        let waiter = scene.spawn(|scene| drop(scene.pass(1).unwrap()));
        drop(held);
        join([waiter]);
        drop(scene.pass(1).unwrap());
        scene.assert_empty();
    });
}

#[test]
fn basic_closing() {
    model(2, || {
        let scene = Scene::new(1);
        let twice = |scene: Scene| {
            for _ in 0..2 {
                match scene.pass(1) {
                    Ok(inside) => drop(inside),
                    Err(reason) => return assert_eq!(reason, Reason::Draining),
                }
            }
        };
        let threads = [scene.spawn(twice), scene.spawn(twice)];
        scene.gate.close();
        join(threads);
        assert!(matches!(scene.enter(), Entry::Refuse(Reason::Draining)));
        scene.assert_empty();
    });
}

#[test]
fn concurrent_close() {
    model(2, || {
        let scene = Scene::new(1);
        let close = |scene: Scene| {
            if let Err(reason) = scene.pass(1).map(drop) {
                assert_eq!(reason, Reason::Draining);
            }
            scene.gate.close();
        };
        let threads = [scene.spawn(close), scene.spawn(close)];
        close(scene.clone());
        join(threads);
        scene.assert_empty();
    });
}

#[test]
fn concurrent_cancel() {
    model(2, || {
        let scene = Scene::new(1);
        let held = scene.pass(1).unwrap();
        let give_up = |scene: Scene| {
            if let Entry::Wait(mut ticket) = scene.enter() {
                let _ = poll_once(&mut ticket, scene.now);
                drop(ticket);
            }
        };
        let Entry::Wait(earlier) = scene.enter() else { panic!("there is no slot") };
        let threads = [scene.spawn(give_up), scene.spawn(move |_| drop(earlier))];
        drop(held);
        drop(scene.pass(1).unwrap());
        join(threads);
        scene.assert_empty();
    });
}

#[test]
fn batch() {
    model(2, || {
        let scene = Scene::new(2);
        let twice = |scene: Scene| {
            drop(scene.pass(2).unwrap());
            drop(scene.pass(2).unwrap());
        };
        let once = |scene: Scene| drop(scene.pass(2).unwrap());
        let threads = [scene.spawn(twice), scene.spawn(once)];
        once(scene.clone());
        join(threads);
        scene.assert_empty();
    });
}

#[test]
fn release_during_acquire() {
    model(3, || {
        let scene = Scene::new(2);
        let [one, two] = [(); 2].map(|()| scene.pass(2).unwrap());
        let waiter = scene.spawn(|scene| {
            let mut ticket = match scene.enter() {
                Entry::Wait(ticket) => pin!(ticket),
                _ => return,
            };
            drop(block_on(poll_fn(|cx| ticket.poll(scene.now, cx))).unwrap());
        });
        drop(one);
        drop(two);
        join([waiter]);
        scene.assert_empty();
    });
}

#[test]
fn concurrent_permit_updates() {
    model(3, || {
        let scene = Scene::new(1);
        let pass = |scene: Scene| drop(scene.pass(2).unwrap());
        let threads = [scene.spawn(pass), scene.spawn(pass)];
        scene.gate.apply(&settings(2));
        scene.gate.apply(&settings(1));
        join(threads);
        scene.assert_empty();
    });
}

#[test]
fn grant_versus_timeout() {
    model(3, || {
        let scene = Scene::new(1);
        let held = scene.pass(1).unwrap();
        let hurried = scene.spawn(|scene| {
            if let Entry::Wait(mut ticket) = scene.enter() {
                let late = scene.now + TIMEOUT * 2;
                match poll_once(&mut ticket, late) {
                    Poll::Ready(Err(reason)) => assert_eq!(reason, Reason::QueueTimeout),
                    other => panic!("too late, and yet {other:?}"),
                }
            }
        });
        // Behind the hurried one or not: whatever slot that one was called to must come on to this one.
        let patient = scene.spawn(|scene| drop(scene.pass(1).unwrap()));
        drop(held);
        join([hurried, patient]);
        scene.assert_empty();
    });
}

#[test]
fn cancel_after_grant() {
    model(2, || {
        let scene = Scene::new(1);
        let held = scene.pass(1).unwrap();
        let Entry::Wait(called) = scene.enter() else { panic!("there is no slot") };
        drop(held);
        let patient = scene.spawn(|scene| drop(scene.pass(1).unwrap()));
        let passing = scene.spawn(|scene| drop(scene.pass(1).unwrap()));
        drop(called);
        join([patient, passing]);
        scene.assert_empty();
    });
}

#[test]
fn drain_versus_enqueue() {
    model(3, || {
        let scene = Scene::new(1);
        let held = scene.pass(1).unwrap();
        let arrive = |scene: Scene| match scene.pass(1) {
            Ok(_) => panic!("the slot is held until the end"),
            Err(reason) => assert_eq!(reason, Reason::Draining),
        };
        let threads = [scene.spawn(arrive), scene.spawn(arrive)];
        scene.gate.close();
        join(threads);
        drop(held);
        scene.assert_empty();
    });
}

#[test]
fn limit_lowered_versus_release() {
    model(2, || {
        let scene = Scene::new(2);
        let [one, two] = [(); 2].map(|()| scene.pass(2).unwrap());
        let waiter = scene.spawn(|scene| drop(scene.pass(2).unwrap()));
        let lower = scene.spawn(|scene| {
            scene.gate.apply(&settings(1));
            // Who was in stays; from here on nobody comes in beside another.
            drop(scene.pass(1).unwrap());
        });
        drop(one);
        drop(two);
        join([waiter, lower]);
        drop(scene.pass(1).unwrap());
        scene.assert_empty();
    });
}

#[test]
fn room_versus_release() {
    model(2, || {
        let scene = Scene::new(1);
        scene.gate.apply(&Settings { queue_length: 0, ..settings(1) });
        let held = scene.pass(1).unwrap();
        // An accept loop that holds back connections, and somebody who takes the room it was told of.
        let accept_loop = scene.spawn(|scene| {
            loop {
                block_on(poll_fn(|cx| scene.gate.poll_room(cx)));
                match scene.pass(1) {
                    Ok(inside) => return drop(inside),
                    Err(reason) => assert_eq!(reason, Reason::LimitReached),
                }
            }
        });
        let other = scene.spawn(|scene| drop(scene.pass(1)));
        drop(held);
        join([accept_loop, other]);
        scene.assert_empty();
    });
}

#[test]
fn a_clients_last_place_is_given_once() {
    model(3, || {
        let scene = Scene::new(2);
        scene.gate.apply(&Settings { per_client_limit: NonZeroU32::new(1), ..settings(2) });
        let arrive = |scene: Scene| {
            let client = Client::named(b"one");
            match scene.gate.enter(scene.now, Some(client)) {
                Entry::Admit(permit) => drop(scene.count(permit, 1)),
                Entry::Wait(_) => panic!("there are two slots"),
                Entry::Refuse(reason) => assert_eq!(reason, Reason::PerClientLimit),
            }
        };
        let threads = [scene.spawn(arrive), scene.spawn(arrive)];
        join(threads);
        scene.assert_empty();
    });
}
