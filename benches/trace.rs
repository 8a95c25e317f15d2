//! What a request costs that is not recorded. The bar is 100 ns, whatever its head says. And what it costs
//! to ask whether it is logged, with the layer of the control plane's spans in place: the bar is 1 ns.
//!
//! `cargo bench --bench trace`

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};
use tidegate::conn::trace::{Sampling, Tracer};
use tidegate::telemetry::{self, export::Queue};

/// A head as browsers and meshes send it.
fn head(traceparent: Option<&'static str>) -> HeaderMap {
    let mut head: HeaderMap = [
        ("host", "shop.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br"),
        ("x-request-id", "9f1c2b3a4d5e6f70"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
    .collect();
    if let Some(value) = traceparent {
        head.insert("traceparent", HeaderValue::from_static(value));
    }
    head
}

fn tracer(ratio: f64, most: u32) -> Tracer {
    let sampling = Sampling { share: Sampling::share(ratio), parent_based: true, most };
    Tracer::new(sampling, Queue::idle())
}

fn not_recorded(c: &mut Criterion) {
    let now = Instant::now();
    let mut group = c.benchmark_group("not recorded");
    let mut case = |name: &str, tracer: Tracer, head: HeaderMap| {
        group.bench_function(name, |b| b.iter(|| tracer.choose(black_box(&head), 2, now)));
    };
    case("begins a trace, by the ratio", tracer(0.0, 1000), head(None));
    let caller = |flags| match flags {
        0 => "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        _ => "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    };
    case("continues one that is not", tracer(0.01, 1000), head(Some(caller(0))));
    case("insists, and is too many", tracer(0.01, 0), head(Some(caller(1))));
    case("says nonsense", tracer(0.0, 1000), head(Some("00-no")));
    group.finish();
}

fn not_logged(c: &mut Criterion) {
    let log = telemetry::Config { json: false, level: "info".into() };
    let _telemetry = telemetry::start(&log, true).expect("the only one of this process");
    c.bench_function("not logged", |b| {
        b.iter(|| black_box(tracing::enabled!(tracing::Level::DEBUG)));
    });
}

criterion_group!(benches, not_recorded, not_logged);
criterion_main!(benches);
