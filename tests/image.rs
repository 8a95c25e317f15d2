//! The image as it is run: by crun, a real container runtime, as the user the Dockerfile names, with a root that is
//! read-only, no capability, and a seccomp filter: such as the runtimes' own, which forbids io_uring, and the
//! chart's, which allows what it names and nothing else.
//!
//! What is in it is the binary that cargo built here, with the libraries it wants: a release build takes minutes, and
//! the image's own binary wants none. `TIDEGATE_BIN` names another, such as a static one; then the figures
//! printed are the image's.

mod seccomp;
mod skip;
mod stopwatch;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The bound for things that have no promised time.
const SOON: Duration = Duration::from_secs(30);

/// The image's user.
const USER: u32 = 15800;

/// More than this is not small: 22 MiB are what it has come to, most of it code.
const SMALL: u64 = 28 << 20;

/// The seccomp filter of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    /// What runtimes refuse by default is refused, the rest is allowed.
    Runtime,
    /// The chart's profile: what it names is allowed, the rest is refused.
    Shipped,
    /// The same without io_uring: what is left is all that epoll needs.
    ShippedWithoutIoUring,
}

impl Filter {
    const ALL: [Self; 3] = [Self::Runtime, Self::Shipped, Self::ShippedWithoutIoUring];

    /// As the OCI's configuration has it.
    fn oci(self) -> Value {
        if self == Self::Runtime {
            let refused = [seccomp::REFUSED, seccomp::IO_URING].concat();
            return json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            });
        }
        let text = fs::read_to_string(root("charts/tidegate/files/seccomp/tidegate.json"));
        let mut profile: Value = serde_json::from_str(&text.expect("is there")).expect("JSON");
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO", "it is a list of what is allowed");
        if self == Self::ShippedWithoutIoUring {
            let mut taken = 0;
            for rule in profile["syscalls"].as_array_mut().expect("a list") {
                let names = rule["names"].as_array_mut().expect("a list");
                let before = names.len();
                names.retain(|name| !seccomp::IO_URING.contains(&name.as_str().expect("a name")));
                taken += before - names.len();
            }
            assert_eq!(taken, seccomp::IO_URING.len(), "it names all three of its calls");
        }
        profile
    }

    /// The engine that is left, where this machine has both.
    fn engine(self) -> &'static str {
        let doctor = Command::new(binary()).arg("doctor").output().expect("it runs");
        let works = String::from_utf8_lossy(&doctor.stdout).contains(" uring ");
        if self == Self::Shipped && works { "uring" } else { "epoll" }
    }
}

/// A container that runs. Dropping it kills it.
struct Container {
    child: Child,
    bundle: tempfile::TempDir,
}

/// The binary under test.
fn binary() -> PathBuf {
    std::env::var_os("TIDEGATE_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_tidegate").into(), PathBuf::from)
}

/// Whether containers can be had here; else says why not, which CI forbids.
fn can_run() -> bool {
    let installed = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    let reason = match rustix::process::geteuid().is_root() {
        false => "containers need root",
        true if !installed("crun") || !installed("unshare") => "crun or unshare is not installed",
        true => return true,
    };
    skip::skip(reason);
    false
}

