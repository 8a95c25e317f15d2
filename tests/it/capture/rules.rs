//! T38: what `tidegate capture` writes is what it says, whole or not at all, and nobody else's rules are
//! touched, byte for byte.

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::missing;
use crate::support::gateway::binary;
use crate::support::namespace::{POD, Pod};
use crate::support::{SOON, scale, skip};

const PORTS: [&str; 2] = ["--include-inbound-ports", "8080,9000-9100"];

/// A scenario without a gateway needs no engine; it takes its turn all the same.
macro_rules! rules {
    ($($scenario:ident),+ $(,)?) => {
        mod once { $(#[test] fn $scenario() {
            $crate::support::run($crate::support::Engine::Epoll, |_| super::$scenario());
        })+ }
    };
}

rules!(
    what_is_printed_is_what_is_in_force,
    installing_again_changes_nothing,
    what_a_kill_leaves_is_made_whole,
    what_others_wrote_stays,
    what_was_changed_is_noticed,
    only_net_admin_is_needed,
    the_place_has_to_be_right,
    one_family_is_enough,
);

fn pod() -> Option<Pod> {
    match missing() {
        Some(reason) => {
            skip(reason);
            None
        }
        None => Some(Pod::new()),
    }
}

#[track_caller]
fn succeed(pod: &Pod, action: &str, flags: &[&str]) -> String {
    let (succeeded, said) = pod.capture(action, flags);
    assert!(succeeded, "{action} {flags:?}: {said}");
    said
}

#[track_caller]
fn fail(pod: &Pod, action: &str, flags: &[&str], says: &str) {
    let (succeeded, said) = pod.capture(action, flags);
    assert!(!succeeded && said.contains(says), "{action} {flags:?}: {said}");
}

fn ruleset(pod: &Pod) -> String {
    pod.succeed(&["nft", "list", "ruleset"])
}

fn what_is_printed_is_what_is_in_force() {
    let Some(pod) = pod() else { return };
    for ports in ["8080", "8080,9000-9100,65535", "1-65535", "1,2,3,5,15800-15830"] {
        let flags = ["--include-inbound-ports", ports, "--exclude-inbound-ports", "22,9050-9060"];
        let printed = succeed(&pod, "print", &flags);
        assert_eq!(ruleset(&pod), "", "printing installs nothing");
        succeed(&pod, "install", &flags);
        assert_eq!(words(&ruleset(&pod)), words(&printed), "{ports}");
        succeed(&pod, "check", &flags);
        let (_, said) = pod.capture("remove", &[]);
        assert!(said.contains("removed"), "{said}");
        assert_eq!(ruleset(&pod), "", "nothing is left");
    }
}

/// Long lists are broken into lines.
fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn installing_again_changes_nothing() {
    let Some(pod) = pod() else { return };
    let with_handles = || pod.succeed(&["nft", "-a", "list", "ruleset"]);
    succeed(&pod, "install", &PORTS);
    let once = with_handles();
    assert!(succeed(&pod, "install", &PORTS).contains("already"));
    assert_eq!(with_handles(), once, "not even made anew");
    fail(&pod, "check", &["--include-inbound-ports", "80"], "redirects the ports 8080, 9000-9100");
    // Other ports come into the chain that is there: traffic never finds none.
    let chain = |listed: String| {
        let line = listed.lines().find(|line| line.contains("chain prerouting"));
        line.expect("a chain").to_owned()
    };
    let same = chain(once);
    for ports in ["80", "80,443", "all", "80"] {
        let flags = ["--include-inbound-ports", ports];
        succeed(&pod, "install", &flags);
        assert_eq!(words(&ruleset(&pod)), words(&succeed(&pod, "print", &flags)), "{ports}");
        assert_eq!(chain(with_handles()), same, "{ports}");
    }
    let flags = ["--include-inbound-ports", "80", "--exclude-inbound-ports", "22"];
    succeed(&pod, "install", &flags);
    assert_eq!(words(&ruleset(&pod)), words(&succeed(&pod, "print", &flags)));
}

