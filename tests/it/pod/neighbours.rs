//! Somebody in the pod who dials the application for others, as the proxy of a mesh does. Where the gateway
//! listens he is limited like everybody; rules for what comes from outside do not see him, but he is counted,
//! and the status says so.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::kubelet::LivePod;
use super::network::Network;
use super::specs::{Case, Mode, Spec, cases};
use crate::support::gateway::binary;
use crate::support::ledger::{End, Ledger, closed_loop, exchange, overfill};
use crate::support::sockets::Watch;
use crate::support::{SOON, scale, until};

cases!(who_dials_inside_is_limited_or_counted);

const APP: u16 = 8080;

fn who_dials_inside_is_limited_or_counted(case: Case) {
    let network = Network::new();
    let script = if case.mode == Mode::Listen { "work" } else { "echo" };
    let spec = Spec::application(case, script, APP).set("protocol", "tcp").set("limit", 2);
    let spec = spec.set("queue-length", 2).set("queue-timeout", "60s");
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    match case.mode {
        Mode::Listen => is_limited(case, &pod),
        Mode::Redirect => is_counted(&network, &pod),
    }
}

fn is_limited(case: Case, pod: &LivePod) {
    let gateway = pod.gateway();
    let to = SocketAddr::new(pod.address(), case.port(APP));
    let total = scale(100, 2_000);
    let (ledger, peak) = pod.inside(|| {
        let watch = Watch::start(APP);
        let full = overfill(&gateway, to, 2, 2);
        let many = closed_loop(8, total, |_, _| exchange(to, Duration::from_millis(20), SOON));
        ([full, many].into_iter().sum::<Ledger>(), watch.peak())
    });
    let (answered, refused) = (ledger.of(End::Answered), ledger.of(End::Refused));
    assert_eq!(answered + refused, ledger.total(), "{ledger:?}");
    assert!(answered >= 4 && refused > 0 && peak <= 2, "{ledger:?}, {peak} at once");
    gateway.assert_clean();
    let port = gateway.port_at(case.port(APP));
    assert_eq!((port.admitted, port.refused("queue_full")), (answered, refused), "{port:?}");
}

fn is_counted(network: &Network, pod: &LivePod) {
    let gateway = pod.gateway();
    let talk = |to: SocketAddr| {
        let mut stream = TcpStream::connect(to).expect("connects");
        stream.write_all(b"x").expect("writes");
        stream.read_exact(&mut [0]).expect("an echo");
        stream
    };
    let to = SocketAddr::new(pod.address(), APP);
    let through = network.client.enter(|| [talk(to), talk(to)]);
    let beside = pod.inside(|| [talk(to), talk(to), talk(to)]);
    until("they are counted", SOON, || gateway.port_at(APP).bypass == Some(3));
    assert_eq!(gateway.metric("tidegate_bypass_connections", "port=\"8080\""), 3.0);
    assert_eq!(gateway.port_at(APP).active, 2, "and the limit is for the others");
    let mut status = Command::new(binary());
    status.arg("status").arg("--control").arg(gateway.control());
    let said = status.output().expect("it runs").stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("passed by connections that come from elsewhere: 3"), "{said}");
    drop((through, beside));
    gateway.assert_clean();
    until("nobody is left", SOON, || gateway.port_at(APP).bypass == Some(0));
}
