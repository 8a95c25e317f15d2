//! The admin faces over real sockets, in front of a gateway that is not there.

mod attempts;
mod stopwatch;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tidegate::admin::{
    self, Changes, Connection, Counts, DroppedLines, Engine, Faces, Gateway, Pools, PortStatus,
    PortVitals, Reload, Setting, Status, Vitals,
};
use tidegate::client::{self, ClientError, Target};
use tidegate::journal::Journal;
use tidegate::lifecycle::{self, Lifecycle, Load, Tally};
use tidegate::metrics::PortMetrics;
use tidegate::probes::Probes;
use tokio_util::sync::CancellationToken;

use attempts::{METHODS, PATHS};
use stopwatch::Stopwatch;

/// A gateway without a data plane.
struct Fake {
    life: Lifecycle,
    metrics: Arc<PortMetrics>,
    level: Mutex<String>,
    journal: Arc<Journal>,
}

/// A data plane that carries nothing.
struct Idle;

/// The faces being served, until dropped.
struct Served {
    admin: SocketAddr,
    probe: SocketAddr,
    metrics: SocketAddr,
    control: PathBuf,
    fake: Arc<Fake>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Gateway for Fake {
    fn status(&self) -> Status {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        Status {
            version: "0.1.0",
            engine: Engine { name: "epoll", reason: "asked for".into() },
            phase: self.life.phase(),
            workers: 1,
            ports: vec![PortStatus {
                listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
                app: "<app>:3000".into(),
                entrance: false,
                protocol: "tcp",
                mode: "enforce",
                limit: Some(8),
                active: 0,
                queued: 0,
                queue_length: 16,
                peak_active: 0,
                bypass: None,
                counts: Counts::read(&self.metrics),
                would_refuse: 0,
                shadow: BTreeMap::new(),
            }],
            connections: 0,
            max_connections: 100,
            pools: Pools { in_use: 0 },
            dropped_lines: DroppedLines::default(),
            ring_ops: 0,
            admin: nowhere,
            probe: nowhere,
            metrics: nowhere,
            uptime_seconds: 61.0,
            last_reload: Reload { ok: true, error: None, last_success: SystemTime::now() },
            remarks: Vec::new(),
            own_pod: None,
            traces: None,
            drain: self.life.report(),
            drain_partial: false,
            drains_taken_back: self.life.taken_back(),
        }
    }

    fn ports(&self) -> Vec<Arc<PortMetrics>> {
        vec![self.metrics.clone()]
    }

    fn vitals(&self) -> Vitals {
        let port = PortVitals { backlog: None, app_connections: 0, turned_away: 0.0 };
        Vitals { ports: vec![port], changes: Changes::default() }
    }

    fn settings(&self) -> Vec<Setting> {
        let origin = "flag".into();
        vec![Setting { key: "limit", port: Some(8080), value: "8".into(), origin }]
    }

    fn connections(&self) -> Vec<Connection> {
        Vec::new()
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn probes(&self) -> Arc<Probes> {
        Arc::default()
    }

    fn lifecycle(&self) -> Lifecycle {
        self.life.clone()
    }

    fn set(&self, changes: BTreeMap<String, String>) -> Result<Vec<String>, Vec<String>> {
        match changes.get("limit").map(String::as_str) {
            Some("0") => Err(vec!["limit \"0\" is too small".into(), "and more".into()]),
            _ => Ok(changes.into_iter().map(|(key, value)| format!("{key}={value}")).collect()),
        }
    }

    fn set_log_level(&self, directive: &str) -> Result<(), String> {
        *self.level.lock().expect("nobody panicked") = directive.to_owned();
        Ok(())
    }
}

impl Load for Idle {
    fn tally(&self) -> Tally {
        Tally::default()
    }

    fn close_gates(&self) {}
}

/// Whoever waits for a drain waits a quarter of it for one to begin.
const GRACE: Duration = Duration::from_secs(4);

fn serve() -> Served {
    serve_for(GRACE)
}

fn serve_for(grace: Duration) -> Served {
    let dir = tempfile::tempdir().expect("a directory");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let control = dir.path().join("control.sock");
    let faces = Faces { admin: any, probe: any, metrics: any, control: control.clone() };
    let bound = admin::bind(&faces).expect("free addresses");
    let [admin, probe, metrics] =
        [bound.admin(), bound.probe(), bound.metrics()].map(|address| address.expect("bound"));
    let fake = Arc::new(Fake {
        life: Lifecycle::new(grace),
        metrics: Arc::default(),
        level: Mutex::default(),
        journal: Arc::default(),
    });
    let stop = CancellationToken::new();
    let (gateway, ended) = (fake.clone(), stop.clone());
    let thread = std::thread::spawn(move || {
        let runtime = runtime();
        runtime.spawn(async { std::future::pending::<()>().await });
        let life = gateway.life.clone();
        runtime.spawn(async move {
            let config = move || lifecycle::Config {
                drain_delay: Duration::from_millis(200),
                drain_timeout: None,
                grace,
                after_drain: lifecycle::AfterDrain::Exit,
            };
            life.run_drain(config, &Idle).await;
        });
        runtime.block_on(bound.serve(gateway, ended)).expect("served");
    });
    Served { admin, probe, metrics, control, fake, stop, thread: Some(thread), _dir: dir }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        let thread = self.thread.take().expect("dropped once");
        thread.join().expect("no panic");
    }
}

/// Send `request` as it is and read the answer to the end of the connection.
fn exchange(stream: impl Read + Write, request: &str) -> Answer {
    let mut stream = stream;
    stream.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).expect("a status line").parse().expect("a number");
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn ask(address: SocketAddr, line: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let request = format!("{line} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    exchange(stream, &request)
}

fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), "Host: localhost\r\n")
}

