//! A network of its own for a gateway, so that a test may break it: routes, ports and packet filters of
//! the machine are not touched. Needs root.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::gateway::{Gateway, Setup};
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
    let space = File::open(format!("/proc/{}/ns/net", gateway.pid)).expect("its namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), network).expect("setns as root");
            body()
        });
        thread.join().expect("no panic inside the namespace")
    })
}

/// Changes the packet filter of the gateway's network.
#[track_caller]
pub(crate) fn nft(gateway: &Gateway, rules: &str) {
    let target = gateway.pid.to_string();
    let status =
        Command::new("nsenter").args(["--net", "--target", &target, "nft", rules]).status();
    assert!(status.expect("nsenter runs").success(), "nft {rules}");
}