/// A kill may come at any step. What is redirected before and afterwards is redirected then, too.
fn what_a_kill_leaves_is_made_whole() {
    let Some(pod) = pod() else { return };
    let taker = pod.inside(|| TcpListener::bind((POD[0], 15801)).expect("binds"));
    let redirected = || {
        let dialled =
            pod.outside(|| TcpStream::connect_timeout(&(POD[0], 8080).into(), SOON).is_ok());
        dialled && taker.accept().is_ok()
    };
    let start = |flags: &[&str]| {
        let (launcher, namespace) = (pod.launcher(), format!("--namespace={}", pod.path()));
        let mut command = Command::new(&launcher[0]);
        command.args(&launcher[1..]).arg(binary()).args(["capture", "install", &namespace]);
        command.args(flags).stdout(Stdio::null()).spawn().expect("nsenter runs")
    };
    let began = Instant::now();
    assert!(start(&PORTS).wait().expect("it is ours").success());
    let whole = began.elapsed();
    let (rounds, mut halfway) = (scale(30, 1000), 0);
    for round in 0..rounds {
        let ports = ["8080,443", PORTS[1]][round % 2];
        let flags = ["--include-inbound-ports", ports];
        let mut installing = start(&flags);
        std::thread::sleep(whole * round as u32 / rounds as u32);
        installing.kill().expect("it is ours");
        installing.wait().expect("it is ours");
        let left = ruleset(&pod);
        assert!(redirected(), "{left}");
        assert!(!left.contains("tidegate-proof"), "{left}");
        halfway += usize::from(!pod.capture("check", &[]).0);
        succeed(&pod, "install", &flags);
        assert_eq!(words(&ruleset(&pod)), words(&succeed(&pod, "print", &flags)));
    }
    println!("{halfway} of {rounds} kills came between two steps");
}

/// Tables as others have them: iptables-nft's NAT, kube-proxy's maps, a CNI's filter, one named like ours.
const FOREIGN: &str = r#"
table ip nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat
        ip daddr 10.7.0.2 tcp dport 9999 counter dnat to 10.7.0.2:9998
    }
    chain OUTPUT {
        type nat hook output priority -100
    }
}
table ip kube-proxy {
    chain one { meta l4proto tcp dnat to 10.7.0.2:6443 ; }
    chain two { meta l4proto tcp dnat to 10.7.0.2:6444 ; }
    chain svc {
        numgen random mod 2 vmap { 0 : goto one, 1 : goto two }
    }
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 10.96.0.1 . tcp . 443 : goto svc }
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat
        jump services
    }
}
table inet cni {
    set peers {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8 }
    }
    chain forward {
        type filter hook forward priority filter
        ct state established,related accept
        ip saddr @peers counter comment "a comment"
    }
}
table ip tidegate {
    chain theirs {
        tcp dport 1 counter
    }
}
table inet tidegate-other {
    chain theirs {
    }
}
"#;

fn what_others_wrote_stays() {
    let Some(pod) = pod() else { return };
    pod.succeed(&["nft", FOREIGN]);
    let dump = || {
        let text = pod.succeed(&["nft", "-a", "list", "ruleset"]);
        let json = pod.succeed(&["nft", "-j", "list", "ruleset"]);
        (text, json)
    };
    let before = dump();
    succeed(&pod, "install", &PORTS);
    let during = dump();
    let ours = during.0.find("table inet tidegate {").expect("ours is there");
    assert_eq!(during.0[..ours], before.0, "and comes after the others, which are as they were");
    succeed(&pod, "install", &["--include-inbound-ports", "all"]);
    succeed(&pod, "check", &[]);
    succeed(&pod, "remove", &[]);
    assert_eq!(dump(), before);
    succeed(&pod, "remove", &[]);
    assert_eq!(dump(), before, "nothing to remove is no mistake");
}

