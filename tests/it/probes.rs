//! P8: the application's own probes, done beside the gate and judged as the kubelet judges: real servers are
//! probed, through the port the kubelet uses.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::http2;
use crate::http::oracle::HttpOracle;
use crate::http::outside::Outside;
use crate::support::app_process::AppProcess;
use crate::support::gateway::{Gateway, Setup};
use crate::support::oracle::{Oracle, Script};
use crate::support::server::Server;
use crate::support::{
    Engine, Over, SOON, Stopwatch, engines, process, run, scale, skip, slack, until,
};

engines!(green_at_fifty_times_overload, an_application_that_dies_is_red_at_the_next_probe);

/// One exchange with the probe's address, as the kubelet does it: the status, and the body.
pub(crate) fn ask(address: SocketAddr, line: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the probe's address answers");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).expect("it is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is answered");
    let code = answer.get(9..12).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_owned();
    (code.unwrap_or_else(|| panic!("no answer: {answer:?}")), body)
}

fn probe(gateway: &Gateway, name: &str) -> (u16, String) {
    ask(gateway.status().probe, &format!("GET /app-probe/{name}"), "")
}

/// In front of `app`, in what looks like a pod, with these probes.
fn probing(engine: Engine, app: impl ToString, probes: &Value) -> Setup {
    Setup::new(engine, app).env("TIDEGATE_POD_IP", "127.0.0.1").env("TIDEGATE_APP_PROBES", probes)
}

