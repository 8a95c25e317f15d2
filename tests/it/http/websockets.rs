//! WebSockets: what the test suites of others say of a client and a server they say with the gateway in
//! between too (P5, P9).
//!
//! Tornado's own tests take seconds and always run. Autobahn's cases need a Python 2.7: a few of them run
//! where `tests/apps/setup soak` has been able to install them, and nearly all of those for a server with
//! `SOAK=1`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Deserialize;

use crate::support::gateway::Setup;
use crate::support::server::Server;
use crate::support::{Engine, engines, scale, skip};

use super::outside::{self, NO_VENV, succeed};
use super::{assert_settled, gate};

engines!(beside: tornados_own_tests, autobahns_cases_for_a_server, autobahns_cases_for_a_client);

/// What was said, by the name of the test or case.
type Said<T> = BTreeMap<String, T>;

/// Tests of Tornado's that look at what no proxy can keep.
const NO_PROXY_CAN: [(&str, &str); 1] = [(
    "WebSocketTest.test_websocket_network_fail",
    "nobody listens, and the client shall see it in its connect: here the gateway listens, and answers 502",
)];

/// More than the servers of Tornado's tests, which have a port each.
const PORTS: usize = 100;

/// Each server of the tests is behind a port of the gateway, and each client is led there.
fn tornados_own_tests(engine: Engine) {
    static DIRECT: OnceLock<Said<String>> = OnceLock::new();
    if outside::client("tornado_websocket_tests.py").is_none() {
        return skip(NO_VENV);
    }
    let direct = DIRECT.get_or_init(|| tornado_says(&[]));
    assert!(direct.len() >= 70 && direct.values().all(|said| said != "failed"), "{direct:#?}");
    let apps = free_ports(PORTS);
    let setup = apps.iter().fold(Setup::without_port(engine), |setup, app| {
        setup.port(format_args!("127.0.0.1:{app}"))
    });
    let gateway = setup.set("protocol", "http").set("limit", 8).start();
    let pairs = apps.iter().zip(&gateway.listens);
    let pairs: Vec<_> = pairs.map(|(app, listen)| format!("{app}={}", listen.port())).collect();
    let mut through = tornado_says(&pairs);
    for (name, reason) in NO_PROXY_CAN {
        let said = through.insert(name.to_owned(), direct[name].clone());
        assert_eq!(said.as_deref(), Some("failed"), "{name} is excepted in vain: {reason}");
    }
    assert_same(direct, &through);
    let admitted: u64 = gateway.status().ports.iter().map(|port| port.admitted).sum();
    assert!(admitted >= 60, "only {admitted} requests went through the gateway");
    gateway.assert_clean();
}

fn tornado_says(pairs: &[String]) -> Said<String> {
    let mut tests = outside::client("tornado_websocket_tests.py").expect("just had it");
    tests.env("ASYNC_TEST_TIMEOUT", "60"); // seconds; 5 are its own
    let output = tests.args(pairs).output().expect("it runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = said.lines().map(|line| line.split_once(' ').expect("an outcome and a name"));
    lines.map(|(outcome, name)| (name.to_owned(), outcome.to_owned())).collect()
}

/// Below those that the kernel gives to clients, so that none of them is taken meanwhile; and each time others,
/// because they are not bound before they are used.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: Mutex<u16> = Mutex::new(20_000);
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let first = (*next).max(20_000 + (std::process::id() % 100) as u16 * 100);
    let free = (first..32_000).filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    let free: Vec<_> = free.take(count).collect();
    *next = free.last().expect("some are free") + 1;
    free
}

/// A sample of Autobahn's cases: everything but long messages.
const FEW: [&str; 8] = ["1.*", "2.*", "3.*", "4.*", "5.*", "7.*", "12.1.1", "13.1.1"];

/// What Autobahn found in one case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    behavior: String,
    behavior_close: String,
    remote_close_code: Option<u16>,
}

/// Autobahn's client, which breaks the rules, and a server made with `websockets`.
fn autobahns_cases_for_a_server(engine: Engine) {
    static DIRECT: OnceLock<Said<Found>> = OnceLock::new();
    let Some(wstest) = installed_wstest() else {
        return;
    };
    let server = Server::start(|_, port| {
        let mut testee = outside::client("websockets_testee.py").expect("wstest is there too");
        testee.args(["serve", &port.to_string()]);
        testee
    });
    let fuzz = |address: &str| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let servers = serde_json::json!([{ "agent": "server", "url": format!("ws://{address}") }]);
        let cases: &[&str] = if scale(0, 1) == 1 { &["*"] } else { &FEW };
        write_spec(dir.path(), cases, "servers", servers);
        succeed(wstest("fuzzingclient").current_dir(dir.path()));
        found(dir.path(), "server")
    };
    let direct = DIRECT.get_or_init(|| fuzz(&server.address()));
    let gateway = gate(engine, server.address()).set("limit", 8).start();
    assert_same(direct, &fuzz(&gateway.address.to_string()));
    assert_eq!(gateway.port().admitted, direct.len() as u64, "each case was a request");
    assert_settled(&gateway, server.port);
}