fn what_was_changed_is_noticed() {
    let Some(pod) = pod() else { return };
    fail(&pod, "check", &[], "is not installed");
    for change in [
        "insert rule inet tidegate prerouting tcp dport 5 accept",
        "add rule inet tidegate prerouting counter",
        "flush chain inet tidegate prerouting",
        "add chain inet tidegate more",
        "delete table inet tidegate; add table inet tidegate",
    ] {
        succeed(&pod, "install", &PORTS);
        pod.succeed(&["nft", change]);
        fail(&pod, "check", &PORTS, "install it again");
    }
    succeed(&pod, "install", &PORTS);
    pod.succeed(&["nft", "add element inet tidegate included { 7 }"]);
    fail(&pod, "check", &PORTS, "redirects the ports 7, 8080, 9000-9100");
    succeed(&pod, "install", &PORTS);
    // Rules that are right and do nothing: connections are not tracked.
    let untracked = "add table inet off
         add chain inet off out { type filter hook output priority raw ; }
         add rule inet off out notrack";
    pod.succeed(&["nft", untracked]);
    fail(&pod, "check", &PORTS, "NAT does not work here");
    let before = ruleset(&pod);
    fail(&pod, "install", &["--include-inbound-ports", "80"], "NAT does not work here");
    assert_eq!(ruleset(&pod), before, "it is as it was");
    succeed(&pod, "remove", &[]);
    fail(&pod, "install", &PORTS, "NAT does not work here");
    assert!(!ruleset(&pod).contains("tidegate"), "nothing is left of it");
}

/// As the init container has it: root, every capability dropped but one. Without that: what to do.
fn only_net_admin_is_needed() {
    let Some(pod) = pod() else { return };
    let binary = binary();
    let namespace = pod.succeed(&["readlink", "/proc/self/ns/net"]);
    let namespace = format!("--namespace={}", namespace.trim());
    let install = |caps: &str| {
        let caps = format!("--bounding-set={caps}");
        let setpriv = ["setpriv", &caps, "--inh-caps=-all", "--no-new-privs"];
        let tidegate = [binary.to_str().expect("UTF-8"), "capture", "install", &namespace];
        pod.run(&[&setpriv[..], &tidegate, &PORTS].concat())
    };
    let (installed, said) = install("-all");
    assert!(!installed && said.contains("add: [NET_ADMIN]"), "{said}");
    let (installed, said) = install("-all,+net_admin");
    assert!(installed && said.contains("IPv4 and IPv6"), "{said}");
}

fn the_place_has_to_be_right() {
    let Some(pod) = pod() else { return };
    let binary = binary();
    let tidegate = binary.to_str().expect("UTF-8");
    let install = |environment: &[&str], more: &[&str]| {
        let tidegate = [tidegate, "capture", "install"];
        pod.run(&[&["env"], environment, &tidegate, &PORTS, more].concat())
    };
    let host = "TIDEGATE_HOST_IP=192.0.2.1";
    for (environment, flags, says) in [
        (&[][..], &[][..], "say which network namespace this is"),
        (&[], &["--namespace=host"], "the network namespace"),
        (&["TIDEGATE_POD_IP=10.7.0.2", "TIDEGATE_HOST_IP=10.7.0.2"], &[], "the machine's own"),
        (&["TIDEGATE_POD_IP=10.7.0.3", host], &[], "not the pod's network"),
        (&["TIDEGATE_POD_IP=10.7.0.2"], &[], "both"),
    ] {
        let (installed, said) = install(environment, flags);
        assert!(!installed && said.contains(says), "{environment:?} {flags:?}: {said}");
    }
    assert_eq!(ruleset(&pod), "");
    let (installed, said) = install(&["TIDEGATE_POD_IP=10.7.0.2,fd07::2", host], &[]);
    assert!(installed, "{said}");
}

fn one_family_is_enough() {
    let Some(pod) = pod() else { return };
    let switch = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
    pod.succeed(&["sh", "-c", switch]);
    let said = succeed(&pod, "install", &PORTS);
    assert!(said.contains("proved over IPv4; there is no IPv6 here"), "{said}");
    pod.succeed(&["ip", "link", "set", "lo", "down"]);
    fail(&pod, "check", &PORTS, "is `lo` up?");
}
