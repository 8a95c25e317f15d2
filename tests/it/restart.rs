//! P6 in a pod: hooks and signals in the order the kubelet sends them. What a hook alone has started is taken
//! back when the application starts anew; what a signal has started never is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::probes::ask;
use crate::support::app_process::AppProcess;
use crate::support::gateway::{Gateway, Setup, binary};
use crate::support::ledger::{self, Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, engines, run, slack, until};

engines!(
    serves_again_when_the_application_has_started_anew,
    an_announced_drain_is_taken_back_without_a_closed_door,
    what_a_signal_has_asked_for_is_not_taken_back,
    without_an_application_there_is_nothing_to_announce,
    hooks_wait_until_it_is_drained,
    a_hook_that_starts_late_is_waited_for,
);

/// What looks like a pod.
fn pod(engine: Engine, app: &AppProcess) -> Setup {
    Setup::new(engine, app.address).env("TIDEGATE_POD_IP", "127.0.0.1").set("limit", 8)
}

/// A request that takes so long is in progress, and a drain is announced for 200 ms; the probes' address.
fn at_work(engine: Engine, app: &AppProcess, work: Duration) -> (Gateway, Client, SocketAddr) {
    let gateway = pod(engine, app).set("drain-delay", "200ms").start();
    let busy = Client::asking(gateway.address, work);
    until("it is in", SOON, || gateway.port().active == 1);
    let face = gateway.status().probe;
    (gateway, busy, face)
}

/// When its answer had come; only then does it leave, and nothing is over before.
fn answered(mut busy: Client) -> Instant {
    let mut answer = [0; 8];
    busy.stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer, busy.id.to_le_bytes());
    Instant::now()
}

/// The sidecar's preStop.
fn hook(gateway: &Gateway) -> Output {
    let mut command = Command::new(binary());
    command.arg("drain").arg("--control").arg(gateway.control());
    command.output().expect("it runs")
}

/// `tidegate status`
fn said(gateway: &Gateway) -> String {
    let mut command = Command::new(binary());
    let output = command.arg("status").arg("--control").arg(gateway.control()).output();
    String::from_utf8(output.expect("it runs").stdout).expect("UTF-8")
}

fn ready(gateway: &Gateway) -> bool {
    ask(gateway.status().probe, "GET /readyz", "").0 == 200
}

fn serves(gateway: &Gateway) -> bool {
    ledger::exchange(gateway.address, Duration::ZERO, SOON) == End::Answered
}

/// T14: the hook runs three times, the application is restarted, and nobody ends us.
fn serves_again_when_the_application_has_started_anew(engine: Engine) {
    let mut app = AppProcess::work();
    let address = app.address;
    let mut gateway = pod(engine, &app).set("workers", 2).start();
    assert!(ready(&gateway) && serves(&gateway));
    // Twice: the second time nothing may be left of the first.
    for round in 1..=2 {
        for _ in 0..3 {
            let hook = hook(&gateway);
            assert!(hook.status.success(), "{hook:?}");
        }
        until("it has drained", SOON, || gateway.status().phase == "drained");
        assert!(!ready(&gateway));
        assert!(TcpStream::connect(gateway.address).is_err(), "nobody listens");
        app.kill();
        assert!(!ready(&gateway), "there is no application");

        app = AppProcess::start(address, "work");
        let took = until("it is ready", SOON, || ready(&gateway));
        assert!(took < slack(Duration::from_secs(1)), "round {round}: {took:?}");
        assert_eq!(gateway.status().phase, "serving");
        let mut clients: Vec<_> =
            (0..8).map(|_| Client::asking(gateway.address, Duration::from_millis(50))).collect();
        assert!(clients.iter_mut().all(|client| client.end() == End::Answered));
        assert_eq!(gateway.metric("tidegate_drains_taken_back_total", ""), f64::from(round));
        let told = if round == 1 { "1 drain was taken back" } else { "2 drains were taken back" };
        let text = said(&gateway);
        assert!(text.contains(told), "{text}");
    }
    gateway.assert_clean();
    assert_eq!(gateway.port().accepted, 1 + 2 * 8, "the books go on");
    gateway.terminate(slack(Duration::from_secs(2)));
}

/// While it is only announced, nothing has been closed that would have to be opened again.
fn an_announced_drain_is_taken_back_without_a_closed_door(engine: Engine) {
    let app = AppProcess::work();
    let address = app.address;
    let mut gateway = pod(engine, &app).set("drain-delay", "10s").start();
    let kept = TcpStream::connect(gateway.address).expect("connects");
    until("it is in", SOON, || gateway.port().accepted == 1);
    let face = gateway.status().probe;
    std::thread::scope(|scope| {
        assert!(hook(&gateway).status.success());
        let other = scope.spawn(move || ask(face, "GET /drain/wait", ""));
        assert!(!ready(&gateway));
        assert!(serves(&gateway), "it is only announced");
        // Quicker than anybody looks: it is the sockets that tell.
        let _app = gateway.paused(|| {
            app.kill();
            AppProcess::start(address, "work")
        });
        until("it is ready", SOON, || ready(&gateway));
        assert_eq!(other.join().expect("no panic").0, 200, "nobody waits for ever");
        assert!(serves(&gateway));
    });
    drop(kept);
    gateway.terminate(SOON);
}

