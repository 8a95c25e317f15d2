//! A13, T36, T37: whoever dials whatever, from outside or inside the pod: one refusal, or the right way, and
//! nothing is left behind. As a table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::kubelet::LivePod;
use super::network::{Families, Network};
use super::specs::{Case, Mode, Spec, cases, gated};
use crate::http::client::Http1;
use crate::probes::ask;
use crate::support::gateway::Gateway;
use crate::support::ledger::{End, Ledger, exchange};
use crate::support::{SOON, process, scale, until};

cases!(one_refusal_or_the_right_way, nobody_is_connected_to_himself);

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Nobody listens there.
    Nobody,
    /// The gateway closes it, and counts it once.
    RefusedOnce,
    /// A face of the gateway answers, whatever the gates say.
    Face,
    /// The application answers, through its gate.
    Through,
    /// The application answers, and the gateway has no part in it.
    Beside,
}
use Expected::{Beside, Face, Nobody, RefusedOnce, Through};

const APP: u16 = 8080;

/// So many at least for clocks of 10 ms to tell what each costs.
const DIALS: u64 = 200;

/// The ports a client elsewhere may try, and what is to happen.
fn from_outside(mode: Mode) -> Vec<(u16, Expected)> {
    let mut rows = vec![(15820, Nobody), (15819, Nobody), (15821, Face), (15822, Face)];
    rows.extend(match mode {
        Mode::Redirect => [(15801, RefusedOnce), (APP, Through), (gated(APP), Nobody)],
        Mode::Listen => [(15801, Nobody), (APP, Beside), (gated(APP), Through)],
    });
    rows
}

/// The same for whoever is in the pod.
fn from_inside(mode: Mode) -> Vec<(u16, Expected)> {
    let mut rows = vec![(15819, Nobody), (15821, Face), (15822, Face)];
    rows.extend(match mode {
        Mode::Redirect => [(15801, RefusedOnce), (APP, Beside), (gated(APP), Nobody)],
        Mode::Listen => [(15801, Nobody), (APP, Beside), (gated(APP), Through)],
    });
    rows
}

fn one_refusal_or_the_right_way(case: Case) {
    let network = Network::new();
    let spec = Spec::application(case, "work", APP).set("protocol", "tcp").set("limit", 4);
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let gateway = pod.gateway();
    let own = pod.address();
    network.client.enter(|| {
        for (port, expected) in from_outside(case.mode) {
            assert_expected(case, &gateway, (own, port).into(), expected);
        }
    });
    let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    let local = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), mapped, own];
    pod.inside(|| {
        for ip in local {
            for (port, expected) in from_inside(case.mode) {
                // The application of a pod with one family listens on no other, whoever dials.
                let its_family = ip.to_canonical().is_ipv4() == (case.families == Families::V4);
                let listens = its_family || case.families != Families::V4 || expected != Beside;
                let expected = if listens { expected } else { Nobody };
                assert_expected(case, &gateway, (ip, port).into(), expected);
            }
        }
        for ip in [Ipv4Addr::LOCALHOST.into(), mapped] {
            let admin = Http1::connect((ip, 15820).into()).get_from("localhost", "/");
            assert_eq!(admin.status, 200, "for this machine: {ip}: {admin:?}");
        }
        for ip in [Ipv6Addr::LOCALHOST.into(), own] {
            TcpStream::connect((ip, 15820)).expect_err("for loopback of IPv4 alone");
        }
    });
    if case.mode == Mode::Redirect {
        // What goes nowhere is no dearer than what is served: nothing runs in a circle.
        let dial = |port: u16, wanted: End| {
            let before = process::cpu_ticks(gateway.pid);
            let to = SocketAddr::new(own, port);
            let one = |_| exchange(to, Duration::ZERO, SOON);
            let ledger: Ledger = network.client.enter(|| (0..DIALS).map(one).collect());
            assert_eq!(ledger.of(wanted), DIALS, "{ledger:?}");
            process::cpu_ticks(gateway.pid) - before
        };
        let (served, refused) = (dial(APP, End::Answered), dial(15801, End::Refused));
        assert!(refused <= served + 5, "{refused} ticks of 10 ms, and {served} for those served");
    }
    gateway.assert_clean();
}

