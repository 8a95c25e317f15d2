//! Servers as people run them, called from elsewhere at the pod's address: limited, queued, shed and traced
//! without a word to them.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::kubelet::LivePod;
use super::network::Network;
use super::probes::rewritten;
use super::specs::{Case, Spec, cases, nginx_conf, nginx_container};
use super::surroundings::ConfigMaps;
use crate::http::client::{Http1, overfill};
use crate::http::http2::{self, Http2};
use crate::http::outside::{Counted, NO_VENV, client, succeed};
use crate::support::collector::{Sink, Span};
use crate::support::gateway::Gateway;
use crate::support::ledger::{End, Ledger};
use crate::support::sockets::Watch;
use crate::support::{Rng, SOON, process, scale, skip, until};

cases!(beside: nginx, postgresql, grpcio);

/// A pod, its gateway, and the collector that it was told of.
struct Scene {
    network: Arc<Network>,
    pod: LivePod,
    gateway: Gateway,
    sink: Sink,
    /// Where clients go.
    to: SocketAddr,
}

/// 2 at once, 2 waiting, long.
fn narrow(spec: Spec) -> Spec {
    spec.set("limit", 2).set("queue-length", 2).set("queue-timeout", "60s")
}

impl Scene {
    fn new(case: Case, spec: Spec, port: u16, config_maps: &ConfigMaps) -> Self {
        let network = Network::new();
        let collector = SocketAddr::new(case.families.control(), 4318);
        let sink = network.control.enter(|| Sink::start_at(collector));
        let spec = spec
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"))
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .env("OTEL_BSP_SCHEDULE_DELAY", "50")
            .set("trace-sampling", 1);
        let pod = LivePod::start(&network, case.families, spec.pod(), config_maps);
        pod.wait_ready();
        let to = SocketAddr::new(pod.address(), case.port(port));
        let dial = || std::net::TcpStream::connect((pod.address(), port));
        until("the server listens", SOON, || pod.inside(dial).is_ok());
        let gateway = pod.gateway();
        Self { network, pod, gateway, sink, to }
    }

    /// So many clients at once, elsewhere.
    fn crowd(&self, count: usize, one: impl Fn() -> End + Sync) -> Ledger {
        self.network.client.enter(|| {
            std::thread::scope(|scope| {
                let clients: Vec<_> = (0..count).map(|_| scope.spawn(&one)).collect();
                clients.into_iter().map(|client| client.join().expect("no panic")).collect()
            })
        })
    }

    /// Some were served and some were shed, never more than 2 at once; those who waited did; and all of it
    /// has come to the collector, from this pod.
    #[track_caller]
    fn assert_gated(&self, ledger: &Ledger, peak: usize, names: &[&str]) {
        let (answered, refused) = (ledger.of(End::Answered), ledger.of(End::Refused));
        assert_eq!(answered + refused, ledger.total(), "{ledger:?}");
        assert!(answered >= 4 && refused > 0, "{ledger:?}");
        assert!((1..=2).contains(&peak), "the server had {peak} at once");
        let port = self.gateway.port_at(self.to.port());
        assert_eq!((port.admitted, port.refused("queue_full")), (answered, refused), "{port:?}");
        let waited = self.gateway.metric("tidegate_admission_wait_seconds_count", "");
        assert!(waited >= 2.0, "{waited} waited");
        let spans = self.sink.wait_for("spans of those who were served", |spans| {
            spans.iter().filter(|known| is(known, names) && !known.failed).count()
                >= answered as usize
        });
        let first = spans.iter().find(|known| is(known, names)).expect("just counted");
        let pod = first.resource.get("k8s.pod.name");
        assert!(pod.is_some(), "it says where it is: {first:?}");
        let client = first.get("client.address").expect("who it was");
        assert!(client.ends_with(".10") || client.ends_with(":a"), "{first:?}");
    }
}

/// Whether it has one of the names.
fn is(span: &Span, names: &[&str]) -> bool {
    names.contains(&span.name.as_str())
}

