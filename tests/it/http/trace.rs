//! What is recorded of requests, that it arrives at a collector people run, and that a collector's faults
//! touch nobody (A27 to A29, T32).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::{Http1, assert_refusal};
use super::http2::{self, Http2};
use super::oracle::HttpOracle;
use super::outside::{self, NO_VENV, Outside, succeed};
use super::{gate, queued};
use crate::support::collector::{Bad, Collector, Fault, Sink, Span};
use crate::support::gateway::{Gateway, Setup};
use crate::support::server::Server;
use crate::support::{Engine, SOON, Stopwatch, engines, process, skip, slack, until};

engines!(
    a_request_that_waited_is_three_spans,
    a_trace_goes_on_from_client_to_application,
    a_caller_that_insists_is_not_recorded_beyond_the_cap,
    a_refusal_is_recorded_although_nothing_else_is,
    calls_of_grpc_have_their_attributes,
    the_last_spans_leave_with_the_process,
    t32_a_collector_that_misbehaves_touches_nothing,
    t32_the_queue_of_spans_is_bounded,
);

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLERS_SPAN: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{CALLER}-{CALLERS_SPAN}-{flags}")
}

/// A gateway that records everything, for a collector there.
fn traced(engine: Engine, app: impl ToString, collector: SocketAddr, protocol: &str) -> Setup {
    gate(engine, app)
        .set("trace-sampling", "1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        .env("OTEL_BSP_SCHEDULE_DELAY", 20)
}

/// Our spans of one trace, the server span first.
fn of_trace<'a>(spans: &'a [Span], trace: &str) -> Vec<&'a Span> {
    let mut found: Vec<_> = spans
        .iter()
        .filter(|span| span.trace == trace && span.resource.contains_key("telemetry.sdk.language"))
        .filter(|span| span.resource["telemetry.sdk.language"] == "rust")
        .collect();
    found.sort_by_key(|span| span.kind != SERVER);
    found
}

#[track_caller]
fn assert_has(span: &Span, wanted: &[(&str, &str)]) {
    for (key, value) in wanted {
        assert_eq!(span.get(key), Some(*value), "{key} of {span:#?}");
    }
}