impl Container {
    /// Starts the image with these arguments. `mounts`: from where to where, read-only. `run`: whether there is a
    /// place to write to, as the pod's volume for the control socket is.
    #[track_caller]
    fn start(filter: Filter, arguments: &[&str], mounts: &[(&Path, &str)], run: bool) -> Self {
        let bundle = tempfile::tempdir().expect("a directory");
        let root = bundle.path().join("rootfs");
        fs::create_dir_all(root.join("run/tidegate")).expect("made");
        fs::create_dir(root.join("proc")).expect("made");
        fs::copy(binary(), root.join("tidegate")).expect("copied");
        for library in libraries(&binary()) {
            let inside = root.join(library.strip_prefix("/").expect("absolute"));
            fs::create_dir_all(inside.parent().expect("has one")).expect("made");
            fs::copy(library, inside).expect("copied");
        }
        let mut volumes = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"],
            }),
        ];
        for (from, to) in mounts {
            fs::create_dir_all(root.join(&to[1..])).expect("made");
            volumes.push(json!({
                "destination": to, "type": "bind", "source": from, "options": ["rbind", "ro"],
            }));
        }
        if run {
            let owner = format!("uid={USER}");
            let options = ["mode=0700", &owner, "nosuid", "nodev", "noexec"];
            volumes.push(json!({
                "destination": "/run/tidegate", "type": "tmpfs", "source": "tmpfs", "options": options,
            }));
        }
        let none: [&str; 0] = [];
        let words = [&["/tidegate"], arguments].concat();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": USER, "gid": USER },
                "args": words, "cwd": "/", "env": [],
                "noNewPrivileges": true,
                "capabilities": {
                    "bounding": none, "effective": none, "inheritable": none, "permitted": none, "ambient": none,
                },
            },
            "root": { "path": "rootfs", "readonly": true },
            "mounts": volumes,
            "linux": {
                // The network is the machine's, so that the test can call it.
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
                "seccomp": filter.oci(),
            },
        });
        fs::write(bundle.path().join("config.json"), config.to_string()).expect("written");
        let log = File::create(bundle.path().join("log")).expect("a file");
        let mut command = Command::new("unshare");
        // crun wants one of the pure arrangements of cgroups, also where it is told to use none: in a mount
        // namespace of its own it can be shown one, whatever this machine has.
        let script =
            "mount -t tmpfs none /sys/fs/cgroup && exec crun --cgroup-manager=disabled \"$@\"";
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg("--root").arg(bundle.path().join("state")).arg("run");
        command.arg("--bundle").arg(bundle.path()).arg("--pid-file").arg(bundle.path().join("pid"));
        command
            .arg(format!("tidegate-image-{}", bundle.path().file_name().expect("named").display()));
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        Self { child: command.spawn().expect("unshare runs"), bundle }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.bundle.path().join("log")).unwrap_or_default()
    }

    /// As this machine sees it.
    #[track_caller]
    fn pid(&self) -> i32 {
        let pid = fs::read_to_string(self.bundle.path().join("pid")).expect("crun wrote it");
        pid.trim().parse().expect("a number")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).expect("not 0"), signal).expect("it runs");
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        until("it ends", || {
            ended = self.child.try_wait().expect("our child");
            ended.is_some()
        });
        ended.expect("has ended")
    }

    /// A word of /proc/PID/status.
    #[track_caller]
    fn status(&self, name: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("is there").split_whitespace().next().expect("a word").to_owned()
    }

    #[track_caller]
    fn assert_is_confined(&self) {
        assert_eq!(self.status("Uid"), USER.to_string());
        assert_eq!(self.status("Gid"), USER.to_string());
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            assert_eq!(self.status(set), "0000000000000000", "{set}");
        }
        assert_eq!(self.status("NoNewPrivs"), "1");
        assert_eq!(self.status("Seccomp"), "2");
        let mounts =
            fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).expect("it runs");
        let root =
            mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("has one");
        assert!(root.split(' ').nth(5).is_some_and(|flags| flags.starts_with("ro")), "{root}");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // With its first process, all of it; crun then tidies up.
            let pid = fs::read_to_string(self.bundle.path().join("pid")).unwrap_or_default();
            match pid.trim().parse().ok().and_then(Pid::from_raw) {
                Some(pid) => drop(kill_process(pid, Signal::KILL)),
                None => drop(self.child.kill()),
            }
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// What the dynamic loader would look for, and the loader; nothing for a static binary.
fn libraries(binary: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(binary).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound")
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = stopwatch::Stopwatch::start();
    while !condition() {
        assert!(!start.is_past(SOON), "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(1)); // between two looks, not to synchronise
    }
    start.elapsed()
}

/// The status of an answer, if there is one.
fn get(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split(' ').nth(1)?.parse().ok()
}

/// An application that tells when it is asked, and answers when it is let.
fn application() -> (SocketAddr, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (asked, is_asked) = mpsc::channel();
    let (answer, may_answer) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            if !head.is_empty() && asked.send(()).is_ok() && may_answer.recv().is_ok() {
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                );
            }
        }
    });
    (address, is_asked, answer)
}