fn post(served: &Served, path: &str, body: &str) -> Answer {
    let stream = UnixStream::connect(&served.control).expect("somebody listens");
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    exchange(stream, &request)
}

#[test]
fn probes_follow_the_phase() {
    let served = serve();
    let probe = |path| {
        let answer = get(served.probe, path);
        (answer.status, answer.body.trim().to_owned())
    };
    assert_eq!(probe("/livez").0, 200);
    assert_eq!(probe("/readyz"), (503, "starting".into()));
    assert_eq!(probe("/startupz").0, 503);
    served.fake.life.serving();
    assert_eq!(probe("/readyz"), (200, "serving".into()));
    assert_eq!(probe("/startupz").0, 200);
    served.fake.life.drain(lifecycle::Cause::Request);
    runtime().block_on(served.fake.life.drained());
    assert_eq!(probe("/readyz"), (503, "drained".into()));
    assert_eq!(probe("/startupz").0, 200);
    assert_eq!(probe("/livez").0, 200);
}

#[test]
fn each_face_answers_what_is_its_own() {
    let served = serve();
    let status = |address, path| get(address, path).status;
    assert_eq!(
        [served.probe, served.metrics, served.admin].map(|a| status(a, "/metrics")),
        [404, 200, 200]
    );
    assert_eq!(
        [served.probe, served.metrics, served.admin].map(|a| status(a, "/livez")),
        [200, 404, 200]
    );
    assert_eq!(
        [served.probe, served.metrics, served.admin].map(|a| status(a, "/status.json")),
        [404, 404, 200]
    );
    for path in ["/", "/settings.json", "/connections.json"] {
        assert_eq!(status(served.admin, path), 200, "{path}");
    }
    for path in ["/nothing", "/set", "/drain", "/drain/wait", "/log-level", "/status.json/", "//"] {
        assert_eq!(status(served.admin, path), 404, "{path}");
    }
}

