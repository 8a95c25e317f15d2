//! The gateway: the real binary, as a child process, in front of an application.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;

use super::control::{self, Reply};
use super::seccomp::Denied;
use super::{Engine, SOON, Stopwatch, process, slack, until};

/// What is set before the start.
pub(crate) struct Setup {
    engine: &'static str,
    flags: Vec<String>,
    launcher: Vec<String>,
    denied: Option<Denied>,
    user: Option<u32>,
    environment: Vec<(String, String)>,
}

/// A running gateway. Dropping it kills it; its log is shown when the test fails.
pub(crate) struct Gateway {
    /// Where the first `--listen` really listens.
    pub(crate) address: SocketAddr,
    pub(crate) listens: Vec<SocketAddr>,
    pub(crate) pid: u32,
    /// Where its control socket and its log are.
    control: PathBuf,
    log: PathBuf,
    /// `None` when somebody else started it, and ends it.
    own: Option<Own>,
    baseline: Footprint,
}

/// The process, and the directory that its files are in.
struct Own {
    child: Child,
    _dir: tempfile::TempDir,
}

/// What must be back where it was when the load has gone (P11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Footprint {
    fds: usize,
    threads: usize,
    ring_ops: u64,
}

impl Setup {
    /// In front of `app` (`host:port` or `unix:/path`), for TCP, without a drain delay, and with patience.
    pub(crate) fn new(engine: Engine, app: impl ToString) -> Self {
        Self::without_port(engine).port(app)
    }

    /// For what chooses its own `--listen`.
    pub(crate) fn without_port(engine: Engine) -> Self {
        let setup = Self {
            engine: engine.name(),
            flags: Vec::new(),
            launcher: Vec::new(),
            denied: None,
            user: None,
            environment: Vec::new(),
        };
        let local = ["admin", "probe", "metrics"];
        let setup = local.iter().fold(setup, |setup, face| setup.set(face, "127.0.0.1:0"));
        // Whoever waits does so until he is let in, however slow the machine is: a test that is about a
        // shorter time says it.
        let setup = setup.set("queue-timeout", "60s").set("connect-timeout", "60s");
        setup.set("drain-delay", "0s").set("protocol", "tcp")
    }

    /// One more port, in front of `app`.
    pub(crate) fn port(self, app: impl ToString) -> Self {
        self.port_at("127.0.0.1:0", app)
    }

    /// One more port, at an address of the test's choice.
    pub(crate) fn port_at(self, listen: impl ToString, app: impl ToString) -> Self {
        self.flag("listen", format!("{}={}", listen.to_string(), app.to_string()))
    }

    /// `--key=value`; the last one holds.
    pub(crate) fn set(mut self, key: &str, value: impl ToString) -> Self {
        let flag = format!("--{key}=");
        self.flags.retain(|known| !known.starts_with(&flag));
        self.flag(key, value)
    }

    /// `--key=value` besides what was said before: settings of single ports.
    pub(crate) fn also(self, key: &str, value: impl ToString) -> Self {
        self.flag(key, value)
    }

    fn flag(mut self, key: &str, value: impl ToString) -> Self {
        self.flags.push(format!("--{key}={}", value.to_string()));
        self
    }

    /// A variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Lets the gateway choose its engine itself.
    pub(crate) fn choosing(mut self) -> Self {
        self.engine = "auto";
        self
    }

    /// Starts it through another program that ends in `exec`, like `prlimit --nofile=128`.
    pub(crate) fn through(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(ToString::to_string).collect();
        self
    }

    /// Makes `io_uring_setup` fail with `errno`.
    pub(crate) fn without_io_uring(self, errno: i32) -> Self {
        self.denying(libc::SYS_io_uring_setup, errno)
    }

    /// Makes the system call `number` fail with `errno`.
    pub(crate) fn denying(mut self, number: i64, errno: i32) -> Self {
        self.denied = Some(Denied { number, first: None, errno });
        self
    }

    /// Lets it make no socket of IPv6, as on a kernel that has none.
    pub(crate) fn without_ipv6(mut self) -> Self {
        let (number, family) = (libc::SYS_socket, libc::AF_INET6 as u32);
        self.denied = Some(Denied { number, first: Some(family), errno: libc::EAFNOSUPPORT });
        self
    }