/// How many probes of that name had that result.
fn counted(gateway: &Gateway, container: &str, result: &str) -> f64 {
    let samples = gateway.metrics().into_iter().filter(|(name, _)| {
        name.starts_with("tidegate_app_probes_total")
            && name.contains(&format!("container=\"{container}\""))
            && name.contains(&format!("result=\"{result}\""))
    });
    samples.map(|(_, count)| count).sum()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// nginx with `tests/apps/nginx_probed.conf`; its TLS speaks HTTP/2, with a certificate of its own making.
fn nginx(tls: u16, gateway: u16) -> Option<Server> {
    if !process::installed("nginx") {
        skip("there is no nginx");
        return None;
    }
    let signed = rcgen::generate_simple_self_signed(["nobody.invalid".to_owned()]);
    let signed = signed.expect("a certificate");
    Some(Server::start(|dir, port| {
        let conf = include_str!("../apps/nginx_probed.conf")
            .replace("DIR", dir.to_str().expect("UTF-8"))
            .replace("PORT", &port.to_string())
            .replace("TLS", &tls.to_string())
            .replace("GATEWAY", &gateway.to_string());
        let files = [
            ("nginx.conf", conf),
            ("cert.pem", signed.cert.pem()),
            ("key.pem", signed.signing_key.serialize_pem()),
            ("large", "x".repeat(1 << 20)),
        ];
        for (name, text) in files {
            std::fs::write(dir.join(name), text).expect("written");
        }
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf"));
        command
    }))
}

/// The lines of nginx' books about a path, once there are so many: it writes them after it has answered.
#[track_caller]
fn written(server: &Server, path: &str, count: usize) -> Vec<Vec<String>> {
    until("nginx has written its books", SOON, || seen(server, path).len() >= count);
    seen(server, path)
}

/// The lines of nginx' books about a path.
fn seen(server: &Server, path: &str) -> Vec<Vec<String>> {
    let books = std::fs::read_to_string(server.dir.path().join("books")).unwrap_or_default();
    let lines = books.lines().map(|line| line.split('|').map(str::to_owned).collect());
    lines.filter(|line: &Vec<String>| line[3] == path).collect()
}

/// The same probe, with time for a machine that has little.
fn patient(probe: &Value) -> Value {
    let mut probe = probe.clone();
    probe["timeoutSeconds"] = 10.into();
    probe
}

/// Statuses, redirects, TLS and headers as in the kubelet's `pkg/probe/http`.
#[test]
fn nginx_is_judged_as_the_kubelet_judges() {
    run(Engine::Epoll, |engine| {
        let (tls, face) = (free_port(), free_port());
        let Some(server) = nginx(tls, face) else { return };
        let port = server.port;
        let get = |path: &str| json!({"httpGet": {"path": path, "port": port}});
        let over_tls = json!({"httpGet": {"path": "/healthz", "port": tls, "scheme": "HTTPS"}});
        let host = json!([{"name": "Host", "value": "shop.example"}, {"name": "X-Spec", "value": "1"},
                          {"name": "User-Agent", "value": "mine"}]);
        let named = json!({"httpGet": {"path": "/here?a b", "port": port, "httpHeaders": host}});
        let expected = [
            ("ok", get("/healthz"), 200, "healthy"),
            ("large", get("/large"), 200, "healthy"),
            ("missing", get("/missing"), 404, "unhealthy"),
            ("ill", get("/ill"), 500, "unhealthy"),
            ("here", get("/here"), 200, "healthy"),
            ("to-ill", get("/to-ill"), 500, "unhealthy"),
            ("elsewhere", get("/elsewhere"), 200, "healthy"),
            ("to-tls", get("/to-tls"), 200, "healthy"),
            ("round", get("/round"), 502, "broken"),
            ("nowhere", get("/nowhere"), 502, "broken"),
            ("gateway", get("/gateway"), 200, "healthy"),
            ("unchanged", get("/unchanged"), 200, "healthy"),
            ("tls", over_tls, 200, "healthy"),
            ("no-tls", json!({"httpGet": {"port": port, "scheme": "HTTPS"}}), 502, "broken"),
            ("no-http", json!({"httpGet": {"port": tls}}), 400, "unhealthy"),
            ("closed", json!({"httpGet": {"port": free_port()}}), 503, "refused"),
            ("tcp", json!({"tcpSocket": {"port": port}}), 200, "healthy"),
            ("tcp-closed", json!({"tcpSocket": {"port": free_port()}}), 503, "refused"),
            ("no-grpc", json!({"grpc": {"port": port}}), 502, "broken"),
            ("named", named, 200, "healthy"),
        ];
        let spec = expected.iter().map(|(name, spec, ..)| (format!("{name}/readiness"), spec));
        let spec: serde_json::Map<_, _> = spec.map(|(name, spec)| (name, patient(spec))).collect();
        let gateway = probing(engine, server.address(), &spec.into())
            .set("probe", format!("127.0.0.1:{face}"))
            .start();
        let mut wrong = String::new();
        for (name, _, code, result) in &expected {
            let answer = probe(&gateway, &format!("{name}/readiness"));
            if answer.0 != *code || !answer.1.starts_with(result) {
                let _ = writeln!(wrong, "{name}: {answer:?}, not {code} {result}");
            }
            assert_eq!(counted(&gateway, name, result), 1.0, "{name} {result}");
        }
        assert_eq!(wrong, "");

        let sent = |path: &str, at: usize| written(&server, path, at + 1)[at][1..].join("|");
        let agent = concat!("kube-probe/1.0 (tidegate/", env!("CARGO_PKG_VERSION"), ")");
        let here = format!("127.0.0.1:{port}");
        assert_eq!(sent("/ill", 0), format!("HTTP/1.1|GET|/ill|{here}|{agent}|*/*|-|-|-"));
        let from = format!("http://{here}/to-ill");
        assert_eq!(sent("/ill", 1), format!("HTTP/1.1|GET|/ill|{here}|{agent}|*/*|{from}|-|-"));
        let named = "HTTP/1.1|GET|/here?a%20b|shop.example|mine|*/*|-|-|1";
        assert_eq!(sent("/here?a%20b", 0), named);
        // Asked for itself, over TLS, and on the way from elsewhere.
        let healthz = written(&server, "/healthz", 4);
        let followed = healthz.iter().filter(|line| line[9] == "1");
        let followed: Vec<_> = followed.map(|line| line[4].as_str()).collect();
        assert_eq!(followed, ["shop.example"], "the name holds on the way");
        let tls = healthz.iter().filter(|line| line[1] == "HTTP/2.0");
        assert_eq!(tls.count(), 2, "of nginx' own choice");
        assert_eq!(written(&server, "/round", 10).len(), 10);
        assert!(seen(&server, "/livez").is_empty(), "the gateway is not probed in its name");
        let unknown =
            ["app", "app/liveness", "ok/liveness", "ok/readiness/", "../ok/readiness", ""];
        for unknown in unknown {
            assert_eq!(probe(&gateway, unknown).0, 404, "{unknown}");
        }
        gateway.assert_clean();
    });
}

/// A23: whoever asks for a probe has no influence on what the application is asked.
#[test]
fn nothing_of_the_request_reaches_the_application() {
    run(Engine::Epoll, |engine| {
        let Some(server) = nginx(free_port(), free_port()) else { return };
        let spec = json!({"httpGet": {"path": "/healthz", "port": server.port}});
        let spec = json!({"ok/liveness": patient(&spec)});
        let gateway = probing(engine, server.address(), &spec).start();
        let face = gateway.status().probe;
        let evil = "X-Evil: 1\r\nUser-Agent: evil\r\nReferer: http://evil/\r\nAccept: evil\r\n";
        for target in ["/app-probe/ok/liveness?x=/ill", "http://evil/app-probe/ok/liveness"] {
            assert_eq!(ask(face, &format!("GET {target}"), evil).0, 200, "{target}");
        }
        for target in ["/app-probe/ok/liveness/../../ill", "/app-probe/ok/liveness%2f..%2fill"] {
            assert_eq!(ask(face, &format!("GET {target}"), evil).0, 404, "{target}");
        }
        assert_eq!(ask(face, "POST /app-probe/ok/liveness", evil).0, 405);
        written(&server, "/healthz", 2);
        let books = std::fs::read_to_string(server.dir.path().join("books")).expect("books");
        assert_eq!(books.lines().count(), 2, "{books}");
        assert!(!books.contains("evil") && books.contains("|GET|/healthz|"), "{books}");
    });
}

/// `grpc.health.v1` of grpcio.
#[test]
fn grpcio_is_asked_for_its_health() {
    run(Engine::Epoll, |engine| {
        let Some(app) = Outside::grpcio() else {
            return skip("tests/apps/setup has not been run");
        };
        let port = app.server.port;
        let service = |service: &str| patient(&json!({"grpc": {"port": port, "service": service}}));
        let stalled = Oracle::start(Script::Stall);
        let spec = json!({
            "all/liveness": patient(&json!({"grpc": {"port": port}})), "well/liveness": service("well"),
            "sick/liveness": service("sick"), "who/liveness": service("who"),
            "stalled/liveness": {"grpc": {"port": stalled.address.port()}},
        });
        let gateway = probing(engine, app.server.address(), &spec).start();
        let found = |name: &str| {
            let (code, why) = probe(&gateway, &format!("{name}/liveness"));
            (code, why.split(':').next().unwrap_or_default().to_owned())
        };
        assert_eq!(found("all"), (200, "healthy".into()));
        assert_eq!(found("well"), (200, "healthy".into()));
        assert_eq!(found("sick"), (503, "unhealthy".into()));
        assert_eq!(found("who"), (503, "unhealthy".into()));
        assert_eq!(found("stalled"), (504, "timeout".into()));
        gateway.assert_clean();
    });
}

/// However many ask: the application is asked once at a time, all get the answer, within the timeout.
#[test]
fn many_who_ask_at_once_share_one_probe() {
    run(Engine::Epoll, |engine| {
        let app = Oracle::start(Script::Stall);
        let port = app.address.port();
        let spec = json!({"app/liveness": {"httpGet": {"port": port}, "timeoutSeconds": 2},
                          "app/readiness": patient(&json!({"tcpSocket": {"port": port}}))});
        let gateway = probing(engine, app.address, &spec).start();
        let face = gateway.status().probe;
        let start = Stopwatch::start();
        std::thread::scope(|scope| {
            // Beyond what one address may have waiting, they are told so, and no other is sent away.
            let asked: Vec<_> = (0..60)
                .map(|_| scope.spawn(move || ask(face, "GET /app-probe/app/liveness", "")))
                .collect();
            until("it is asked", SOON, || app.count() == 1);
            assert_eq!(probe(&gateway, "app/readiness").0, 200, "another one is not kept waiting");
            for answer in asked {
                assert_eq!(answer.join().expect("no panic").0, 504);
            }
        });
        assert!(start.own() < slack(Duration::from_secs(3)), "one timeout, not sixty: {start:?}");
        assert_eq!(app.arrived(), 2, "one of each");
        assert_eq!(counted(&gateway, "app", "timeout"), 1.0);
        until("its connection is closed", SOON, || app.arrivals().len() == 2);
        gateway.assert_clean();
    });
}

/// With 50 times as many clients as fit, no probe fails: neither ours nor the application's.
fn green_at_fifty_times_overload(engine: Engine) {
    let app = HttpOracle::start();
    let port = app.address.port();
    let spec = json!({"app/liveness": patient(&json!({"httpGet": {"path": "/healthz", "port": port}})),
                      "app/readiness": patient(&json!({"tcpSocket": {"port": port}}))});
    let gateway = probing(engine, app.address, &spec)
        .set("protocol", "http")
        .set("limit", 4)
        .set("queue-length", 8)
        .start();
    let face = gateway.status().probe;
    let (over, load) = (Arc::new(AtomicBool::new(false)), gateway.address);
    let asked = std::thread::scope(|scope| {
        let ends = over.clone();
        scope.spawn(move || http2::block_on(two_hundred(load, ends)));
        let over = Over(&over);
        until("it is full", SOON, || gateway.port().refused("queue_full") > 100);
        let start = Instant::now();
        let mut asked = 0;
        while asked <= 10 || start.elapsed() < Duration::from_secs(scale(3, 60) as u64) {
            for path in ["/app-probe/app/liveness", "/app-probe/app/readiness", "/readyz", "/livez"]
            {
                let began = Stopwatch::start();
                let (code, why) = ask(face, &format!("GET {path}"), "");
                assert_eq!(code, 200, "{path}, number {asked}: {why}");
                assert!(began.own() < Duration::from_secs(1), "the kubelet has given up");
            }
            asked += 1;
        }
        drop(over);
        asked
    });
    assert_eq!(counted(&gateway, "app", "healthy"), f64::from(2 * asked));
    assert!(gateway.port().peak_active <= 4);
    gateway.assert_clean();
}

/// So many clients, each with a connection for each of its requests, until it is over. They are the load, and not
/// what is looked at: one thread has them all, so that the machine is not theirs.
async fn two_hundred(to: SocketAddr, over: Arc<AtomicBool>) {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let over = over.clone();
        clients.spawn_local(async move {
            while !over.load(Ordering::Relaxed) {
                let _ = tokio::time::timeout(SOON, work(to)).await;
                // A client that was refused waits a little, as clients do.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    clients.join_all().await;
}

async fn work(to: SocketAddr) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(to).await?;
    let work = b"GET /work?ms=100 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(work).await?;
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

/// The next probe after its death is red, and the first after its return is green.
fn an_application_that_dies_is_red_at_the_next_probe(engine: Engine) {
    let app = AppProcess::echo();
    let address = app.address;
    let spec = patient(&json!({"tcpSocket": {"port": address.port()}}));
    let spec = json!({"app/liveness": spec});
    let gateway = probing(engine, address, &spec).start();
    assert_eq!(probe(&gateway, "app/liveness").0, 200);
    app.kill();
    assert_eq!(probe(&gateway, "app/liveness").0, 503);
    assert_eq!(ask(gateway.status().probe, "GET /readyz", "").0, 200, "we are ready all the same");
    let _again = AppProcess::start(address, "echo");
    assert_eq!(probe(&gateway, "app/liveness").0, 200);
    until("it is in the log", SOON, || {
        let log = gateway.log();
        log.contains("probe is red") && log.contains("green again")
    });
}

/// By hand a specification that is not understood ends the start, and everything wrong with it is said; in
/// a pod it ends nothing: neither us nor the application.
#[test]
fn a_bad_specification_is_told_and_harms_nobody_in_a_pod() {
    run(Engine::Epoll, |engine| {
        let app = Oracle::start(Script::Work);
        let spec = json!({"app/liveness": {"tcpSocket": {"port": 0}}, "app/health": {},
                          "b/startup": {"exec": {}},
                          "b/readiness": {"tcpSocket": {"port": app.address.port()}}});
        let setup = Setup::new(engine, app.address).env("TIDEGATE_APP_PROBES", &spec);
        let (status, log) = setup.start_in_vain();
        assert_eq!(status.code(), Some(78), "{log}");
        for named in ["app/liveness", "app/health", "b/startup", "TIDEGATE_APP_PROBES"] {
            assert!(log.contains(named), "{named}: {log}");
        }

        let gateway = probing(engine, app.address, &spec).start();
        let found = |name: &str| {
            let (code, why) = probe(&gateway, name);
            (code, why.split(':').next().unwrap_or_default().to_owned())
        };
        for name in ["app/liveness", "b/startup", "app/readiness"] {
            assert_eq!(found(name), (200, "unusable".into()), "{name}");
        }
        assert_eq!(found("b/readiness"), (200, "healthy".into()));
        assert_eq!(counted(&gateway, "app", "unusable"), 1.0);
        until("it is in the log", SOON, || gateway.log().contains("app/health"));
    });
}