#[test]
fn the_gateway_serves_and_drains_without_any_right() {
    if can_run() {
        Filter::ALL.into_iter().for_each(serves_and_drains);
    }
}

#[track_caller]
fn serves_and_drains(filter: Filter) {
    let (app, is_asked, answer) = application();
    let (listen, probe) = (free_port(), free_port());
    let [listen_flag, probe_flag] =
        [format!("--listen={listen}={app}"), format!("--probe={probe}")];
    let flags = ["run", &listen_flag, &probe_flag, "--admin=127.0.0.1:0", "--metrics=127.0.0.1:0"];
    let flags = [&flags[..], &["--limit=4", "--drain-delay=0s"]].concat();
    let started = Instant::now();
    let mut container = Container::start(filter, &flags, &[], true);
    until("it is ready", || get(probe, "/readyz") == Some(200));
    let ready = started.elapsed();
    container.assert_is_confined();
    let engine = filter.engine();
    until("it says which engine it took, and why", || {
        let log = container.log();
        log.contains(&format!("engine=\"{engine}\""))
            && (filter == Filter::Shipped || log.contains("seccomp"))
    });

    answer.send(()).expect("it listens");
    assert_eq!(get(listen, "/"), Some(200));
    is_asked.recv_timeout(SOON).expect("it was asked");
    let waiting = std::thread::spawn(move || get(listen, "/"));
    is_asked.recv_timeout(SOON).expect("it was asked");
    container.signal(Signal::TERM);
    until("nobody listens any more", || TcpStream::connect(listen).is_err());
    answer.send(()).expect("it listens");
    assert_eq!(waiting.join().expect("no panic"), Some(200), "what was under way is finished");
    assert_eq!(container.ended().code(), Some(0), "{}", container.log());
    println!("{filter:?}: container to /readyz {ready:?}");
}

/// The image's binary is; what cargo builds for tests carries what debuggers want, and is not.
#[test]
fn it_is_small() {
    let size = fs::metadata(binary()).expect("is there").len();
    println!("binary {:.1} MiB", size as f64 / f64::from(1 << 20));
    let is_the_images = libraries(&binary()).is_empty();
    assert!(!is_the_images || size < SMALL, "{size} bytes");
    let build = fs::read_to_string(root("Dockerfile")).expect("is there");
    let bound = format!("[ \"$(stat -c %s /out/tidegate)\" -lt {SMALL} ]");
    assert!(build.contains(&bound), "an image that is not small can be built: {bound}");
}

#[test]
fn the_webhook_needs_no_place_to_write_to() {
    if can_run() {
        Filter::ALL.into_iter().for_each(webhook_serves_and_drains);
    }
}