fn a_request_that_waited_is_three_spans(engine: Engine) {
    let Some(collector) = Collector::start() else { return skip(NO_VENV) };
    for (protocol, address) in [("grpc", collector.grpc), ("http/protobuf", collector.http)] {
        let app = HttpOracle::start();
        let gateway = traced(engine, app.address, address, protocol)
            .set("limit", 1)
            .env("OTEL_SERVICE_NAME", format!("shop over {protocol}"))
            .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
            .env("POD_NAME", "shop-1")
            .start();
        let mut inside = Http1::asking(gateway.address, "/held");
        until("the first is inside", SOON, || app.in_progress() == 1);
        let mut waiting = Http1::connect(gateway.address);
        let caller =
            format!("Traceparent: {}\r\nTracestate: a=1\r\nUser-Agent: t\r\n", traceparent("01"));
        let asked = Instant::now();
        waiting.ask("/held?token=secret&x", &caller);
        queued(&gateway, 1);
        std::thread::sleep(Duration::from_millis(50)); // the length of the wait
        app.release(2);
        assert_eq!(inside.answer().expect("an answer").status, 200);
        assert_eq!(waiting.answer().expect("an answer").status, 200);
        let asked = asked.elapsed();

        let service = format!("shop over {protocol}");
        let spans = collector.sink.wait_for("both requests", |spans| {
            spans.iter().filter(|span| span.service == service).count() == 5
        });
        let spans: Vec<Span> = spans.into_iter().filter(|s| s.service == service).collect();
        let trace = of_trace(&spans, CALLER);
        let [server, others @ ..] = &trace[..] else { panic!("no spans: {spans:#?}") };
        let wait = others.iter().find(|span| span.name == "admission.wait").expect("it waited");
        let client = others.iter().find(|span| span.kind == CLIENT).expect("it was forwarded");
        assert_eq!((server.kind, wait.kind, trace.len()), (SERVER, 1, 3));
        assert_eq!((server.name.as_str(), client.name.as_str()), ("GET", "GET"));
        assert_eq!(server.parent, CALLERS_SPAN);
        assert_eq!((&wait.parent, &client.parent), (&server.id, &server.id));
        assert_eq!(server.state, "a=1");
        assert!(trace.iter().all(|span| !span.failed), "{trace:#?}");

        // One after the other, together as long as the whole, and not longer than the client saw.
        assert!(server.start == wait.start && wait.end <= client.start, "{trace:#?}");
        assert!(client.end == server.end && server.lasted() <= asked, "{trace:#?}");
        assert!(wait.lasted() >= Duration::from_millis(50), "{wait:#?}");
        let said: f64 =
            wait.get("tidegate.admission.wait.duration").expect("said").parse().expect("seconds");
        let off = (said - wait.lasted().as_secs_f64()).abs();
        assert!(off < 0.001, "{wait:#?}");

        let port = gateway.address.port().to_string();
        assert_has(
            server,
            &[
                ("http.request.method", "GET"),
                ("url.path", "/held"),
                ("url.query", "token=REDACTED&REDACTED"),
                ("url.scheme", "http"),
                ("http.response.status_code", "200"),
                ("server.address", "app"),
                ("client.address", "127.0.0.1"),
                ("network.peer.address", "127.0.0.1"),
                ("network.protocol.version", "1.1"),
                ("network.local.port", &port),
                ("user_agent.original", "t"),
                ("tidegate.outcome", "served"),
            ],
        );
        assert_eq!(server.get("error.type"), None);
        assert_has(
            wait,
            &[
                ("tidegate.admission.limit", "1"),
                ("tidegate.admission.active", "1"),
                ("tidegate.admission.queue.position", "1"),
            ],
        );
        let at = app.address;
        assert_has(
            client,
            &[
                ("http.request.method", "GET"),
                ("server.address", "127.0.0.1"),
                ("server.port", &at.port().to_string()),
                ("url.full", &format!("http://{at}/held?token=REDACTED&REDACTED")),
                ("network.peer.port", &at.port().to_string()),
                ("http.response.status_code", "200"),
            ],
        );
        assert_eq!(server.resource["k8s.pod.name"], "shop-1");
        assert_eq!(server.resource["deployment.environment.name"], "test");

        // The application is told that our client span calls it; the other began a trace of its own.
        let seen = app.seen();
        let told = format!("00-{CALLER}-{}-01", client.id);
        assert_eq!(seen[1].header("traceparent"), Some(told.as_str()));
        assert_eq!(seen[1].header("tracestate"), Some("a=1"));
        let own = seen[0].header("traceparent").expect("it is recorded too");
        let other = spans.iter().find(|span| span.trace != CALLER && span.kind == CLIENT);
        let other = other.expect("the one that did not wait");
        assert_eq!(own, format!("00-{}-{}-01", other.trace, other.id));
        assert_eq!(of_trace(&spans, &other.trace).len(), 2, "it did not wait: {spans:#?}");
    }
}

fn a_trace_goes_on_from_client_to_application(engine: Engine) {
    let (Some(collector), Some(mut client), Some(mut server)) =
        (Collector::start(), outside::client("client_traced.py"), outside::client("traced_app.py"))
    else {
        return skip(NO_VENV);
    };
    let endpoint = format!("http://{}", collector.http);
    let app = Server::start(|_, port| {
        server.arg(port.to_string()).env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
        server.env("OTEL_SERVICE_NAME", "the application");
        server
    });
    // The client decides: our own ratio is 0.
    let gateway =
        traced(engine, app.address(), collector.grpc, "grpc").set("trace-sampling", 0).start();
    client.arg(format!("http://{}/", gateway.address)).env("OTEL_SERVICE_NAME", "the client");
    let said = succeed(client.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint));
    let words: Vec<&str> = said.split_whitespace().collect();
    let [trace, span, told] = words[..] else { panic!("the client said {said}") };

    let whole = |spans: &[Span]| spans.iter().filter(|span| span.trace == trace).count() == 4;
    let spans = collector.sink.wait_for("four spans of one trace", whole);
    let ours = of_trace(&spans, trace);
    let [server, client] = ours[..] else { panic!("two are ours: {spans:#?}") };
    assert_eq!(server.parent, span, "our server span continues the client's");
    assert_eq!(client.parent, server.id);
    let app = spans.iter().find(|span| span.service == "the application").expect("it records");
    assert_eq!(app.parent, client.id, "the application continues our client span");
    assert_eq!(told.split('-').nth(2), Some(client.id.as_str()));
    assert!(spans.iter().any(|span| span.service == "the client" && span.id == server.parent));
}