const NGINX: &str = r#"
server {
    listen ADDRESS:8080;
    location / { return 200 "$remote_addr"; }
    location /up { add_header X-Id $http_x_id; proxy_pass http://unix:/tmp/up.sock; }
    location /slow { root /config; limit_rate 20k; sendfile on; sendfile_max_chunk 2k; }
}
server {
    listen unix:/tmp/up.sock;
    location / { return 200 "up"; }
}
"#;

/// A dozen downloads, each slow, by connections of their own; the server sees the pod, not loopback.
fn nginx(case: Case) {
    if !process::installed("nginx") || !process::installed("curl") {
        return skip("nginx or curl is not installed");
    }
    let files = BTreeMap::from([
        ("nginx.conf".into(), nginx_conf(NGINX, case)),
        ("slow".into(), "x".repeat(4_000)),
    ]);
    let app = nginx_container();
    let spec = narrow(Spec::new(case, "shop", &[8080], app)).config_map("nginx", "/config");
    let spec = spec.set("protocol", "http"); // a curl that is slow to ask is refused in its own words
    let scene = Scene::new(case, spec, 8080, &BTreeMap::from([("nginx".into(), files)]));
    let curl = |path: &str| {
        let mut curl = Command::new("curl");
        let url = format!("http://{}{path}", scene.to);
        curl.args(["-sS", "-g", "-w", "%{http_code}", &url]).stderr(Stdio::null());
        String::from_utf8_lossy(&curl.output().expect("curl runs").stdout).into_owned()
    };
    let seen = scene.network.client.enter(|| curl("/"));
    assert_eq!(seen, format!("{}200", scene.pod.address()), "who the client is to nginx");
    let watch = scene.pod.inside(|| Watch::start(8080));
    // nginx asks the other server only when it has the whole body.
    let full = scene.network.client.enter(|| overfill(&scene.gateway, scene.to, 2, 2));
    let many = scene.crowd(12, || match curl("/slow") {
        said if said.len() == 4_003 && said.ends_with("200") => End::Answered,
        said if said.ends_with("503") => End::Refused,
        said => panic!("{said}"),
    });
    let first = [End::Answered].into_iter().collect();
    let ledger = [first, full, many].into_iter().sum();
    scene.assert_gated(&ledger, watch.peak(), &["GET", "POST"]);
}

/// Those on the machine are trusted and all others have to say a password: nobody from elsewhere passes
/// as being on the machine.
const PG_HBA: &str = "local all all trust\n\
    host all all 127.0.0.0/8 trust\nhost all all ::1/128 trust\n\
    host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n";

const POSTGRESQL: &str = "set -e; bin=/usr/lib/postgresql/15/bin
    $bin/initdb --no-sync --username=postgres --pwfile=/config/password -D /tmp/data >/dev/null
    cp /config/pg_hba.conf /tmp/data/
    exec $bin/postgres -D /tmp/data -k /tmp -c fsync=off -c listen_addresses='*'";

fn postgresql(case: Case) {
    if !process::installed("/usr/lib/postgresql/15/bin/postgres") || !process::installed("psql") {
        return skip("PostgreSQL is not installed");
    }
    let files = BTreeMap::from([
        ("password".into(), "secret".into()),
        ("pg_hba.conf".into(), PG_HBA.into()),
    ]);
    let command = json!({ "name": "app", "image": "debian", "command": ["sh", "-c", POSTGRESQL] });
    let spec = narrow(Spec::new(case, "books", &[5432], command)).config_map("pg", "/config");
    let spec = spec.set_port("protocol", 5432, "tcp");
    let scene = Scene::new(case, spec, 5432, &BTreeMap::from([("pg".into(), files)]));
    let with_password = |password: &str| {
        let mut psql = Command::new("psql");
        psql.args(["-h", &scene.to.ip().to_string(), "-p", &scene.to.port().to_string()]);
        psql.args(["-w", "-U", "postgres", "-Atq", "postgres"]);
        psql.env("PGPASSWORD", password).env("PGGSSENCMODE", "disable").env("PGSSLMODE", "disable");
        psql
    };
    let psql = |password: &str, sql: &str| {
        let output = with_password(password).args(["-c", sql]).output().expect("psql runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    };
    let ask = |password: &str, sql: &str| scene.network.client.enter(|| psql(password, sql));
    let who = "select host(inet_client_addr())";
    until("PostgreSQL is ready", SOON, || !ask("secret", who).contains("starting up"));
    let before = scene.gateway.port_at(scene.to.port()).admitted;
    assert_eq!(ask("secret", who), scene.pod.address().to_string());
    let said = ask("wrong", who);
    assert!(said.contains("password authentication failed"), "let in as if it were local: {said}");
    let watch = scene.pod.inside(|| Watch::start(5432));
    let sql = "select pg_sleep(0.2), 'served'";
    let one = || match psql("secret", sql) {
        said if said.ends_with("served") => End::Answered,
        said if said.contains("closed the connection unexpectedly") => End::Refused,
        said => panic!("{said}"),
    };
    // Each connects, and then reads what to ask.
    let mut held: Vec<Child> = Vec::new();
    for full in [(2, 0), (2, 2)] {
        for _ in 0..2 {
            let mut psql = with_password("secret");
            psql.stdin(Stdio::piped()).stdout(Stdio::piped());
            held.push(scene.network.client.enter(|| psql.spawn().expect("psql runs")));
        }
        until("they are in, or wait", SOON, || {
            let port = scene.gateway.port_at(scene.to.port());
            (port.active, port.queued) == full
        });
    }
    let mut ledger = scene.crowd(2, one);
    assert_eq!(ledger.of(End::Refused), 2, "there is no room");
    for mut psql in held {
        let told = psql.stdin.take().expect("a pipe").write_all(b"select 'served';\n");
        told.expect("it reads");
        assert_eq!(psql.wait_with_output().expect("it ends").stdout, b"served\n");
        ledger.enter(End::Answered);
    }
    (0..before + 2).for_each(|_| ledger.enter(End::Answered));
    let ledger = [ledger, scene.crowd(10, one)].into_iter().sum();
    scene.assert_gated(&ledger, watch.peak(), &["tidegate.connection"]);
}

/// Calls of all kinds, many of them cancelled; the handlers that run at once, by the application's books.
fn grpcio(case: Case) {
    let Some(mut storm) = client("client_grpc.py") else {
        return skip(NO_VENV);
    };
    let command = ["/venv/bin/python", "/apps/grpcio_app.py", "8080", case.families.any()];
    let env = json!([{ "name": "BOOKS", "value": "/tmp/books" },
                     { "name": "PYTHONDONTWRITEBYTECODE", "value": "1" }]);
    let app = json!({ "name": "app", "image": "debian", "command": command, "env": env });
    // Its readiness is asked of it in its own protocol, at the pod's address.
    let probes = json!({
        "app/readiness": { "grpc": { "port": 8080, "service": "well" }, "timeoutSeconds": 2 },
        "app/liveness": { "grpc": { "port": 8080, "service": "sick" }, "timeoutSeconds": 2 },
    });
    let spec = narrow(Spec::new(case, "calls", &[8080], app)).env("TIDEGATE_APP_PROBES", probes);
    let spec = spec.with("readinessProbe", rewritten("readiness"));
    let scene = Scene::new(case, spec, 8080, &ConfigMaps::new());
    let face = SocketAddr::new(scene.to.ip(), 15821);
    let sick = scene.network.node.enter(|| Http1::connect(face).get("/app-probe/app/liveness"));
    assert_eq!(sick.status, 503, "{sick:?}");
    scene.network.client.enter(|| http2::block_on(calls_overfill(&scene)));
    let (count, seed) = (scale(60, 2_000).to_string(), (Rng::announced() % 1_000).to_string());
    let said = scene
        .network
        .client
        .enter(|| succeed(storm.args([&scene.to.to_string(), "storm", &count, &seed])));
    let counted = || Counted::of(&scene.pod.volume("tmp").join("books"));
    until("the application has none left", Duration::from_secs(5), || counted().in_progress == 0);
    let peak = counted().peak;
    assert!((1..=2).contains(&peak), "{peak} handlers at once");
    let port = scene.gateway.port_at(scene.to.port());
    assert!(port.refused("queue_full") > 0, "{said} {port:?}");
    assert!(port.admitted as usize >= counted().begun, "{port:?}");
    scene.sink.wait_for("a span of a call", |spans| {
        spans.iter().any(|span| span.get("rpc.method").is_some())
    });
}

/// Two calls are held, two wait, the next one is refused; then the four are ended, and answered.
async fn calls_overfill(scene: &Scene) {
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let mut client = Http2::connect(scene.to).await;
    let mut held = Vec::new();
    for full in [(2, 0), (2, 2)] {
        for _ in 0..2 {
            held.push(
                client.open("POST", "/test.Calls/Bidi", &grpc, false).await.expect("a stream"),
            );
        }
        http2::until("they are in, or wait", SOON, || {
            let port = scene.gateway.port_at(scene.to.port());
            (port.active, port.queued) == full
        })
        .await;
    }
    let (next, _) = client.open("POST", "/test.Calls/Bidi", &grpc, true).await.expect("a stream");
    let refusal = http2::answer(next).await.expect("a refusal");
    assert_eq!(refusal.header("grpc-status"), Some("14"), "UNAVAILABLE: {refusal:?}");
    for (_, send) in &mut held {
        send.send_data(Vec::new().into(), true).expect("it is open");
    }
    for (response, _) in held {
        let answer = http2::answer(response).await.expect("an answer");
        let status = answer.trailers.iter().find(|(name, _)| name == "grpc-status");
        let status = status.map(|(_, value)| value.as_str()).or(answer.header("grpc-status"));
        assert_eq!(status, Some("0"), "{answer:?}");
    }
}