/// SIGTERM after the hook: the application may start anew as often as it likes, and the drain goes on.
fn what_a_signal_has_asked_for_is_not_taken_back(engine: Engine) {
    let app = AppProcess::echo();
    let address = app.address;
    let mut gateway = pod(engine, &app).start();
    let mut busy = Client::connect(gateway.address).expect("connects").stream;
    let mut say = |word: &[u8; 3]| {
        let mut echo = [0; 3];
        busy.write_all(word).and_then(|()| busy.read_exact(&mut echo)).expect("an echo");
        assert_eq!(&echo, word);
    };
    say(b"one");
    assert!(hook(&gateway).status.success());
    gateway.signal(Signal::TERM);
    until("it closes", SOON, || gateway.status().phase == "closing");
    say(b"two");
    drop(busy);
    let status = gateway.wait_exit(slack(Duration::from_secs(1)));
    assert_eq!(status.code(), Some(0));
    app.kill();
    let _again = AppProcess::start(address, "echo");
}

/// The last container has gone before our own signal comes, as with a native sidecar: it ends at once.
fn without_an_application_there_is_nothing_to_announce(engine: Engine) {
    let app = AppProcess::work();
    let mut gateway = pod(engine, &app).set("drain-delay", "10s").start();
    assert!(serves(&gateway));
    app.kill();
    let took = gateway.terminate(SOON);
    assert!(took < slack(Duration::from_secs(1)), "{took:?}");

    // Nor is there when it goes while it is announced.
    let app = AppProcess::work();
    let mut gateway = pod(engine, &app).set("drain-delay", "10s").start();
    assert!(hook(&gateway).status.success());
    assert!(serves(&gateway), "it is only announced");
    app.kill();
    until("it has drained", slack(Duration::from_secs(1)), || gateway.status().phase == "drained");
    gateway.terminate(slack(Duration::from_secs(1)));
}

/// The kubelet's order: all hooks at once; those of the application return when the work is done, the signals
/// follow. One of the callers leaves, and nobody who still waits holds up the end.
fn hooks_wait_until_it_is_drained(engine: Engine) {
    let app = AppProcess::work();
    let (mut gateway, busy, face) = at_work(engine, &app, Duration::from_secs(1));
    std::thread::scope(|scope| {
        let hooks: Vec<_> = (0..8)
            .map(|_| scope.spawn(move || (ask(face, "GET /drain/wait", ""), Instant::now())))
            .collect();
        let leaves = TcpStream::connect(face).expect("connects");
        (&leaves).write_all(b"GET /drain/wait HTTP/1.1\r\nHost: x\r\n\r\n").expect("it is read");
        assert!(hook(&gateway).status.success());
        drop(leaves);
        let since = Stopwatch::start();
        let done = answered(busy);
        for hook in hooks {
            let ((code, body), at) = hook.join().expect("no panic");
            assert_eq!((code, body.as_str()), (200, "drained"));
            assert!(at >= done, "it returned before the work was done");
            let late = (at - done).saturating_sub(since.withheld());
            assert!(late < slack(Duration::from_millis(250)), "{late:?}");
        }
    });
    let report = gateway.call("GET", "/drain/wait", "").body;
    assert!(report.contains("\"cause\":\"request\"") && report.contains("\"cut\":0"), "{report}");
    app.kill();
    gateway.terminate(slack(Duration::from_secs(1)));
}

/// On a node that has too much to do, the process that begins the drain takes its time to start; the
/// application's hook has been asking for a while.
fn a_hook_that_starts_late_is_waited_for(engine: Engine) {
    let app = AppProcess::work();
    let (mut gateway, busy, face) = at_work(engine, &app, Duration::from_secs(3));
    let waits = std::thread::spawn(move || (ask(face, "GET /drain/wait", ""), Instant::now()));
    std::thread::sleep(Duration::from_secs(2)); // how late it is
    assert!(hook(&gateway).status.success());
    let done = answered(busy);
    let ((code, body), at) = waits.join().expect("no panic");
    assert_eq!((code, body.as_str()), (200, "drained"));
    assert!(at >= done, "the application was told to end with work under way");
    app.kill();
    gateway.terminate(slack(Duration::from_secs(1)));
}

/// In a pod nobody but the kubelet ends it; and if it does not for as long as it would have taken, the pod
/// is not going away.
#[test]
fn a_drain_that_nobody_follows_up_is_taken_back_when_the_grace_is_over() {
    run(Engine::Epoll, |engine| {
        let app = AppProcess::work();
        let mut gateway = pod(engine, &app).set("grace", "1s").start();
        let told = Instant::now();
        assert!(hook(&gateway).status.success());
        until("it has drained", SOON, || gateway.status().phase == "drained");
        until("it is ready", SOON, || ready(&gateway));
        let took = told.elapsed();
        assert!(took > Duration::from_secs(4), "a process by hand would have ended: {took:?}");
        assert!(serves(&gateway));
        gateway.terminate(SOON);
    });
}

/// The injector knows that a container keeps its own hook; people are told.
#[test]
fn a_partial_drain_is_told() {
    run(Engine::Epoll, |engine| {
        let app = Oracle::start(Script::Work);
        for (partial, told) in [("true", true), ("false", false)] {
            let gateway =
                Setup::new(engine, app.address).env("TIDEGATE_DRAIN_PARTIAL", partial).start();
            let text = said(&gateway);
            assert_eq!(text.contains("drain=partial"), told, "{text}");
        }
    });
}