/// A28: forced sampling.
fn a_caller_that_insists_is_not_recorded_beyond_the_cap(engine: Engine) {
    const MOST: usize = 20;
    let (sink, app) = (Sink::start(), HttpOracle::start());
    let gateway = traced(engine, app.address, sink.address, "http/protobuf")
        .set("trace-max-spans", MOST)
        .set("trace-sampling", 0)
        .start();
    let insists = format!("traceparent: {}\r\n", traceparent("01"));
    let mut client = Http1::connect(gateway.address);
    let start = Instant::now();
    let mut sent = 0;
    while sent < 500 || start.elapsed() < Duration::from_millis(1200) {
        client.ask("/", &insists);
        assert_eq!(client.answer().expect("an answer").status, 200);
        sent += 1;
    }
    let seconds = start.elapsed().as_secs() as usize + 2; // begun ones, at either end
    let told = app.seen();
    let recorded =
        told.iter().filter(|s| s.header("traceparent") != Some(&traceparent("01"))).count();
    assert!(recorded >= MOST / 2, "{recorded} of {sent}");
    let spans = sink.wait_for("what was recorded", |spans| spans.len() == 2 * recorded);
    assert!(spans.len() <= MOST * seconds, "{} spans in {seconds} s", spans.len());
    let capped = gateway.metric("tidegate_trace_requests_capped_total", "");
    assert_eq!(capped as usize, sent - recorded);

    // Who is not recorded is passed on as it came, right or wrong; who asks not to be is not.
    let before = app.count();
    for header in [traceparent("00"), "nonsense".to_owned()] {
        client.ask("/", &format!("Traceparent: {header}\r\nTracestate: a=1\r\nBaggage: b=2\r\n"));
        assert_eq!(client.answer().expect("an answer").status, 200);
        let seen = app.seen().pop().expect("it came");
        assert_eq!(seen.header("traceparent"), Some(header.as_str()));
        assert_eq!((seen.header("tracestate"), seen.header("baggage")), (Some("a=1"), Some("b=2")));
    }
    assert_eq!(app.count(), before + 2);
    // With all recorded, nonsense is no trace: a new one begins, without what was said of the other.
    gateway.set("trace-max-spans", 1000);
    gateway.set("trace-sampling", 1);
    client.ask("/", "Traceparent: nonsense\r\nTracestate: a=1\r\n");
    assert_eq!(client.answer().expect("an answer").status, 200);
    let seen = app.seen().pop().expect("it came");
    assert_eq!(seen.header("tracestate"), None);
    let told = seen.header("traceparent").expect("a new one").to_owned();
    let trace = told.split('-').nth(1).expect("an id").to_owned();
    let spans = sink.wait_for("the new trace", |spans| of_trace(spans, &trace).len() == 2);
    assert_eq!(of_trace(&spans, &trace)[0].parent, "");
}

fn a_refusal_is_recorded_although_nothing_else_is(engine: Engine) {
    let (sink, app) = (Sink::start(), HttpOracle::start());
    let gateway = traced(engine, app.address, sink.address, "http/protobuf")
        .set("trace-sampling", 0)
        .set("limit", 1)
        .set("queue-length", 1)
        .start();
    let start = Instant::now();
    let _inside = Http1::asking(gateway.address, "/held");
    until("the first is inside", SOON, || app.in_progress() == 1);
    let waits = Http1::asking(gateway.address, "/leaves");
    queued(&gateway, 1);
    let mut client = Http1::connect(gateway.address);
    for _ in 0..50 {
        assert_refusal(&client.get("/"), 503, "connection_limit_reached", "queue_full");
    }
    drop(waits);
    queued(&gateway, 0);
    gateway.set("queue-timeout", "300ms");
    let mut waits = Http1::connect(gateway.address);
    waits.ask("/late", &format!("traceparent: {}\r\n", traceparent("00")));
    assert_eq!(waits.answer().expect("an answer").status, 503);
    let seconds = start.elapsed().as_secs() as usize + 2;

    let of = |spans: &[Span], reason: &str| -> Vec<Span> {
        let of =
            spans.iter().filter(|s| s.kind == SERVER && s.get("tidegate.reason") == Some(reason));
        of.cloned().collect()
    };
    let spans = sink.wait_for("a refusal of each kind", |spans| {
        !of(spans, "queue_full").is_empty() && !of(spans, "queue_timeout").is_empty()
    });
    let (full, late) = (of(&spans, "queue_full"), of(&spans, "queue_timeout"));
    assert!(full.len() <= seconds, "one a second and reason: {full:#?}");
    let refused = [
        ("http.response.status_code", "503"),
        ("tidegate.outcome", "refused"),
        ("http.request.method", "GET"),
    ];
    for span in full.iter().chain(&late) {
        assert!(span.failed, "{span:#?}");
        assert_has(span, &refused);
        assert_eq!(span.get("error.type"), span.get("tidegate.reason"));
    }
    // It has the times it had, and belongs to its caller's trace.
    let [late] = &late[..] else { panic!("one: {late:#?}") };
    assert_eq!((late.trace.as_str(), late.parent.as_str()), (CALLER, CALLERS_SPAN));
    assert!(late.lasted() >= Duration::from_millis(300), "{late:#?}");
    let wait = spans.iter().find(|span| span.parent == late.id).expect("it waited");
    assert_eq!((wait.name.as_str(), wait.start), ("admission.wait", late.start));
    assert!(spans.iter().all(|span| span.kind != CLIENT), "nobody was forwarded: {spans:#?}");

    // What a client is to change is no error of ours.
    gateway.set("refuse-status", 429);
    let mut client = Http1::connect(gateway.address);
    gateway.set("queue-length", 0);
    gateway.set("access-log", "on");
    assert_eq!(client.get("/").status, 429);
    let spans = sink.wait_for("a 429", |spans| !of(spans, "limit_reached").is_empty());
    let polite = &of(&spans, "limit_reached")[0];
    assert!(!polite.failed && polite.get("error.type").is_none(), "{polite:#?}");
    // Whoever reads of it in the access log finds it among the traces.
    until("its line names its trace", SOON, || gateway.log().contains(&polite.trace));

    // An application that is not there, however it would be spoken to.
    for how in ["never", "always"] {
        let gone = traced(engine, "127.0.0.1:1", sink.address, "http/protobuf")
            .set("trace-sampling", 0)
            .set("app-http2", how)
            .set("access-log", "on")
            .start();
        let path = format!("/{how}");
        assert_eq!(Http1::connect(gone.address).get(&path).status, 502);
        let wanted = |span: &&Span| span.get("url.path") == Some(&path);
        let spans = sink.wait_for("a 502", |spans| spans.iter().any(|span| wanted(&span)));
        let server = spans.iter().find(wanted).expect("just seen");
        let refused = [("http.response.status_code", "502"), ("error.type", "upstream_refused")];
        assert_has(server, &refused);
        until("its line names its trace", SOON, || gone.log().contains(&server.trace));
        let client = spans.iter().find(|span| span.parent == server.id).expect("it was tried");
        assert!(client.failed && client.get("http.response.status_code").is_none(), "{client:#?}");
        assert_has(
            client,
            &[
                ("error.type", "upstream_refused"),
                ("url.full", &format!("http://127.0.0.1:1{path}")),
            ],
        );
    }
}

