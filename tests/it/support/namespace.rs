//! A network of its own for a gateway, so that a test may break it: routes, ports and packet filters of
//! the machine are not touched. Needs root.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::gateway::{Gateway, Setup, binary};
use super::process;

/// Why a namespace cannot be had here, if so.
pub(crate) fn missing() -> Option<&'static str> {
    let tools = ["unshare", "nsenter", "ip", "nft"];
    if !rustix::process::geteuid().is_root() {
        return Some("a network namespace needs root");
    }
    let lacking = tools.iter().any(|tool| !process::installed(tool));
    lacking.then_some("unshare, nsenter, ip or nft is not installed")
}

/// Starts the gateway in a namespace of its own, after `preparation`, a line of shell.
#[track_caller]
pub(crate) fn start(setup: Setup, preparation: &str) -> Gateway {
    let script = format!("ip link set lo up && {preparation} && exec \"$@\"");
    setup.through(&["unshare", "--net", "sh", "-c", &script, "sh"]).start()
}

/// Runs `body` in the gateway's network, in a thread of its own: the thread and those it starts stay there.
pub(crate) fn inside<R: Send>(gateway: &Gateway, body: impl FnOnce() -> R + Send) -> R {
    enter(gateway.pid, body)
}

fn enter<R: Send>(pid: u32, body: impl FnOnce() -> R + Send) -> R {
    let space = File::open(format!("/proc/{pid}/ns/net")).expect("its namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), network).expect("setns as root");
            body()
        });
        thread.join().expect("no panic inside the namespace")
    })
}

/// Two networks with a wire between them: a client's, and a pod's with the application and the gateway.
pub(crate) struct Pod {
    pod: Space,
    client: Space,
}

/// A network of its own, held by a process that sleeps.
pub(crate) struct Space(Child);

/// The pod's addresses, as the client dials them.
pub(crate) const POD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 7, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 2)),
];

/// The client's own, in the same order.
pub(crate) const CLIENT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 7, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 1)),
];

impl Pod {
    pub(crate) fn new() -> Self {
        let (pod, client) = (Space::new(), Space::new());
        let ([pod4, pod6], [client4, client6]) = (POD, CLIENT);
        let there = pod.0.id();
        let wire = format!("ip link add wire type veth peer name wire netns {there}");
        client.succeed(&["sh", "-c", &wire]);
        for (space, v4, v6) in [(&client, client4, client6), (&pod, pod4, pod6)] {
            let addresses = format!(
                "ip address add {v4}/24 dev wire && ip address add {v6}/64 dev wire nodad && ip link set wire up"
            );
            space.succeed(&["sh", "-c", &addresses]);
        }
        Self { pod, client }
    }

    /// Runs `body` in the pod.
    pub(crate) fn inside<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.pod.enter(body)
    }

    /// Runs `body` where the client is.
    pub(crate) fn outside<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.client.enter(body)
    }

    /// The words that start a program in the pod.
    pub(crate) fn launcher(&self) -> Vec<String> {
        self.pod.launcher()
    }

    /// Where the kernel shows it.
    pub(crate) fn path(&self) -> String {
        self.pod.path()
    }

    /// Runs a program in the pod, and answers whether it succeeded and all it said.
    pub(crate) fn run(&self, words: &[&str]) -> (bool, String) {
        self.pod.run(words)
    }

    /// Runs a program in the pod that has to succeed.
    #[track_caller]
    pub(crate) fn succeed(&self, words: &[&str]) -> String {
        self.pod.succeed(words)
    }

    /// `tidegate capture ACTION FLAGS` in the pod, which is named to it.
    pub(crate) fn capture(&self, action: &str, flags: &[&str]) -> (bool, String) {
        let namespace = format!("--namespace={}", self.pod.path());
        let binary = binary();
        let start = [binary.to_str().expect("UTF-8"), "capture", action, &namespace];
        self.run(&[&start, flags].concat())
    }
}

impl Space {
    pub(crate) fn new() -> Self {
        let script = "ip link set lo up && echo up && exec sleep infinity";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare runs");
        let mut said = [0; 3];
        let stdout = child.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut said).expect("a network of its own");
        Self(child)
    }

    /// Where the kernel shows it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs `body` in it.
    pub(crate) fn enter<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        enter(self.0.id(), body)
    }

    pub(crate) fn launcher(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net={}", self.path())]
    }

    pub(crate) fn run(&self, words: &[&str]) -> (bool, String) {
        let launcher = self.launcher();
        let mut command = Command::new(&launcher[0]);
        let output = command.args(&launcher[1..]).args(words).output().expect("nsenter runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    #[track_caller]
    pub(crate) fn succeed(&self, words: &[&str]) -> String {
        let (succeeded, said) = self.run(words);
        assert!(succeeded, "{words:?}: {said}");
        said
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Changes the packet filter of the gateway's network.
#[track_caller]
pub(crate) fn nft(gateway: &Gateway, rules: &str) {
    let target = gateway.pid.to_string();
    let status =
        Command::new("nsenter").args(["--net", "--target", &target, "nft", rules]).status();
    assert!(status.expect("nsenter runs").success(), "nft {rules}");
}