/// Autobahn's server, which breaks the rules, and a client made with `websockets`. The sample is all there
/// is of it: of several hundred cases in this direction Autobahn did not write its report.
fn autobahns_cases_for_a_client(engine: Engine) {
    static DIRECT: OnceLock<Said<Found>> = OnceLock::new();
    let Some(wstest) = installed_wstest() else {
        return;
    };
    let server = Server::start(|dir, port| {
        write_spec(dir, &FEW, "url", format!("ws://127.0.0.1:{port}").into());
        let mut server = wstest("fuzzingserver");
        server.args(["--webport", "0"]).current_dir(dir);
        server
    });
    let url = format!("ws://{}", server.address());
    let visit = |port: u16, name: &str| {
        let mut testee = outside::client("websockets_testee.py").expect("wstest is there too");
        succeed(testee.args(["visit", &url, &port.to_string(), name]));
        found(server.dir.path(), name)
    };
    let direct = DIRECT.get_or_init(|| visit(server.port, "direct"));
    let gateway = gate(engine, server.address()).set("limit", 8).start();
    assert_same(direct, &visit(gateway.address.port(), "through"));
    assert_settled(&gateway, server.port);
}

/// Makes commands of `wstest`, Autobahn's program, where it is installed.
fn installed_wstest() -> Option<impl Fn(&str) -> Command> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/.autobahn");
    if !home.join("done").exists() {
        let asked_for = scale(0, 1) == 1;
        let missing = std::fs::read_to_string(home.join("missing"));
        match missing {
            Ok(missing) if asked_for => skip(missing.trim()),
            Err(_) if asked_for => panic!("run `tests/apps/setup soak`"),
            _ => eprintln!("Autobahn's cases are not installed: left to the soak"),
        }
        return None;
    }
    Some(move |mode: &str| {
        let mut command = Command::new(home.join("bin/wstest"));
        command.args(["--mode", mode, "--spec", "spec.json"]);
        command.env("PYTHONUSERBASE", &home).env("PYTHONWARNINGS", "ignore");
        command
    })
}

/// The cases to run, against whom, and where to say it. Left out are the largest of the compressed
/// messages: ten minutes of compression in Python for each run, and nothing else that the others lack.
fn write_spec(dir: &Path, cases: &[&str], key: &str, whom: serde_json::Value) {
    let largest = ["1[23].*.1[03-8]$"]; // 12.1.10, 12.1.13, …: a pattern with a star is a regular expression
    let spec = serde_json::json!(
        { "outdir": "found", "cases": cases, "exclude-cases": largest, key: whom }
    );
    std::fs::write(dir.join("spec.json"), spec.to_string()).expect("writes");
}

/// What Autobahn wrote down of the one it calls `name`. A case is `NON-STRICT` when the testee saw a broken
/// frame before it had sent back the message in front of it. That depends on how the bytes are cut into
/// reads, which TCP does not promise, and differs between two runs without a gateway: it is as good as `OK`.
fn found(dir: &Path, name: &str) -> Said<Found> {
    let text =
        std::fs::read_to_string(dir.join("found/index.json")).expect("wstest has ended well");
    let mut all: Said<Said<Found>> = serde_json::from_str(&text).expect("its index");
    let mut found = all.remove(name).expect("the cases of this name");
    for found in found.values_mut().filter(|found| found.behavior == "NON-STRICT") {
        found.behavior = "OK".to_owned();
    }
    found
}

/// The same was said of each; otherwise everything that differs.
#[track_caller]
fn assert_same<T: Debug + PartialEq>(direct: &Said<T>, through: &Said<T>) {
    let names = direct.keys().chain(through.keys().filter(|name| !direct.contains_key(*name)));
    let differing = names.filter(|name| direct.get(*name) != through.get(*name));
    let lines = differing.map(|name| {
        format!("{name}: {:?} directly, {:?} through", direct.get(name), through.get(name))
    });
    let lines: Vec<_> = lines.collect();
    assert!(lines.is_empty(), "{} of {} differ:\n{}", lines.len(), direct.len(), lines.join("\n"));
}