    /// Says as which user the launcher starts it: it may write to its directory.
    pub(crate) fn owned_by(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub(crate) fn start(self) -> Gateway {
        match self.try_start() {
            Ok(gateway) => gateway,
            Err((status, log)) => panic!("the gateway ended at start with {status}:\n{log}"),
        }
    }

    /// Starts it and expects it to give up by itself; answers its exit status and its log.
    #[track_caller]
    pub(crate) fn start_in_vain(self) -> (ExitStatus, String) {
        match self.try_start() {
            Ok(gateway) => panic!("it serves: {:?}", gateway.status()),
            Err(gave_up) => gave_up,
        }
    }

    /// Starts it and waits until it serves or gives up.
    #[track_caller]
    pub(crate) fn try_start(self) -> Result<Gateway, (ExitStatus, String)> {
        let engine = self.engine;
        let listeners =
            self.flags.iter().filter(|flag| flag.starts_with("--listen=")).count() as u64;
        let mut gateway = self.launch();
        let start = Stopwatch::start();
        let status = loop {
            if let Some(status) = gateway.exit_status() {
                return Err((status, gateway.log()));
            }
            match gateway.try_status() {
                Some(status) if status.phase == "serving" => break status,
                _ => std::thread::sleep(Duration::from_millis(1)), // between two looks
            }
            let bound = slack(Duration::from_secs(2));
            assert!(!start.is_past(bound), "it does not serve after {bound:?}");
        };
        if engine != "auto" {
            assert_eq!(status.engine.name, engine, "it said: {}", status.engine.reason);
        }
        gateway.take_bearings(&status, listeners);
        Ok(gateway)
    }

    /// Starts it, and waits for nothing.
    pub(crate) fn launch(self) -> Gateway {
        let dir = tempfile::tempdir().expect("a temporary directory");
        if let Some(uid) = self.user {
            std::os::unix::fs::chown(dir.path(), Some(uid), None).expect("as root");
        }
        let binary = binary();
        let mut words = self.launcher;
        words.push(binary.to_str().expect("UTF-8").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("run");
        command.args(["--engine", self.engine]);
        command.arg("--control").arg(dir.path().join("control.sock"));
        command.args(&self.flags);
        for ours in ["TIDEGATE_BIN", "TIDEGATE_SEED", "TIDEGATE_SCREENSHOTS"] {
            command.env_remove(ours); // no settings of the gateway
        }
        command.envs(self.environment);
        let log = File::create(dir.path().join("log")).expect("a log file");
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        if let Some(denied) = self.denied {
            super::seccomp::deny(&mut command, denied);
        }
        let child = command.spawn().expect("the gateway's binary runs");
        let (control, log) = (dir.path().join("control.sock"), dir.path().join("log"));
        let mut gateway = Gateway::at(child.id(), control, log);
        gateway.own = Some(Own { child, _dir: dir });
        gateway
    }
}

/// The binary under test: `TIDEGATE_BIN` (a release binary), else the one cargo built.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("TIDEGATE_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_tidegate").into(), PathBuf::from)
}

impl Gateway {
    /// One that somebody else has started, and that serves.
    #[track_caller]
    pub(crate) fn adopt(pid: u32, control: PathBuf, log: PathBuf) -> Self {
        let mut gateway = Self::at(pid, control, log);
        let status = gateway.status();
        gateway.take_bearings(&status, 1);
        gateway
    }

    fn at(pid: u32, control: PathBuf, log: PathBuf) -> Self {
        Self {
            address: ([0, 0, 0, 0], 0).into(),
            listens: Vec::new(),
            pid,
            control,
            log,
            own: None,
            baseline: Footprint { fds: 0, threads: 0, ring_ops: 0 },
        }
    }

    /// Where it listens, and what it has open before anybody came.
    #[track_caller]
    fn take_bearings(&mut self, status: &Status, listeners: u64) {
        let listens = status.ports.iter().map(|port| {
            let listen = port.listen.parse::<SocketAddr>();
            listen.expect("the status names the real address")
        });
        self.listens = listens.collect();
        self.address = self.listens[0];
        self.baseline = self.settled_footprint(status.workers * listeners);
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        let own = self.own.as_mut().expect("who started it waits for it");
        own.child.try_wait().expect("it is our child")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.control.clone()
    }