#[test]
fn nothing_can_be_changed_over_the_network() {
    let served = serve();
    served.fake.life.serving();
    std::thread::scope(|scope| {
        for address in [served.admin, served.probe, served.metrics] {
            for method in METHODS {
                scope.spawn(move || {
                    for path in PATHS {
                        let answer =
                            ask(address, &format!("{method} {path}"), "Host: localhost\r\n");
                        let reads = ["GET", "HEAD"].contains(&method);
                        let refused = [400, 404, 405].contains(&answer.status);
                        assert!(reads || refused, "{method} {path}: {}", answer.status);
                    }
                });
            }
        }
    });
    assert_eq!(served.fake.life.phase(), lifecycle::Phase::Serving);
    assert!(served.fake.life.draining().is_none() && served.fake.life.ready());
    let answer = ask(served.admin, "POST /status.json", "Host: localhost\r\n");
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
}

#[test]
fn hooks_wait_for_a_drain_and_do_not_start_one() {
    let served = serve();
    served.fake.life.serving();
    let wait = || get(served.probe, "/drain/wait");
    let start = Instant::now();
    let nothing = wait();
    assert_eq!((nothing.status, nothing.body.trim()), (200, "nothing drains"));
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(served.fake.life.phase(), lifecycle::Phase::Serving);

    // Many wait, some leave, and others hold connections open meanwhile.
    let left: Vec<_> = (0..20).map(|_| begin(served.probe, "GET /drain/wait")).collect();
    std::thread::scope(|scope| {
        let hooks: Vec<_> = (0..20).map(|_| scope.spawn(wait)).collect();
        until_waiting(&served);
        drop(left);
        let _idle: Vec<_> =
            (0..100).map(|_| TcpStream::connect(served.probe).expect("connects")).collect();
        served.fake.life.drain(lifecycle::Cause::Request);
        for hook in hooks {
            let answer = hook.join().expect("no panic");
            assert_eq!((answer.status, answer.body.trim()), (200, "drained"));
        }
    });
    assert!(served.fake.life.report().is_some());
    assert_eq!(wait().body.trim(), "drained", "who comes later need not wait");
}

