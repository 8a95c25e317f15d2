//! A request that is not recorded for traces costs no allocation: the decision comes before anything is
//! made. Nor does the question whether to log it, with the layer of the control plane's spans in place. A
//! counting allocator around both.

mod counting;

use std::time::Instant;

use http::{HeaderMap, HeaderValue};
use tidegate::conn::trace::{Sampling, Tracer};
use tidegate::telemetry::{self, export::Queue};

use counting::allocated;

#[test]
fn who_is_not_recorded_allocates_nothing() {
    let log = telemetry::Config { json: false, level: "info".into() };
    let _telemetry = telemetry::start(&log, true).expect("the only one of this process");
    let tracer = |ratio, most| {
        let sampling = Sampling { share: Sampling::share(ratio), parent_based: true, most };
        Tracer::new(sampling, Queue::idle())
    };
    let head = |traceparent: &'static str| {
        let mut head = HeaderMap::new();
        head.insert("host", HeaderValue::from_static("shop.example.com"));
        head.insert("traceparent", HeaderValue::from_static(traceparent));
        head
    };
    let begins = (tracer(0.0, 1000), HeaderMap::new());
    let follows =
        (tracer(1.0, 1000), head("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
    let insists = (tracer(1.0, 1), head("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    let nonsense = (tracer(0.0, 1000), head("00-no"));
    let before = allocated();
    for (tracer, head) in [&begins, &follows, &insists, &nonsense] {
        for _ in 0..1000 {
            assert_eq!(tracer.choose(head, 2, Instant::now()), None);
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
        }
    }
    assert_eq!(allocated() - before, 0);
}