    /// Everything it has written to stdout and stderr.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// One request to the control socket that must be answered.
    #[track_caller]
    pub(crate) fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        let reply = control::call(&self.control(), method, path, body, SOON);
        reply.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        let reply = self.call("GET", "/status.json", "");
        assert_eq!(reply.code, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.body))
    }

    fn try_status(&self) -> Option<Status> {
        let patience = Duration::from_millis(500);
        let reply = control::call(&self.control(), "GET", "/status.json", "", patience).ok()?;
        serde_json::from_str(&reply.body).ok()
    }

    /// The first port's part of the status.
    #[track_caller]
    pub(crate) fn port(&self) -> Port {
        self.status().ports.swap_remove(0)
    }

    /// The part of the status that is about this port.
    #[track_caller]
    pub(crate) fn port_at(&self, number: u16) -> Port {
        let ports = self.status().ports.into_iter();
        let known = |port: &Port| port.listen.ends_with(&format!(":{number}"));
        ports.into_iter().find(known).unwrap_or_else(|| panic!("no port {number}"))
    }

    /// Changes one setting while it runs.
    #[track_caller]
    pub(crate) fn set(&self, key: &str, value: impl ToString) {
        let body = serde_json::json!({ key: value.to_string() }).to_string();
        let reply = self.call("POST", "/set", &body);
        assert!(reply.code < 300, "set {key}: {} {}", reply.code, reply.body);
    }

    /// Begins the drain, and waits for its report in the background: when it has drained it may exit.
    #[track_caller]
    pub(crate) fn drain(&self) -> Draining {
        let reply = self.call("POST", "/drain", "");
        assert!(reply.code < 300, "drain: {} {}", reply.code, reply.body);
        self.await_drain()
    }

    /// Waits for the report of a drain that somebody else begins.
    pub(crate) fn await_drain(&self) -> Draining {
        let control = self.control();
        let patience = Duration::from_secs(60);
        let wait = move || control::call(&control, "GET", "/drain/wait", "", patience);
        Draining(std::thread::spawn(wait))
    }

    /// Every sample of the metrics, by its name and labels as written.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Vec<(String, f64)> {
        let body = self.call("GET", "/metrics", "").body;
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        samples.collect()
    }

    /// The sum of a metric over all its labels that contain `label`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let samples = self.metrics();
        let wanted = samples.iter().filter(|(sample, _)| {
            let of_name = sample.strip_prefix(name);
            of_name.is_some_and(|labels| {
                (labels.is_empty() || labels.starts_with('{')) && labels.contains(label)
            })
        });
        wanted.map(|(_, value)| value).sum()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.pid, signal);
    }

    /// Stands still (SIGSTOP) while `meanwhile` runs. Whoever connects then is in the backlog with all that
    /// he has written, so that to the gateway all come at once, and no word comes later than its connection.
    #[track_caller]
    pub(crate) fn paused<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        /// Goes on when dropped.
        struct Standing<'a>(&'a Gateway);
        impl Drop for Standing<'_> {
            fn drop(&mut self) {
                self.0.signal(Signal::CONT);
            }
        }
        self.signal(Signal::STOP);
        let _standing = Standing(self);
        until("every thread of it stands", SOON, || process::stands(self.pid));
        meanwhile()
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, bound: Duration) -> ExitStatus {
        let start = Stopwatch::start();
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            assert!(!start.is_past(bound), "it did not exit within {bound:?}");
            std::thread::sleep(Duration::from_millis(1)); // between two looks
        }
    }

    /// SIGTERM, and a clean exit within `bound`; answers how long it took, in own time, for bounds from above.
    #[track_caller]
    pub(crate) fn terminate(&mut self, bound: Duration) -> Duration {
        let start = Stopwatch::start();
        self.signal(Signal::TERM);
        let status = self.wait_exit(bound);
        assert_eq!(status.code(), Some(0), "a drain ends with exit 0");
        start.own()
    }

    /// P11 and the books: everything is back at the baseline within 2 s, and each connection that was
    /// accepted ended exactly once.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let start = Stopwatch::start();
        let bound = slack(Duration::from_secs(2));
        while let Some(left) = self.left_over() {
            assert!(!start.is_past(bound), "not clean after {bound:?}: {left}");
            std::thread::sleep(Duration::from_millis(20)); // between two looks
        }
        for port in self.status().ports {
            let ended = port.outcomes.values().sum::<u64>() + port.refused.values().sum::<u64>();
            assert_eq!(port.accepted, ended, "accepted and ended of {port:?}");
        }
    }

    /// How many descriptors it has more than when it began to serve.
    pub(crate) fn fds_since_start(&self) -> i64 {
        process::open_fds(self.pid) as i64 - self.baseline.fds as i64
    }

    /// What is not as it was, if anything.
    fn left_over(&self) -> Option<String> {
        let Some(status) = self.try_status() else { return Some("it gives no status".to_owned()) };
        let (mut now, was) = (self.footprint(&status), self.baseline);
        // Our own question ends when we have the answer: its descriptor may still be there, each time we ask.
        for _ in 0..10 {
            if now.fds <= was.fds {
                break;
            }
            std::thread::sleep(Duration::from_millis(5)); // between two looks
            now = self.footprint(&status);
        }
        let ports_idle = status.ports.iter().all(|port| port.active == 0 && port.queued == 0);
        let idle = ports_idle && status.connections == 0 && status.pools.in_use == 0;
        let small =
            now.fds <= was.fds && now.threads <= was.threads && now.ring_ops <= was.ring_ops;
        (!idle || !small).then(|| {
            let open = process::details(self.pid);
            format!("{status:?}, now {now:?}, at start {was:?}\n{open}")
        })
    }

    fn footprint(&self, status: &Status) -> Footprint {
        Footprint {
            fds: process::open_fds(self.pid),
            threads: process::threads(self.pid),
            ring_ops: status.ring_ops,
        }
    }

    /// The footprint once the start, and our own question, have left no trace: the same for 50 ms.
    fn settled_footprint(&self, accepts: u64) -> Footprint {
        let status = self.status();
        let mut last = self.footprint(&status);
        let mut same = 0;
        while same < 10 {
            std::thread::sleep(Duration::from_millis(5)); // between two looks
            let look = self.footprint(&status);
            same = if look == last { same + 1 } else { 0 };
            last = look;
        }
        if status.engine.name == "uring" {
            until("every worker accepts", SOON, || self.status().ring_ops >= accepts);
        }
        // Only now the workers certainly have their standing operations in the ring.
        last.ring_ops = last.ring_ops.max(self.status().ring_ops);
        last
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(status) = self.try_status() {
                eprintln!("--- the gateway's last status: {status:?}");
            }
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- the gateway's last words:\n{}\n---", tail.join("\n"));
        }
        if let Some(own) = &mut self.own {
            let _ = own.child.kill();
            let _ = own.child.wait();
        }
    }
}