/// A request of which nobody reads the answer.
fn begin(address: SocketAddr, line: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connects");
    write!(stream, "{line} HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
    stream
}

/// A request that came after all others has been answered: they have come, too.
fn until_waiting(served: &Served) {
    for _ in 0..3 {
        assert_eq!(get(served.probe, "/livez").status, 200);
    }
}

#[test]
fn foreign_hosts_and_pages_are_turned_away() {
    let served = serve();
    let status = |headers: &str| ask(served.admin, "GET /status.json", headers).status;
    assert_eq!(status("Host: 127.0.0.1:15820\r\n"), 200);
    assert_eq!(status("Host: evil.example\r\n"), 421);
    assert_eq!(status("Host: localhost\r\nOrigin: http://evil.example\r\n"), 403);
    assert_eq!(status(""), 400);
    let answer = ask(served.admin, "GET http://evil.example/status.json", "Host: localhost\r\n");
    assert_eq!(answer.status, 421);
    // A kubelet and a scraper come by the pod's address.
    assert_eq!(ask(served.probe, "GET /livez", "Host: 10.1.2.3:15821\r\n").status, 200);
}

#[test]
fn answers_are_not_kept_and_not_taken_for_scripts() {
    let served = serve();
    for path in ["/", "/status.json", "/nothing"] {
        let head = get(served.admin, path).head;
        assert!(head.contains("cache-control: no-store"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
    let page = get(served.admin, "/");
    assert!(page.body.contains("&lt;app&gt;") && !page.body.contains("<app>"), "{}", page.body);
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    let head = ask(served.admin, "HEAD /status.json", "Host: localhost\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn metrics_come_in_the_format_asked_for() {
    let served = serve();
    let classic = get(served.metrics, "/metrics");
    assert!(classic.head.contains("content-type: text/plain; version=0.0.4"), "{}", classic.head);
    let accept = "Host: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n";
    let modern = ask(served.metrics, "GET /metrics", accept);
    assert!(modern.head.contains("content-type: application/openmetrics-text"), "{}", modern.head);
    assert!(modern.body.ends_with("# EOF\n"));
}

#[test]
fn the_status_has_every_field() {
    let served = serve();
    let status: serde_json::Value =
        serde_json::from_str(&get(served.admin, "/status.json").body).expect("JSON");
    let keys = |value: &serde_json::Value| {
        let mut keys: Vec<_> = value.as_object().expect("an object").keys().cloned().collect();
        keys.sort_unstable();
        keys.join(" ")
    };
    assert_eq!(
        keys(&status),
        "admin connections drain drain_partial draining drains_taken_back dropped_lines engine last_reload \
         max_connections metrics own_pod phase pools ports probe remarks ring_ops traces uptime_seconds version workers"
    );
    assert_eq!(
        keys(&status["ports"][0]),
        "accepted active admitted app bypass bytes_in bytes_out entrance history limit listen mode outcomes \
         peak_active protocol queue_length queued recent refused shadow would_refuse"
    );
    assert_eq!(status["ports"][0]["refused"]["queue_full"], 0);
    assert_eq!(keys(&status["last_reload"]), "error ok");
}

#[test]
fn the_control_socket_changes_things() {
    let served = serve();
    let mode = std::fs::metadata(&served.control).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let applied = post(&served, "/set", r#"{"limit":"9"}"#);
    assert_eq!((applied.status, applied.body.as_str()), (200, r#"{"applied":["limit=9"]}"#));
    let refused = post(&served, "/set", r#"{"limit":"0"}"#);
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("and more"), "{}", refused.body);
    for bad in ["", "{}", "[]", r#"{"limit":9}"#, "nonsense"] {
        assert_eq!(post(&served, "/set", bad).status, 400, "{bad}");
    }
    assert_eq!(post(&served, "/log-level", r#"{"level":"debug"}"#).status, 200);
    assert_eq!(*served.fake.level.lock().expect("nobody panicked"), "debug");
    let large = "x".repeat(65 * 1024);
    assert_eq!(post(&served, "/set", &large).status, 413);
}

#[test]
fn the_control_socket_is_removed_at_the_end() {
    let served = serve();
    let control = served.control.clone();
    assert!(control.exists());
    served.stop.cancel();
    drop(served);
    assert!(!control.exists());
}

#[test]
fn addresses_in_use_are_named_with_their_flags() {
    let served = serve();
    let faces = Faces {
        admin: served.admin,
        probe: served.probe,
        metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
        control: served.control.clone(),
    };
    let said: Vec<_> =
        admin::bind(&faces).expect_err("taken").iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    for flag in ["--admin", "--probe", "--control"] {
        assert!(
            said.iter().any(|line| line.contains(&format!("give this one its own with {flag}"))),
            "{said:?}"
        );
    }
    assert!(served.control.exists(), "the living gateway keeps its socket");
}

#[test]
fn a_slow_client_holds_nobody_and_is_rid_of() {
    let served = serve();
    // More than a face keeps; each sends half a head.
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(served.probe).expect("accepted");
            stream.write_all(b"GET /livez HTTP/1.1\r\nHo").expect("sent");
            stream
        })
        .collect();
    let start = Stopwatch::start();
    assert_eq!(get(served.probe, "/livez").status, 200);
    assert!(!start.is_past(Duration::from_secs(2)), "{start:?}");
    // The oldest were closed to make room, the others when their time was over.
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let timed_out = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
        assert!(!ended.as_ref().is_err_and(timed_out), "{ended:?}");
    }
}

#[test]
fn a_kept_connection_is_served_again() {
    let served = serve();
    let mut stream = BufReader::new(TcpStream::connect(served.probe).expect("accepted"));
    for _ in 0..3 {
        stream.get_mut().write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let mut line = String::new();
        stream.read_line(&mut line).expect("answered");
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        while line.trim() != "alive" {
            line.clear();
            stream.read_line(&mut line).expect("the rest");
        }
    }
}

#[test]
fn drain_and_its_report_over_the_client() {
    let served = serve();
    served.fake.life.serving();
    let runtime = runtime();
    let started = runtime.block_on(client::drain(&served.control, false, None)).expect("started");
    assert!(started.contains("the drain started"), "{started}");
    let again = post(&served, "/drain", "");
    assert_eq!(again.status, 202);
    assert!(again.body.contains("\"started\":false"), "{}", again.body);
    let report = runtime.block_on(client::drain(&served.control, true, None)).expect("reported");
    assert!(report.contains("\"cause\": \"request\""), "{report}");
}

#[test]
fn the_client_sets_and_shows() {
    let served = serve();
    let runtime = runtime();
    let set = |change: &str| runtime.block_on(client::set(&served.control, &[change.to_owned()]));
    assert_eq!(set("limit=9").expect("applied"), ["limit=9"]);
    match set("limit=0").expect_err("refused") {
        ClientError::Refused(mistakes) => assert_eq!(mistakes.len(), 2),
        other => panic!("{other}"),
    }
    assert!(set("limit").expect_err("no value").to_string().contains("KEY=VALUE"));

    let nobody = Target::Admin(SocketAddr::from(([127, 0, 0, 1], 1)));
    let targets = [nobody.clone(), Target::Control(served.control.clone())];
    let status = runtime.block_on(client::status(&targets)).expect("the second answers");
    let shown = client::show(&status, false);
    assert!(shown.contains("tidegate 0.1.0: starting, epoll (asked for)"), "{shown}");
    assert!(shown.contains("0.0.0.0:8080  <app>:3000  enforce"), "{shown}");
    let status = runtime.block_on(client::status(&[Target::Admin(served.admin)])).expect("answers");
    assert_eq!(status["ports"][0]["limit"], 8);
    let error = runtime.block_on(client::status(&[nobody])).expect_err("nobody").to_string();
    assert!(
        error.contains("no gateway answers at 127.0.0.1:1") && error.contains("--admin"),
        "{error}"
    );
}

/// Eight addresses wait with as many requests as they may, which is all there may be; the kubelet comes last.
#[test]
fn a_crowd_keeps_no_hook_and_no_probe_out() {
    tidegate::app::raise_open_files();
    // For long: whoever waits for a drain waits 5 s for one to begin.
    let served = serve_for(Duration::from_secs(60));
    served.fake.life.serving();
    let mut crowd = Vec::new();
    for _ in 0..64 {
        for last in 2..=9 {
            let mut stream = connect_from([127, 0, 0, last], served.probe);
            write!(stream, "GET /drain/wait HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
            crowd.push(stream);
        }
        // Of those who have not been heard yet the oldest would have to go.
        assert_eq!(get(served.probe, "/livez").status, 200);
    }
    until_waiting(&served);
    std::thread::scope(|scope| {
        let hook = scope.spawn(|| get(served.probe, "/drain/wait"));
        // Whoever has been there longest is told that his place is another's now.
        let mut told = [0; 12];
        (&crowd[0]).read_exact(&mut told).expect("an answer");
        assert_eq!(told, *b"HTTP/1.1 503");
        assert_eq!(get(served.probe, "/app-probe/shop/liveness").status, 404, "it is looked for");
        served.fake.life.drain(lifecycle::Cause::Request);
        let answer = hook.join().expect("no panic");
        assert_eq!((answer.status, answer.body.trim()), (200, "drained"));
    });
}

fn connect_from(local: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.bind(&SocketAddr::from((local, 0)).into()).expect("all of 127/8 is ours");
    socket.connect(&to.into()).expect("somebody listens");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    socket.into()
}