fn calls_of_grpc_have_their_attributes(engine: Engine) {
    let Some(app) = Outside::grpcio() else { return skip(NO_VENV) };
    let sink = Sink::start();
    let gateway = traced(engine, app.address(), sink.address, "http/protobuf")
        .set("limit", 1)
        .set("queue-length", 0)
        .start();
    http2::block_on(async {
        let mut client = Http2::connect(gateway.address).await;
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        for path in ["/test.Calls/Unary", "/test.Calls/Nothing"] {
            let (answer, mut body) =
                client.open("POST", path, &grpc, false).await.expect("a stream");
            // One message: no compression, no bytes.
            body.send_data(vec![0; 5].into(), true).expect("there is room");
            assert_eq!(http2::answer(answer).await.expect("an answer").status, 200);
        }
        // One that lasts holds the slot; another is refused in gRPC's own words.
        let (_held, _body) =
            client.open("POST", "/test.Calls/Bidi", &grpc, false).await.expect("a stream");
        http2::until("it is inside", SOON, || gateway.port().active == 1).await;
        let (answer, _) =
            client.open("POST", "/test.Calls/Unary", &grpc, true).await.expect("a stream");
        assert_eq!(http2::answer(answer).await.expect("an answer").status, 200);
    });
    let servers = |spans: &[Span]| -> Vec<Span> {
        spans.iter().filter(|span| span.kind == SERVER).cloned().collect()
    };
    let spans = sink.wait_for("all calls", |spans| servers(spans).len() >= 4);
    let find = |status: &str| {
        let found =
            servers(&spans).into_iter().find(|s| s.get("rpc.response.status_code") == Some(status));
        found.unwrap_or_else(|| panic!("{status}: {spans:#?}"))
    };
    let ok = find("OK");
    assert_has(
        &ok,
        &[
            ("rpc.system.name", "grpc"),
            ("rpc.method", "test.Calls/Unary"),
            ("http.request.method", "POST"),
            ("network.protocol.version", "2"),
        ],
    );
    assert_eq!((ok.name.as_str(), ok.failed), ("test.Calls/Unary", false));
    // Nobody knows that method: its name is a client's.
    let unknown = find("UNIMPLEMENTED");
    assert_has(
        &unknown,
        &[("rpc.method", "_OTHER"), ("rpc.method_original", "test.Calls/Nothing")],
    );
    assert_eq!((unknown.name.as_str(), unknown.failed), ("POST", true));
    let refused = find("UNAVAILABLE");
    assert_has(&refused, &[("error.type", "limit_reached"), ("http.response.status_code", "200")]);
    assert!(refused.failed);
}