/// `GET /status.json`, as far as tests look at it.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) engine: Chosen,
    pub(crate) phase: String,
    pub(crate) probe: SocketAddr,
    pub(crate) ports: Vec<Port>,
    pub(crate) connections: u64,
    workers: u64,
    pub(crate) pools: Pools,
    #[serde(default)]
    pub(crate) ring_ops: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Chosen {
    pub(crate) name: String,
    pub(crate) reason: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Pools {
    pub(crate) in_use: u64,
}

/// One port in the status.
#[derive(Debug, Deserialize)]
pub(crate) struct Port {
    pub(crate) listen: String,
    pub(crate) mode: String,
    #[serde(default)]
    pub(crate) protocol: String,
    pub(crate) limit: Option<u64>,
    pub(crate) active: u64,
    pub(crate) queued: u64,
    pub(crate) queue_length: u64,
    pub(crate) peak_active: u64,
    pub(crate) bypass: Option<u64>,
    pub(crate) accepted: u64,
    pub(crate) admitted: u64,
    pub(crate) outcomes: std::collections::BTreeMap<String, u64>,
    pub(crate) refused: std::collections::BTreeMap<String, u64>,
    pub(crate) would_refuse: u64,
    pub(crate) shadow: std::collections::BTreeMap<String, u64>,
}

impl Port {
    /// How many were refused for this reason.
    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.refused.get(reason).copied().unwrap_or(0)
    }

    /// How many ended in this way after they had been admitted.
    pub(crate) fn outcome(&self, label: &str) -> u64 {
        self.outcomes.get(label).copied().unwrap_or(0)
    }
}

/// A drain under way.
pub(crate) struct Draining(JoinHandle<std::io::Result<Reply>>);

impl Draining {
    /// Waits for its end.
    #[track_caller]
    pub(crate) fn report(self) -> DrainReport {
        let reply = self.0.join().expect("no panic");
        let body = reply.unwrap_or_else(|error| panic!("no drain report: {error}")).body;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }
}

/// What the drain did.
#[derive(Debug, Deserialize)]
pub(crate) struct DrainReport {
    pub(crate) in_flight_at_start: u64,
    pub(crate) queued_at_start: u64,
    pub(crate) finished: u64,
    pub(crate) cut: u64,
    pub(crate) late_arrivals: u64,
    pub(crate) refused: u64,
}