/// Dials once, and compares what came of it with the gateway's books.
#[track_caller]
fn assert_expected(case: Case, gateway: &Gateway, to: SocketAddr, expected: Expected) {
    let books = || {
        let port = gateway.port_at(case.port(APP));
        let astray = match case.mode {
            Mode::Redirect => gateway.port_at(15801).refused("loop"),
            Mode::Listen => 0,
        };
        (port.admitted, astray)
    };
    let (admitted, astray) = books();
    let found = match expected {
        Face => match TcpStream::connect(to) {
            Ok(_) => Http1::connect(to).get("/nothing").status,
            Err(_) => 0,
        },
        _ => 0,
    };
    let end = if expected == Face { End::Left } else { exchange(to, Duration::ZERO, SOON) };
    let wanted = match expected {
        Nobody => (End::NotConnected, 0, 0, 0),
        RefusedOnce => (End::Refused, 0, 0, 1),
        Face => (End::Left, 404, 0, 0),
        Through => (End::Answered, 0, 1, 0),
        Beside => (End::Answered, 0, 0, 0),
    };
    assert_eq!((end, found), (wanted.0, wanted.1), "{case:?}: {to}: {expected:?}");
    until("the books say so", SOON, || books() == (admitted + wanted.2, astray + wanted.3));
}

/// T37: where nobody listens, and the kernel takes source ports from around there, a dial meets itself, and
/// its echo would pass for an answer. Here the range has two ports, and one of them is dialled.
fn nobody_is_connected_to_himself(case: Case) {
    // The kernel prefers source ports that are even if the first of the range is.
    const CLOSED: u16 = 44_600;
    let network = Network::new();
    let what = format!("work {}:{APP}", case.families.any());
    let app = serde_json::json!({ "name": "app", "image": "application",
        "env": [{ "name": super::application::WHAT, "value": what }] });
    // A captured port that is named is dialled without a look at who listens.
    let spec = Spec::new(case, "gone", &[CLOSED], app).set("protocol", "tcp");
    let probe = serde_json::json!({ "app/liveness": { "tcpSocket": { "port": CLOSED } } });
    let spec = spec.set_port("limit", CLOSED, 4).env("TIDEGATE_APP_PROBES", probe);
    let pod = LivePod::start(&network, case.families, spec.pod(), &Default::default());
    pod.wait_ready();
    let gateway = pod.gateway();
    pod.succeed(&["sh", "-c", "echo 44600 44601 >/proc/sys/net/ipv4/ip_local_port_range"]);
    let own = SocketAddr::new(pod.address(), CLOSED);
    assert!(pod.inside(|| (0..100).any(|_| meets_itself(own))), "nothing would be proved here");
    let total = scale(400, 200_000);
    let to = SocketAddr::new(pod.address(), case.port(CLOSED));
    let ledger: Ledger =
        network.client.enter(|| (0..total).map(|_| exchange(to, Duration::ZERO, SOON)).collect());
    let refused = ledger.of(End::Refused) + ledger.of(End::Reset);
    assert_eq!(refused, total as u64, "{ledger:?}");
    let face = SocketAddr::new(pod.address(), 15821);
    for _ in 0..100 {
        let (code, said) = network.client.enter(|| ask(face, "GET /app-probe/app/liveness", ""));
        assert_eq!(code, 503, "its probe does not find itself either: {said}");
    }
    gateway.assert_clean();
    let port = gateway.port_at(case.port(CLOSED));
    assert_eq!(port.refused("upstream_refused"), refused, "{port:?}");
    assert!(pod.inside(|| (0..100).any(|_| meets_itself(own))), "it was so until the end");
}

/// Whether a dial to an address where nobody listens was answered by itself. It leaves no trace.
fn meets_itself(to: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect(to) else { return false };
    let met = stream.local_addr().is_ok_and(|own| own == to);
    let now = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    now.expect("a socket that resets");
    met
}
