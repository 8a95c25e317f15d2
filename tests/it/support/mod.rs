//! The rig: what every scenario needs and none should have to explain.
//!
//! A scenario is a plain function of an [`Engine`]; [`engines!`] turns it into one test per engine. It
//! starts an [`oracle`](oracle::Oracle) (the application, which counts exactly), a
//! [`gateway`](gateway::Gateway) (the real binary, as a child), and clients that keep a
//! [`ledger`](ledger::Ledger). Nothing sleeps to synchronise: [`until`] polls a condition with a bound.

pub(crate) mod apiserver;
pub(crate) mod app_process;
pub(crate) mod apps;
pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod collector;
pub(crate) mod control;
pub(crate) mod edits;
pub(crate) mod gateway;
pub(crate) mod kubelet;
pub(crate) mod ledger;
pub(crate) mod namespace;
pub(crate) mod oracle;
pub(crate) mod pattern;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod seccomp;
pub(crate) mod secured;
pub(crate) mod server;
pub(crate) mod sockets;

use std::path::Path;
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// The two ways to move bytes; every promise holds on both (P7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Epoll,
    Uring,
}

impl Engine {
    /// The word of `--engine` and of the status.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}

/// Makes each named scenario a test on epoll and a test on io_uring. `beside:` for those that [`run_beside`]
/// others.
macro_rules! engines {
    (beside: $($scenario:ident),+ $(,)?) => {
        $crate::support::engines!(@ run_beside, $($scenario),+);
    };
    ($($scenario:ident),+ $(,)?) => {
        $crate::support::engines!(@ run, $($scenario),+);
    };
    (@ $run:ident, $($scenario:ident),+) => {
        mod epoll {
            $(#[test] fn $scenario() {
                $crate::support::$run($crate::support::Engine::Epoll, super::$scenario);
            })+
        }
        mod uring {
            $(#[test] fn $scenario() {
                $crate::support::$run($crate::support::Engine::Uring, super::$scenario);
            })+
        }
    };
}
pub(crate) use engines;

static TURN: RwLock<()> = RwLock::new(());

/// Alone: what it asserts depends on how quick the machine is, and that has few cores.
pub(crate) fn run(engine: Engine, scenario: fn(Engine)) {
    let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
    play(engine, scenario);
}

/// Beside others like it: it asserts what comes, not how soon, and waits for much of its time.
pub(crate) fn run_beside(engine: Engine, scenario: fn(Engine)) {
    let _turn = turn_beside();
    play(engine, scenario);
}

/// While it lives nobody is alone.
pub(crate) fn turn_beside() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

fn play(engine: Engine, scenario: fn(Engine)) {
    if engine == Engine::Uring && !uring_allowed() {
        return skip("io_uring is disabled on this machine");
    }
    keep_files_in_memory();
    scenario(engine);
}

/// A disk that is busy with what was built a moment ago would hold scenarios up for seconds.
fn keep_files_in_memory() {
    /// Of the largest of them.
    const ROOM: u64 = 1 << 30;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let memory = Path::new("/dev/shm");
        if rustix::fs::statvfs(memory).is_ok_and(|room| room.f_bavail * room.f_frsize > ROOM) {
            let _ = tempfile::env::override_temp_dir(memory); // somebody has chosen another
        }
    });
}

fn uring_allowed() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .is_ok_and(|text| text.trim() == "0")
}

pub(crate) use crate::skip::skip;
pub(crate) use crate::stopwatch::Stopwatch;

/// The size of a scenario: small by default, as the promise says it with `SOAK=1`.
pub(crate) fn scale(short: usize, as_written: usize) -> usize {
    match std::env::var("SOAK") {
        Ok(soak) if soak == "1" => as_written,
        _ => short,
    }
}

/// Every timing is asserted with this much slack: the machine is shared. In the soak, which has a machine to
/// itself, there is none. What is withheld altogether is not in it: see [`Stopwatch`].
pub(crate) fn slack(promised: Duration) -> Duration {
    promised.saturating_mul(scale(3, 1) as u32)
}

/// The quantile a promise about "p99" is judged by. Of few samples the p99 is one of the two worst, and
/// a machine that is shared makes two bad ones by itself: there it is the p90.
pub(crate) const fn tail(samples: usize) -> f64 {
    if samples < 1_000 { 0.90 } else { 0.99 }
}

/// Waits until `condition` holds; fails the test, naming `what`, when it does not within `bound` of own time.
/// Answers how much of that it took: to be held against bounds from above. "Not before" is about the clock.
#[track_caller]
pub(crate) fn until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Stopwatch::start();
    while !condition() {
        assert!(!start.is_past(bound), "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(1)); // between two looks, not to synchronise
    }
    start.own()
}

/// Sets a flag when dropped, so that a helper thread ends also when the test fails.
pub(crate) struct Over<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The bound for things that have no promised time.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A small seeded generator (splitmix64), so that a storm can be repeated: `TIDEGATE_SEED=n`.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `TIDEGATE_SEED` or the clock; printed, so that a failure can be repeated.
    pub(crate) fn announced() -> u64 {
        let seed = std::env::var("TIDEGATE_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.expect("the clock is after 1970").as_nanos() as u64
            });
        eprintln!("seed: TIDEGATE_SEED={seed}");
        seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}
