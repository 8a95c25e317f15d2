//! P7: where io_uring is forbidden or cannot work, epoll takes over at the start and says why.

use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{self, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, run, until};

/// T20: seccomp answers EPERM, as container runtimes' profiles do.
#[test]
fn denied_with_eperm() {
    run(Engine::Epoll, |_| serves_on_epoll(|setup| setup.without_io_uring(libc::EPERM)));
}

/// T20: seccomp answers ENOSYS, as an old kernel does.
#[test]
fn denied_with_enosys() {
    run(Engine::Epoll, |_| serves_on_epoll(|setup| setup.without_io_uring(libc::ENOSYS)));
}

/// Hazards 3.1: whatever the kernel answers instead of a ring.
#[test]
fn denied_with_any_errno() {
    run(Engine::Epoll, |_| {
        let errnos = [libc::EACCES, libc::EINVAL, libc::ENOMEM, libc::EMFILE, libc::ENFILE];
        for errno in errnos {
            serves_on_epoll(|setup| setup.without_io_uring(errno));
        }
    });
}

/// T20: a profile that forgets one of the three system calls of io_uring must not be half a denial.
#[test]
fn denied_in_part() {
    run(Engine::Epoll, |_| {
        for call in [libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
            serves_on_epoll(|setup| setup.denying(call, libc::EPERM));
        }
    });
}

/// T21: no descriptor is left for the ring; whatever it chooses, it serves.
#[test]
fn hardly_any_descriptors() {
    run(Engine::Epoll, |_| {
        let oracle = Oracle::start(Script::Work);
        let setup = Setup::new(Engine::Epoll, oracle.address).choosing();
        let gateway = setup.through(&["prlimit", "--nofile=80:80"]).start();
        assert_serves(&gateway, &oracle);
    });
}

/// T21: no memory may be locked; whatever it chooses, it serves.
#[test]
fn no_locked_memory() {
    run(Engine::Epoll, |_| {
        let oracle = Oracle::start(Script::Work);
        let setup = Setup::new(Engine::Epoll, oracle.address).choosing();
        let gateway = setup.through(&["prlimit", "--memlock=0:0"]).start();
        assert_serves(&gateway, &oracle);
    });
}

/// P7: where nothing forbids it, `auto` takes io_uring.
#[test]
fn allowed() {
    run(Engine::Uring, |engine| {
        let oracle = Oracle::start(Script::Work);
        let gateway = Setup::new(engine, oracle.address).choosing().start();
        assert_eq!(gateway.status().engine.name, "uring");
        assert_serves(&gateway, &oracle);
    });
}

/// The engine that was asked for by name is refused with a reason when it cannot run, or replaced with one.
#[test]
fn asked_for_by_name_and_denied() {
    run(Engine::Epoll, |_| {
        let oracle = Oracle::start(Script::Work);
        let setup = Setup::new(Engine::Uring, oracle.address).without_io_uring(libc::EPERM);
        let (status, log) = setup.start_in_vain();
        assert_ne!(status.code(), Some(0));
        assert!(log.contains("EPERM") || log.contains("not permitted"), "it says why: {log}");
    });
}

fn serves_on_epoll(deny: impl FnOnce(Setup) -> Setup) {
    let oracle = Oracle::start(Script::Work);
    let gateway =
        deny(Setup::new(Engine::Epoll, oracle.address).choosing().set("limit", 4)).start();
    let engine = gateway.status().engine;
    assert_eq!(engine.name, "epoll");
    assert!(!engine.reason.is_empty());
    assert!(gateway.metric("tidegate_io_engine_info", "epoll") >= 1.0, "and one metric");
    assert_serves(&gateway, &oracle);
    // A thread of its own writes the log.
    let mentions = || gateway.log().lines().filter(|line| line.contains("epoll")).count();
    until("the log says it", SOON, || mentions() > 0);
    assert!(mentions() <= 2, "one line says why:\n{}", gateway.log());
}

fn assert_serves(gateway: &Gateway, oracle: &Oracle) {
    let ledger = ledger::closed_loop(4, 100, |_, _| {
        ledger::exchange(gateway.address, Duration::from_millis(1), SOON)
    });
    assert_eq!(ledger.of(End::Answered), 100, "{ledger:?}");
    assert!(oracle.peak() <= 4);
    gateway.assert_clean();
}
