//! What is recorded of TCP connections and of the gateway's own doings, and that without a collector
//! nothing is.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::collector::{Collector, Sink, Span};
use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::Client;
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, process, skip, until};

engines!(
    a_connection_is_a_span,
    what_the_gateway_does_is_spans_too,
    without_a_collector_nothing_is_started,
);

fn a_connection_is_a_span(engine: Engine) {
    let (sink, app) = (Sink::start(), Oracle::start(Script::Echo));
    let gateway = Setup::new(engine, app.address)
        .set("limit", 1)
        .set("queue-length", 1)
        .set("trace-sampling", 1)
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{}/v1/traces", sink.address))
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_BSP_SCHEDULE_DELAY", 20)
        .start();
    let mut first = Client::connect(gateway.address).expect("it listens").stream;
    first.write_all(b"hello").expect("sent");
    first.read_exact(&mut [0; 5]).expect("echoed");
    let mut second = Client::connect(gateway.address).expect("it listens").stream;
    until("one waits", SOON, || gateway.port().queued == 1);
    let mut third = Client::connect(gateway.address).expect("it listens").stream;
    assert_eq!(third.read(&mut [0]).expect("a FIN"), 0);
    std::thread::sleep(Duration::from_millis(20)); // the length of the wait
    drop(first);
    second.write_all(b"bye").expect("sent");
    second.read_exact(&mut [0; 3]).expect("echoed");
    drop(second);

    let spans = sink.wait_for("three connections", |spans| spans.len() == 4);
    let of = |key: &str, value: &str| -> &Span {
        let found = spans.iter().find(|span| span.get(key) == Some(value));
        found.unwrap_or_else(|| panic!("{key}={value}: {spans:#?}"))
    };
    let (first, second) =
        (of("tidegate.network.io.receive", "5"), of("tidegate.network.io.receive", "3"));
    for span in [first, second] {
        assert_eq!((span.name.as_str(), span.kind, span.failed), ("tidegate.connection", 2, false));
        assert_eq!(span.get("network.transport"), Some("tcp"));
        assert_eq!(span.get("network.peer.address"), Some("127.0.0.1"));
        assert_eq!(span.get("tidegate.outcome"), Some("served"));
    }
    let refused = of("tidegate.reason", "queue_full");
    assert!(refused.failed && refused.get("error.type") == Some("queue_full"), "{refused:#?}");
    let wait = of("tidegate.admission.limit", "1");
    assert_eq!((wait.name.as_str(), &wait.parent), ("admission.wait", &second.id));
    assert!(wait.lasted() >= Duration::from_millis(20) && wait.end <= second.end, "{wait:#?}");
}

/// Whatever is sampled and logged: a start, settings that change and that do not, a drain.
fn what_the_gateway_does_is_spans_too(engine: Engine) {
    let Some(collector) = Collector::start() else {
        return skip("tests/apps/setup has not run");
    };
    let (sink, app) = (&collector.sink, Oracle::start(Script::Echo));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("tidegate.yaml");
    std::fs::write(&file, "queue-length: 5\n").expect("writes");
    let mut gateway = Setup::new(engine, app.address)
        .set("config", file.display())
        .set("limit", 2)
        .set("drain-delay", "50ms")
        .set("trace-sampling", 0)
        .set("trace-max-spans", 1)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.grpc))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_BSP_SCHEDULE_DELAY", 20)
        .env("OTEL_SERVICE_NAME", "shop")
        .env("OTEL_TRACES_SAMPLER", "always_off")
        .start();
    gateway.set("log-level", "off");
    gateway.set("limit", 1);
    let reply = gateway.call("POST", "/set", r#"{"limit": "none of yours"}"#);
    assert!(reply.code >= 400, "{}", reply.body);
    std::fs::write(&file, "queue-length: 6\n").expect("writes");
    gateway.signal(Signal::HUP);
    until("the file is read again", SOON, || gateway.port().queue_length == 6);

    let mut client = Client::connect(gateway.address).expect("it listens").stream;
    client.write_all(b"hello").expect("sent");
    client.read_exact(&mut [0; 5]).expect("echoed");
    gateway.signal(Signal::TERM);
    until("it drains", SOON, || gateway.status().phase == "closing");
    drop(client);
    let drained = Instant::now();
    assert!(gateway.wait_exit(SOON).success());
    if drained.elapsed() >= Duration::from_secs(1) {
        return eprintln!(
            "it was too slow to send the last one: who does not take them is not waited for"
        );
    }

    let mut spans = sink.wait_for_control("all of it", |spans| spans.len() >= 6);
    spans.sort_by_key(|span| span.start);
    let told: Vec<_> = spans
        .iter()
        .map(|span| {
            let about = ["source", "keys", "result"];
            let about = about.map(|key| span.get(&format!("tidegate.settings.{key}")));
            (span.name.as_str(), about.map(Option::unwrap_or_default), span.failed)
        })
        .collect();
    let (set, change) = ("tidegate set", "tidegate.settings.change");
    assert_eq!(
        told,
        [
            ("tidegate.start", ["", "", ""], false),
            (change, [set, "log-level", "applied"], false),
            (change, [set, "limit", "applied"], false),
            (change, [set, "limit", "refused"], true),
            (change, ["SIGHUP", "queue-length", "applied"], false),
            ("tidegate.drain", ["", "", ""], false),
        ]
    );
    let (start, drain) = (&spans[0], &spans[5]);
    assert_eq!(start.get("tidegate.engine.name"), Some(engine.name()));
    assert!(start.get("tidegate.engine.reason").is_some_and(|reason| !reason.is_empty()));
    for (key, value) in
        [("cause", "signal"), ("in_flight_at_start", "1"), ("finished", "1"), ("cut", "0")]
    {
        assert_eq!(drain.get(&format!("tidegate.drain.{key}")), Some(value), "{drain:#?}");
    }
    assert_eq!(drain.events, ["announcing", "closing"]);
    assert!(drain.lasted() >= Duration::from_millis(50), "{drain:#?}");
    assert!(spans.iter().all(|span| (span.kind, &*span.service) == (1, "shop")), "{spans:#?}");
    assert!(sink.spans().is_empty(), "of the connection nothing was to be recorded");
}

fn without_a_collector_nothing_is_started(engine: Engine) {
    let app = Oracle::start(Script::Echo);
    let exports = |gateway: &Gateway| process::thread_names(gateway.pid).contains(&"trace".into());
    let plain = Setup::new(engine, app.address).set("trace-sampling", 1).start();
    assert!(!exports(&plain));
    assert_eq!(plain.metric("tidegate_trace_spans_exported_total", ""), 0.0);
    let disabled = Setup::new(engine, app.address)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
        .env("OTEL_SDK_DISABLED", "true")
        .start();
    assert!(!exports(&disabled));
    // What is not understood is said, and stops nobody.
    let wrong = Setup::new(engine, app.address)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4317")
        .start();
    assert!(!exports(&wrong));
    until("it is said", SOON, || wrong.log().contains("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let mut client = Client::connect(wrong.address).expect("it listens");
    client.stream.write_all(b"hello").expect("sent");
    client.stream.read_exact(&mut [0; 5]).expect("echoed");
}
