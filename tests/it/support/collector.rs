//! Who collects traces: a collector that people run, with a sink behind it that reads what it hands on;
//! and collectors that misbehave.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message;

use super::{SOON, Stopwatch, until};

/// One span, as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) name: String,
    /// Which part of the gateway made it.
    scope: String,
    /// 1 internal, 2 server, 3 client.
    pub(crate) kind: i32,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty: none.
    pub(crate) parent: String,
    pub(crate) state: String,
    /// Since 1970.
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    pub(crate) failed: bool,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) resource: BTreeMap<String, String>,
    /// What happened in it, in order.
    pub(crate) events: Vec<String>,
}

impl Span {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }

    pub(crate) fn lasted(&self) -> Duration {
        self.end - self.start
    }
}

/// What the control plane's spans are made by.
const CONTROL: &str = "tidegate::control";

/// Takes spans as OTLP over HTTP, and keeps them.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    stop: Arc<AtomicBool>,
}

impl Sink {
    pub(crate) fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into())
    }

    /// At an address of the test's choice.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("bound");
        let (spans, stop) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<AtomicBool>::default());
        let (kept, stopped) = (spans.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let kept = kept.clone();
                std::thread::spawn(move || {
                    while let Ok(body) = request(&stream) {
                        let batch = ExportTraceServiceRequest::decode(&body[..]);
                        let spans = flatten(batch.expect("OTLP"));
                        kept.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\
                              content-length: 0\r\n\r\n";
                        if (&stream).write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, spans, stop }
    }

    /// Of traffic.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.of(|scope| scope != CONTROL)
    }

    fn of(&self, scope: impl Fn(&str) -> bool) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| scope(&span.scope)).cloned().collect()
    }

    /// Waits until so many spans of traffic are here.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        Self::wait(what, || self.spans(), wanted)
    }

    /// Waits until so many spans of the control plane are here.
    #[track_caller]
    pub(crate) fn wait_for_control(
        &self,
        what: &str,
        wanted: impl Fn(&[Span]) -> bool,
    ) -> Vec<Span> {
        Self::wait(what, || self.of(|scope| scope == CONTROL), wanted)
    }

    #[track_caller]
    fn wait(
        what: &str,
        look: impl Fn() -> Vec<Span>,
        wanted: impl Fn(&[Span]) -> bool,
    ) -> Vec<Span> {
        let start = Stopwatch::start();
        loop {
            let spans = look();
            if wanted(&spans) {
                return spans;
            }
            assert!(!start.is_past(SOON), "not within {SOON:?}: {what}: {spans:#?}");
            std::thread::sleep(Duration::from_millis(5)); // between two looks
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// The body of the next request.
fn request(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut zipped) = (0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        }
        zipped |= line == "content-encoding: gzip";
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if zipped {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain)?;
        return Ok(plain);
    }
    Ok(body)
}

fn flatten(batch: ExportTraceServiceRequest) -> Vec<Span> {
    let mut all = Vec::new();
    for of_resource in batch.resource_spans {
        let resource = of_resource.resource.map(|r| texts(&r.attributes)).unwrap_or_default();
        let scoped = of_resource.scope_spans.into_iter().flat_map(|by| {
            let scope = by.scope.map(|scope| scope.name).unwrap_or_default();
            by.spans.into_iter().map(move |span| (scope.clone(), span))
        });
        for (scope, span) in scoped {
            all.push(Span {
                scope,
                service: resource.get("service.name").cloned().unwrap_or_default(),
                name: span.name,
                kind: span.kind,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                state: span.trace_state,
                start: Duration::from_nanos(span.start_time_unix_nano),
                end: Duration::from_nanos(span.end_time_unix_nano),
                failed: span.status.is_some_and(|status| status.code == 2),
                attributes: texts(&span.attributes),
                resource: resource.clone(),
                events: span.events.into_iter().map(|event| event.name).collect(),
            });
        }
    }
    all
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// rotel, which people run, between the gateway and a sink.
pub(crate) struct Collector {
    pub(crate) sink: Sink,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Collector {
    /// `None` when `tests/apps/setup` has not run.
    pub(crate) fn start() -> Option<Self> {
        let program = agent()?;
        let sink = Sink::start();
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("bound")
        };
        let (grpc, http) = (free(), free());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
        let mut command = Command::new(program);
        command.arg("start").current_dir(dir.path()).stdin(Stdio::null());
        for (flag, value) in [
            ("otlp-grpc-endpoint", grpc.to_string()),
            ("otlp-http-endpoint", http.to_string()),
            ("exporter", "otlp".into()),
            ("otlp-exporter-endpoint", format!("http://{}", sink.address)),
            ("otlp-exporter-protocol", "http".into()),
            ("batch-timeout", "20ms".into()),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let child = command.spawn().expect("the collector runs");
        let collector = Self { sink, grpc, http, child, _dir: dir };
        until("the collector listens", SOON, || {
            [grpc, http].iter().all(|address| TcpStream::connect(address).is_ok())
        });
        Some(collector)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/.venv/lib");
    let mut versions = std::fs::read_dir(lib).ok()?.flatten();
    versions.find_map(|version| {
        let agent = version.path().join("site-packages/rotel/rotel-agent");
        agent.exists().then_some(agent)
    })
}

/// How a collector misbehaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nobody listens.
    Absent,
    /// It accepts, reads, and never says a word.
    Hangs,
    /// It answers a byte a second.
    Slow,
    /// It answers with this status.
    Answers(u16),
    /// It answers, over gRPC, with this code.
    Grpc(u8),
    /// It reads a little and resets.
    Resets,
}

/// A collector that misbehaves.
pub(crate) struct Bad {
    pub(crate) address: SocketAddr,
    /// Connections it has had.
    pub(crate) met: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Bad {
    pub(crate) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (met, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, stopped) = (met.clone(), stop.clone());
        if !matches!(fault, Fault::Absent) {
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    std::thread::spawn(move || misbehave(fault, stream));
                }
            });
        }
        Self { address, met, stop }
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn misbehave(fault: Fault, stream: TcpStream) {
    match fault {
        Fault::Absent => {}
        Fault::Hangs => drop(io::copy(&mut &stream, &mut io::sink())),
        Fault::Resets => {
            let _ = (&stream).read(&mut [0; 100]);
            super::ledger::reset(stream);
        }
        Fault::Slow => {
            let _ = request(&stream);
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".chunks(1) {
                if (&stream).write_all(byte).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_secs(1)); // that slow
            }
        }
        Fault::Answers(status) => {
            while request(&stream).is_ok() {
                let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
                if (&stream).write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
        Fault::Grpc(code) => grpc(stream, code),
    }
}

/// Trailers only, for every call.
fn grpc(stream: TcpStream, code: u8) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder().status(200);
            let head = head
                .header("content-type", "application/grpc")
                .header("grpc-status", u16::from(code));
            let _ = respond.send_response(head.body(()).expect("a head"), true);
        }
    });
}