#[track_caller]
fn webhook_serves_and_drains(filter: Filter) {
    let secret = tempfile::tempdir().expect("a directory");
    // The image's user is not ours.
    fs::set_permissions(secret.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let pair = rcgen::generate_simple_self_signed(vec!["tidegate.test".into()]).expect("made");
    fs::write(secret.path().join("tls.crt"), pair.cert.pem()).expect("written");
    fs::write(secret.path().join("tls.key"), pair.signing_key.serialize_pem()).expect("written");
    let (address, metrics) = (free_port(), free_port());
    let [address_flag, metrics_flag] =
        [format!("--address={address}"), format!("--metrics={metrics}")];
    let flags = [
        "webhook",
        "--tls-cert=/tls/tls.crt",
        "--tls-key=/tls/tls.key",
        &address_flag,
        &metrics_flag,
        "--drain-delay=0s",
    ];
    let mut container = Container::start(filter, &flags, &[(secret.path(), "/tls")], false);
    until("it is ready", || get(metrics, "/readyz") == Some(200));
    container.assert_is_confined();
    TcpStream::connect(address).expect("it listens");
    container.signal(Signal::TERM);
    assert_eq!(container.ended().code(), Some(0), "{}", container.log());
}

#[test]
fn every_subcommand_is_in_it() {
    if !can_run() {
        return;
    }
    for (arguments, code, says) in [
        (&["--version"][..], 0, "tidegate 0."),
        (&["doctor"], 0, "a seccomp profile forbids it"),
        (&["drain", "--wait"], 0, "no gateway answers at /run/tidegate/control.sock"),
        (&["status"], 1, "Is it running?"),
        (&["run"], 78, "listen is missing"),
        (&["webhook"], 78, "tls-key is missing"),
        (&["capture", "print", "--include-inbound-ports=8080"], 0, "redirect to :15801"),
    ] {
        let mut container = Container::start(Filter::Runtime, arguments, &[], true);
        assert_eq!(container.ended().code(), Some(code), "{arguments:?}: {}", container.log());
        let log = container.log();
        assert!(log.contains(says), "{arguments:?} does not say {says:?}:\n{log}");
    }
}

/// What is tested above is what the Dockerfile makes.
#[test]
fn the_dockerfile_makes_what_is_tested() {
    let text = fs::read_to_string(root("Dockerfile")).expect("is there");
    let (_, last) = text.rsplit_once("\nFROM ").expect("has stages");
    assert!(last.starts_with("scratch\n"), "nothing is below it");
    assert!(last.contains(&format!("\nUSER {USER}:{USER}\n")), "the user is not root");
    assert!(last.ends_with("ENTRYPOINT [\"/tidegate\"]\n"), "one program, without a shell");
    assert!(text.contains("cargo build --locked --release"), "{text}");
    let chown = format!("--chown={USER}:{USER} /out/run/tidegate /run/tidegate");
    assert!(last.contains(&chown), "the control socket's directory is the user's");
    // What is copied is sent, and is there.
    let sent = fs::read_to_string(root(".dockerignore")).expect("is there");
    let copied = text.lines().filter_map(|line| line.strip_prefix("COPY "));
    for words in copied.filter(|words| !words.starts_with("--")) {
        let sources: Vec<_> = words.split(' ').collect();
        for source in &sources[..sources.len() - 1] {
            assert!(root(source).exists(), "{source} is not there");
            assert!(sent.lines().any(|line| line == format!("!{source}")), "{source} is not sent");
        }
    }
    let toolchain = format!("rust:{}-alpine", env!("CARGO_PKG_RUST_VERSION"));
    assert!(text.contains(&toolchain), "the compiler is not {toolchain}");
}

/// `make image` ships it: a crate whose terms nobody knows stops the build.
#[test]
fn the_licences_of_all_that_is_linked_in_are_known() {
    let script = root("image/licences.py");
    let text = output_of(Command::new("python3").arg(script));
    let tree =
        ["tree", "--locked", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}"];
    let tree = output_of(Command::new(env!("CARGO")).args(tree));
    for package in tree.lines().filter_map(|line| line.split_once(" v")) {
        let version = package.1.split(' ').next().expect("a word");
        let name = format!("{} {version}", package.0);
        assert!(text.lines().any(|line| line.starts_with(&name)), "{name} is not in it");
    }
    for text_of in ["Apache License", "Permission is hereby granted", "Redistribution and use"] {
        assert!(text.contains(text_of), "{text_of} is not in it");
    }
}

#[track_caller]
fn output_of(command: &mut Command) -> String {
    let output = command.current_dir(root(".")).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn root(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}
