//! Somebody in the pod who dials the application for others, as the proxy of a mesh does. Where the gateway
//! listens he is limited like everybody; rules for what comes from outside do not see him, but he is counted,
//! and the status says so. So is whoever is elsewhere and calls the application's own port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::kubelet::LivePod;
use super::network::Network;
use super::specs::{Case, Mode, Spec, cases};
use crate::support::gateway::{Gateway, binary};
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
        Mode::Listen => {
            is_limited(case, &pod);
            passes_at_the_applications_port(case, &network, &pod);
        }
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

/// Whoever is elsewhere and knows the application's own port need not come to the gateway's.
fn passes_at_the_applications_port(case: Case, network: &Network, pod: &LivePod) {
    let gateway = pod.gateway();
    let dial = |port| TcpStream::connect((pod.address(), port)).expect("connects");
    let through = network.client.enter(|| dial(case.port(APP)));
    let beside = network.client.enter(|| [dial(APP), dial(APP)]);
    assert_beside(&gateway, case.port(APP), 2);
    assert_eq!(gateway.port_at(case.port(APP)).active, 1, "and the limit is for the others");
    drop((through, beside));
    gateway.assert_clean();
    until("nobody is left", SOON, || gateway.port_at(case.port(APP)).bypass == Some(0));
}

/// So many reach the application beside the gateway, say the status, the metrics and `tidegate status`.
#[track_caller]
fn assert_beside(gateway: &Gateway, port: u16, count: u64) {
    until("they are counted", SOON, || gateway.port_at(port).bypass == Some(count));
    let label = format!("port=\"{port}\"");
    assert_eq!(gateway.metric("tidegate_bypass_connections", &label), count as f64);
    let mut status = Command::new(binary());
    status.arg("status").arg("--control").arg(gateway.control());
    let said = status.output().expect("it runs").stdout;
    let said = String::from_utf8_lossy(&said);
    let told = format!("passed by connections that come from elsewhere: {count}");
    assert!(said.contains(&told), "{said}");
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
    assert_beside(&gateway, APP, 3);
    assert_eq!(gateway.port_at(APP).active, 2, "and the limit is for the others");
    drop((through, beside));
    gateway.assert_clean();
    until("nobody is left", SOON, || gateway.port_at(APP).bypass == Some(0));
}
