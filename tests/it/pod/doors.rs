//! A22: what of a pod can be reached from elsewhere is what ARCHITECTURE.md says, by somebody else's word,
//! and nothing that can be reached changes anything.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::kubelet::LivePod;
use super::network::Network;
use super::specs::{Case, Mode, Spec, cases, gated};
use crate::attempts::{METHODS, PATHS};
use crate::support::gateway::Gateway;
use crate::support::{SOON, process, skip, until};

cases!(beside: nmap_finds_what_is_documented, nothing_on_the_network_changes_anything);

const APP: u16 = 8080;

fn start(case: Case, network: &std::sync::Arc<Network>) -> LivePod {
    let spec = Spec::application(case, "http", APP).set("limit", 4);
    let pod = LivePod::start(network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    pod
}

fn nmap_finds_what_is_documented(case: Case) {
    if !process::installed("nmap") {
        return skip("nmap is not installed");
    }
    let network = Network::new();
    let pod = start(case, &network);
    let gateway = pod.gateway();
    let mut nmap = Command::new("nmap");
    nmap.args(["-Pn", "-n", "-sT", "-p-", "-T5", "--max-retries=10", "-oG", "-"]);
    if pod.address().is_ipv6() {
        nmap.arg("-6");
    }
    nmap.arg(pod.address().to_string());
    let output = network.client.enter(|| nmap.output().expect("nmap runs"));
    let said = String::from_utf8_lossy(&output.stdout);
    let ports = said.lines().find_map(|line| line.split_once("Ports: ")).expect("a list").1;
    let ports = ports.split('\t').next().expect("it begins");
    let open = ports.split(", ").filter(|port| port.contains("/open/"));
    let open: BTreeSet<u16> =
        open.map(|port| port.split('/').next().expect("a number").parse().expect("one")).collect();
    let ours = match case.mode {
        Mode::Redirect => 15801,
        Mode::Listen => gated(APP),
    };
    assert_eq!(open, BTreeSet::from([APP, ours, 15821, 15822]), "{said}");
    until("nobody is left", SOON, || gateway.status().connections == 0);
}

/// Every face, every method, every path, from elsewhere and, where it is for this machine, from the
/// application's side; with bodies that would do something on the control socket.
fn nothing_on_the_network_changes_anything(case: Case) {
    let network = Network::new();
    let pod = start(case, &network);
    let gateway = pod.gateway();
    let state = || {
        let settings = gateway.call("GET", "/settings.json", "").body;
        (settings, gateway.status().phase)
    };
    let before = state();
    assert_eq!(before.1, "serving");
    let own = pod.address();
    network.client.enter(|| {
        let mut ports = vec![15821, 15822, case.port(APP)];
        ports.extend((case.mode == Mode::Redirect).then_some(15801));
        ports.iter().for_each(|port| try_everything(&gateway, (own, *port).into()));
    });
    pod.inside(|| {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for port in [15820, 15821, 15822] {
            try_everything(&gateway, (local, port).into());
        }
    });
    assert_eq!(state(), before);
    until("its probes are green", SOON, || pod.is_ready());
    assert!(pod.process("tidegate").ended().is_none());
}

fn try_everything(gateway: &Gateway, to: SocketAddr) {
    for method in METHODS {
        for path in PATHS {
            for body in ["", "{\"limit\":\"1\",\"mode\":\"off\"}"] {
                let _ = attempt(to, method, path, body);
            }
        }
    }
    assert_eq!(gateway.status().phase, "serving", "after {to}");
}

fn attempt(to: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, SOON)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}
