//! One container of a pod, started by `crun`, a real runtime, as a container of Kubernetes is: by what the
//! pod says of it (`k8s_openapi`'s types, so that a patched pod can be played as it is), with process ids,
//! mounts and a root of its own, in the pod's network.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, SecurityContext};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};

use super::image::{Image, bind};
use super::seccomp;
use super::surroundings::Surroundings;
use crate::support::{SOON, process, until};

/// A container that was started. Dropping it kills it.
pub(crate) struct Process {
    /// Outside of its own namespace.
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
    id: String,
    /// `UID:GID`
    user: String,
    ended: Arc<OnceLock<Ended>>,
    /// When its process ended, which `crun` may still have to clear away.
    left: Arc<OnceLock<Instant>>,
    _bundle: tempfile::TempDir,
}

/// When its process ended, and with which code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) at: Instant,
    pub(crate) code: i32,
}

/// What a runtime gives to those who do not say, as containerd does.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl Process {
    pub(super) fn start(container: &Container, around: &Surroundings) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("tidegate-test-{}-{number}-{}", std::process::id(), container.name);
        let bundle = tempfile::tempdir().expect("a directory");
        fs::create_dir(bundle.path().join("rootfs")).expect("ours");
        let config = config(container, around, bundle.path());
        fs::write(bundle.path().join("config.json"), config.to_string()).expect("ours");
        let log = bundle.path().join("log");
        let said = File::create(&log).expect("ours");
        let pid_file = bundle.path().join("pid");
        let mut command = crun();
        command.arg("run").arg("--bundle").arg(bundle.path());
        command.arg("--pid-file").arg(&pid_file).arg(&id).stdin(Stdio::null());
        command.stdout(said.try_clone().expect("a second handle")).stderr(said);
        let mut child = command.spawn().expect("crun runs");
        let ended = Arc::<OnceLock<Ended>>::default();
        let left = Arc::<OnceLock<Instant>>::default();
        std::thread::spawn({
            let (ended, left) = (ended.clone(), left.clone());
            move || {
                let code = child.wait().expect("our child").code();
                let at = left.get().copied().unwrap_or_else(Instant::now);
                let _ = ended.set(Ended { at, code: code.unwrap_or(-1) });
            }
        });
        let mut pid = 0;
        until("the container has started", SOON, || {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            pid = text.trim().parse().unwrap_or(0);
            pid != 0 || ended.get().is_some()
        });
        let known = Pid::from_raw(pid as i32);
        if let Some(process) = known.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
            let left = left.clone();
            std::thread::spawn(move || {
                let mut readable = [PollFd::new(&process, PollFlags::IN)];
                if poll(&mut readable, None).is_ok() {
                    let _ = left.set(Instant::now());
                }
            });
        }
        let (uid, gid) = user(container, around);
        let user = format!("{uid}:{gid}");
        let started = Self { pid, log, id, user, ended, left, _bundle: bundle };
        assert!(pid != 0, "{} was not started: {}", container.name, started.said());
        started
    }

    /// It is over, and cleared away.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    /// Its process has ended.
    pub(super) fn has_left(&self) -> bool {
        self.left.get().is_some() || self.ended().is_some()
    }

    /// Everything it has written.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if !self.has_left() {
            process::signal_if_there(self.pid, signal);
        }
    }

    /// Runs a program in the container, as its user.
    pub(crate) fn exec(&self, words: &[String]) -> Output {
        crun()
            .args(["exec", "--user", &self.user])
            .arg(&self.id)
            .args(words)
            .output()
            .expect("crun runs")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        until("the container has gone", SOON, || self.ended().is_some());
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}\n---", self.id, self.said());
        }
    }
}

/// crun without cgroups, which it cannot have everywhere and the rig does not need: it is shown none, in a
/// mount namespace of its own.
fn crun() -> Command {
    let script = "mount -t tmpfs none /sys/fs/cgroup && exec crun --cgroup-manager=disabled \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", script, "crun"]);
    command
}

/// The container as an OCI bundle says it.
fn config(container: &Container, around: &Surroundings, bundle: &Path) -> Value {
    let image = Image::named(container.image.as_deref().expect("a container has an image"));
    let security = container.security_context.clone().unwrap_or_default();
    let (uid, gid) = user(container, around);
    let env = around.environment(container);
    let words = |given: &Option<Vec<String>>| -> Option<Vec<String>> {
        Some(given.as_ref()?.iter().map(|word| expand(word, &env)).collect())
    };
    let command = words(&container.command).unwrap_or(image.entrypoint.clone());
    let args = [command, words(&container.args).unwrap_or_default()].concat();
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let bounding = capabilities(&security);
    let held = if uid == 0 { bounding.clone() } else { BTreeSet::new() };

    let mut mounts = vec![
        json!({ "type": "proc", "source": "proc", "destination": "/proc" }),
        json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/dev",
                "options": ["nosuid", "mode=755", "size=64k"] }),
        json!({ "type": "tmpfs", "source": "shm", "destination": "/dev/shm",
                "options": ["nosuid", "nodev", "noexec", "mode=1777", "size=64m"] }),
        json!({ "type": "sysfs", "source": "sysfs", "destination": "/sys", "options": ["ro"] }),
    ];
    mounts.extend(image.mounts());
    let users = bundle.join("passwd");
    let user = format!("root:x:0:0::/:/bin/sh\napplication:x:{uid}:{gid}::/tmp:/bin/sh\n");
    fs::write(&users, user).expect("ours");
    if mounts.iter().any(|mount| mount["destination"] == "/etc") {
        mounts.push(bind(&users, Path::new("/etc/passwd"), true));
    }
    mounts.extend(around.mounts(container));

    json!({
        "ociVersion": "1.0.2",
        "hostname": around.name(),
        "process": {
            "args": args, "env": env, "cwd": container.working_dir.as_deref().unwrap_or("/"),
            "user": { "uid": uid, "gid": gid, "additionalGids": around.groups() },
            "capabilities": {
                "bounding": bounding, "effective": held, "permitted": held,
            },
            "noNewPrivileges": security.allow_privilege_escalation == Some(false),
        },
        "root": { "path": "rootfs",
                  "readonly": security.read_only_root_filesystem == Some(true) },
        "mounts": mounts,
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network", "path": around.network() },
            ],
            "seccomp": seccomp::filter(security.seccomp_profile.as_ref().or(around.seccomp().as_ref())),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn user(container: &Container, around: &Surroundings) -> (i64, i64) {
    let own = container.security_context.as_ref();
    let uid = own.and_then(|own| own.run_as_user).or(around.run_as_user()).unwrap_or(0);
    (uid, own.and_then(|own| own.run_as_group).unwrap_or(uid))
}

/// `CAP_…` of those the runtime gives, less those dropped, and those added.
fn capabilities(security: &SecurityContext) -> BTreeSet<String> {
    let mut held: BTreeSet<String> =
        CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    let asked = security.capabilities.clone().unwrap_or_default();
    for drop in asked.drop.unwrap_or_default() {
        match drop.as_str() {
            "ALL" => held.clear(),
            name => drop_one(&mut held, name),
        }
    }
    held.extend(asked.add.unwrap_or_default().iter().map(|name| format!("CAP_{name}")));
    held
}

fn drop_one(held: &mut BTreeSet<String>, name: &str) {
    held.remove(&format!("CAP_{name}"));
}

/// `$(NAME)` as Kubernetes does it.
pub(super) fn expand(word: &str, env: &[(String, String)]) -> String {
    let mut text = word.to_owned();
    for (name, value) in env {
        text = text.replace(&format!("$({name})"), value);
    }
    text
}
