//! P9, T44: CPython's own tests of the network give the same results with the gateway in between.
//!
//! ```text
//!  a test's client ══ output: what is dialled over lo, but not by the gateway ══→ :15801 ──→ a test's server
//! ```
//!
//! In a pod what is dialled inside is never captured, and these tests dial nobody else. So a rule of the
//! test's own redirects it here; the gateway's dials are left out by its user. To the tests' servers and
//! clients that is what capture is to a client elsewhere. What differs is listed below, each with its reason;
//! whatever else differs is a failure.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::gateway::{Gateway, Setup};
use crate::support::namespace::{self, Space};
use crate::support::{Engine, engines, scale, skip};

engines!(the_same_results_with_and_without);

/// All of them, for the soak.
const WHOLE: &[&str] = &[
    "test.test_socket",
    "test.test_ssl",
    "test.test_httplib",
    "test.test_ftplib",
    "test.test_smtplib",
    "test.test_asyncio",
];

/// Those that open many connections in a short time.
const SHORT: &[&str] = &[
    "test.test_socket.BasicTCPTest",
    "test.test_socket.FileObjectClassTestCase",
    "test.test_socket.NetworkConnectionNoServer",
    "test.test_socket.SendfileUsingSendTest",
    "test.test_ssl.SimpleBackgroundTests",
    "test.test_httplib",
    "test.test_ftplib.TestFTPClass",
    "test.test_smtplib",
    "test.test_asyncio.test_sendfile.EPollEventLoopTests",
    "test.test_asyncio.test_server",
    "test.test_asyncio.test_sock_lowlevel",
    "test.test_asyncio.test_streams",
];

/// Why those differ that do, by the end of their names.
const DIFFERENT: [(&str, &str); 5] = [
    (
        "a gateway accepts before it dials: whoever calls a port that nobody listens on is not refused \
         by the kernel, but closed by the gateway",
        "NetworkConnectionNoServer.test_connect \
         NetworkConnectionNoServer.test_create_connection \
         NetworkConnectionNoServer.test_create_connection_all_errors \
         BasicSocketTests.test_connect_ex_error \
         EventLoopTests.test_create_connection_local_addr_skip_different_family \
         EventLoopTests.test_server_close \
         EventLoopTests.test_cancel_sock_accept \
         EventLoopTests.test_sock_client_fail \
         TestSSL.test_connect_timeout_warning",
    ),
    (
        "the server's peer is the gateway, not the client",
        "ThreadedTests.test_server_accept EventLoopTests.test_sock_accept",
    ),
    (
        "there are more buffers on the way: the client has sent all it has before it hears that the \
         server has closed in the middle",
        "EventLoopTests.test_sendfile_close_peer_in_the_middle_of_receiving",
    ),
    (
        "what a client does reaches the server a moment later: here its reset, which the server is to \
         have had when it goes on",
        "TestPreHandshakeClose.test_preauth_data_to_tls_server",
    ),
    (
        "the test ends its server when its client is content, which is before the gateway has dialled",
        "StreamTests.test_unhandled_exceptions",
    ),
];

fn the_same_results_with_and_without(engine: Engine) {
    if let Some(reason) = namespace::missing() {
        return skip(reason);
    }
    let Some(python) = python() else {
        return skip(
            "no Python here has its own tests: libpython3.11-testsuite, or a later one, is not installed",
        );
    };
    let chosen = if scale(0, 1) == 0 { SHORT } else { WHOLE };
    let (alone, space) = (Space::new(), Space::new());
    let gateway = captured(engine, &space);
    let both = |what: &[&str]| {
        std::thread::scope(|scope| {
            let without = scope.spawn(|| results(python, &alone, what));
            (results(python, &space, what), without.join().expect("no panic"))
        })
    };
    let (with, without) = both(chosen);
    let names: Vec<_> = without.keys().collect();
    assert_eq!(names, with.keys().collect::<Vec<_>>(), "the same tests");
    assert!(with.len() >= scale(300, 2_500), "only {} tests: {names:?}", with.len());

    let differ = with.iter().filter(|(name, how)| without[*name].0 != how.0);
    for (name, how) in differ.filter(|(name, _)| !explained(name)) {
        // On a machine that is busy a test of time goes wrong now and then, on either side.
        eprintln!("again: {name}: {how:?} with, {:?} without", without[name]);
        let again = (0..3).map(|_| both(&[name.as_str()]));
        let same = again.filter(|(with, without)| with[name].0 == without[name].0);
        assert!(
            same.take(2).count() == 2,
            "{name} with the gateway: {how:?}, without: {:?}",
            without[name]
        );
    }
    report_what_is_explained_in_vain(&with, &without);
    let ports = gateway.status().ports;
    let carried: u64 = ports.iter().map(|port| port.admitted).sum();
    eprintln!("{} tests, {carried} connections", with.len());
    assert!(carried > scale(100, 800) as u64, "the gateway carried {carried} connections");
    gateway.assert_clean();
}

/// Of the whole tests: a reason that nothing has any more can go.
fn report_what_is_explained_in_vain(with: &Results, without: &Results) {
    for known in DIFFERENT.iter().flat_map(|(_, names)| names.split_whitespace()) {
        let mut named = with.iter().filter(|(name, _)| name.ends_with(known));
        if scale(0, 1) == 1 && named.all(|(name, how)| without[name].0 == how.0) {
            eprintln!("listed as different, and the same today: {known}");
        }
    }
}

fn explained(name: &str) -> bool {
    let mut known = DIFFERENT.iter().flat_map(|(_, names)| names.split_whitespace());
    known.any(|known| name.ends_with(known))
}

/// A Python with its tests.
fn python() -> Option<&'static str> {
    let has_tests = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import test.test_socket"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has_tests)
}

/// How each test went, and why.
type Results = BTreeMap<String, (String, String)>;

fn results(python: &str, space: &Space, what: &[&str]) -> Results {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/cpython_tests.py");
    let mut command = Command::new(python);
    command.arg(&script).args(what).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = space.enter(|| command.output().expect("Python runs"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut results = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.split('\t').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        let (name, how, why) = (word(), word(), word());
        results.insert(name, (how, why));
    }
    results
}

/// A gateway for whatever is dialled over `lo` by others than itself.
fn captured(engine: Engine, space: &Space) -> Gateway {
    let faces = "15800-15830";
    space.succeed(&[
        "nft",
        &format!(
            "add table inet round
             add chain inet round out {{ type nat hook output priority -100 ; }}
             add rule inet round out oif lo meta skuid != 15800 tcp dport != {faces} redirect to :15801"
        ),
    ]);
    let mut words = space.launcher();
    words
        .extend(["setpriv", "--reuid=15800", "--regid=15800", "--clear-groups"].map(str::to_owned));
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let faces = [("admin", 15820), ("probe", 15821), ("metrics", 15822)];
    let setup = Setup::without_port(engine).set("capture", "[::]:15801").through(&words);
    let setup = faces
        .iter()
        .fold(setup, |setup, (face, port)| setup.set(face, format!("127.0.0.1:{port}")));
    setup.owned_by(15800).start()
}