/// What was recorded last waits for nothing; and if the collector is gone by then, nothing waits for it.
fn the_last_spans_leave_with_the_process(engine: Engine) {
    let Some(collector) = Collector::start() else { return skip(NO_VENV) };
    let app = HttpOracle::start();
    let later = |gateway: Setup| gateway.env("OTEL_BSP_SCHEDULE_DELAY", 600_000).start();
    for address in [collector.grpc, collector.http] {
        let protocol = if address == collector.grpc { "grpc" } else { "http/protobuf" };
        let gateway = later(traced(engine, app.address, address, protocol));
        let before = collector.sink.spans().len();
        assert_eq!(Http1::connect(gateway.address).get("/").status, 200);
        // Who is slow to take them is not waited for.
        if assert_exits(gateway) < Duration::from_secs(1) {
            collector.sink.wait_for("the last spans", |spans| spans.len() >= before + 2);
        }
    }
    let gateway = later(traced(engine, app.address, collector.grpc, "grpc"));
    assert_eq!(Http1::connect(gateway.address).get("/").status, 200);
    drop(collector);
    assert_exits(gateway);
}

fn t32_a_collector_that_misbehaves_touches_nothing(engine: Engine) {
    for (fault, protocol) in [
        (Fault::Absent, "grpc"),
        (Fault::Absent, "http/protobuf"),
        (Fault::Hangs, "grpc"),
        (Fault::Hangs, "http/protobuf"),
        (Fault::Slow, "http/protobuf"),
        (Fault::Answers(400), "http/protobuf"),
        (Fault::Answers(503), "http/protobuf"),
        (Fault::Grpc(8), "grpc"),
        (Fault::Resets, "grpc"),
    ] {
        let (app, collector) = (HttpOracle::start(), Bad::start(fault));
        let gateway = traced(engine, app.address, collector.address, protocol)
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", 700)
            .start();
        let mut client = Http1::connect(gateway.address);
        let mut took = Vec::new();
        for _ in 0..200 {
            let start = Stopwatch::start();
            assert_eq!(client.get("/").status, 200, "{fault:?}");
            took.push(start.own());
        }
        // Nearly all: on a shared machine a single one may have been held up by others.
        took.sort_unstable();
        assert!(took[190] < slack(Duration::from_millis(20)), "{fault:?}: {took:?}");
        let lost = || gateway.metric("tidegate_trace_spans_dropped_total", "export_failed");
        until("what it does not take is counted", SOON, || lost() > 0.0);
        if !matches!(fault, Fault::Absent) {
            let met = collector.met.load(std::sync::atomic::Ordering::Relaxed);
            assert!(met > 0, "nobody met the collector: {fault:?}");
        }
        // Some more to be sent at the end, which takes no longer for it.
        assert_eq!(client.get("/").status, 200, "{fault:?}");
        drop(client);
        assert_exits(gateway);
    }
}

/// A flood of spans and a collector that takes none: bounded, counted, and the gateway stays small.
fn t32_the_queue_of_spans_is_bounded(engine: Engine) {
    const REQUESTS: u64 = 3000;
    let (app, collector) = (HttpOracle::start(), Bad::start(Fault::Hangs));
    let gateway = traced(engine, app.address, collector.address, "grpc")
        .set("trace-max-spans", 1_000_000)
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", 600_000) // what is under way does not come to an end
        .start();
    let mut client = Http1::connect(gateway.address);
    let path = format!("/{}", "p".repeat(4000));
    let mut ask = || assert_eq!(client.get(&path).status, 200);
    (0..200).for_each(|_| ask());
    let before = process::rss(gateway.pid);
    (200..REQUESTS).for_each(|_| ask());
    let lost = || gateway.metric("tidegate_trace_spans_dropped_total", "queue_full");
    until("the rest did not fit", SOON, || lost() >= (2 * REQUESTS - 2048) as f64);
    let grown = process::rss(gateway.pid).saturating_sub(before);
    assert!(grown < 8 << 20, "it has grown by {grown} bytes");
    assert_exits(gateway);
}

/// Answers how long it took, by the clock.
#[track_caller]
fn assert_exits(mut gateway: Gateway) -> Duration {
    let told = Instant::now();
    let took = gateway.terminate(SOON);
    assert!(took < Duration::from_millis(1500) + slack(Duration::from_millis(200)), "{took:?}");
    told.elapsed()
}
