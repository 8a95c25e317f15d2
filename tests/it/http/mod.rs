//! The promises per request: on ports that speak HTTP the unit of admission is the request.
//!
//! The application of most scenarios is the [`oracle`](oracle::HttpOracle), which does what a request's
//! path says and counts requests exactly; `servers` and `smuggling` stand in front of servers that people
//! run (`tests/apps/`).

pub(crate) mod client; // HTTP/1, byte by byte
mod exchange; // one request at the application
mod frames; // HTTP/2, what no library would send
pub(crate) mod http2; // HTTP/2, through a library
pub(crate) mod oracle; // the application that counts
mod scripts; // what it does
mod wire1;
mod wire2;

pub(crate) mod outside; // servers and clients that people run

mod rig; // the rig itself

mod attacks; // A1 to A9: what one client can do to the others
mod choices; // settings that choose
mod classify; // ports that are auto
mod curl; // P9: what clients rely on is the same with and without
mod drain; // P6: nothing is lost when it goes
mod leaves; // P1, P5: clients that leave after they were let in
mod limits; // P1: a limit that changes; floods; deadlines at a known pace
mod overload; // A16: far more than fits
mod queue; // P2, P3: in order, bounded, never for those who left
mod refusals; // P4: choices, too many connections, waiters at the end of a drain
mod refuse; // P4: quickly, politely, by reason
mod servers; // nginx, gunicorn, Node, grpcio and their clients
mod slow; // A5: what does not come
mod smuggling; // A7, A8: the application sees the requests we see
mod takers; // P1, P5, P6, P10: streams that are not taken, and those of the application
mod timeouts; // A5: what does not come, and what does not move
mod trace; // what is recorded of requests, and who collects it
mod websockets; // P5, P9: what others' test suites say, with and without

use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::{Engine, SOON, Stopwatch, process, slack, sockets, until};

/// A gateway whose port speaks HTTP.
pub(crate) fn gate(engine: Engine, app: impl ToString) -> Setup {
    Setup::new(engine, app).set("protocol", "http")
}

/// Everything is back where it was within 2 s of the load's end (P11), but for the connections to the
/// application that are kept for the next request; these are not more than the limit.
#[track_caller]
fn assert_settled(gateway: &Gateway, app_port: u16) {
    let start = Stopwatch::start();
    let bound = slack(Duration::from_secs(2));
    loop {
        let status = gateway.status();
        let busy = status.ports.iter().any(|port| port.active > 0 || port.queued > 0);
        let kept = sockets::open_at_either(app_port).len();
        let more = gateway.fds_since_start() - kept as i64;
        if !busy && status.connections == 0 && more <= 0 {
            break;
        }
        let open = process::details(gateway.pid);
        assert!(
            !start.is_past(bound),
            "not settled after {bound:?}: {status:?}, {more} descriptors more, {kept} kept\n{open}"
        );
        std::thread::sleep(Duration::from_millis(20)); // between two looks
    }
    for port in gateway.status().ports {
        let limit = port.limit.unwrap_or(u64::MAX);
        assert!(port.peak_active <= limit, "{port:?}");
    }
}

/// Waits until the gateway has counted so many refusals for a reason.
#[track_caller]
pub(crate) fn refused(gateway: &Gateway, reason: &str, count: u64) {
    let mut seen = 0;
    let start = Stopwatch::start();
    while !start.is_past(SOON) && seen != count {
        seen = gateway.port().refused(reason);
        std::thread::sleep(Duration::from_millis(1)); // between two looks
    }
    assert_eq!(seen, count, "refused for {reason}: {:?}", gateway.port());
}

/// Waits until so many wait in the queue.
#[track_caller]
pub(crate) fn queued(gateway: &Gateway, count: u64) {
    until("so many wait", SOON, || gateway.port().queued == count);
}
