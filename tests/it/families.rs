//! `[::]` is what the injector writes, on whatever node the pod will be: everybody who can be there is served.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{End, exchange};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, engines, namespace, run, skip, until};

engines!(a_kernel_without_ipv6);

/// socket(AF_INET6) fails with EAFNOSUPPORT (`ipv6.disable=1`): IPv4 alone, and one line that says so.
fn a_kernel_without_ipv6(engine: Engine) {
    let oracle = Oracle::start(Script::Work);
    let gateway = everywhere(engine, oracle.address).without_ipv6().start();
    assert_eq!(gateway.address.ip(), Ipv4Addr::UNSPECIFIED);
    serves_ipv4(&gateway);
    let said = || gateway.log().matches("there is no IPv6 here").count();
    until("the log says it", SOON, || said() > 0);
    assert_eq!(said(), 1, "{}", gateway.log());
    gateway.assert_clean();
}

/// The addresses alone are missing: sockets can still be made, and `[::]` takes IPv4 too, whatever
/// `bindv6only` is.
#[test]
fn a_network_without_ipv6() {
    run(Engine::Epoll, |engine| {
        if let Some(reason) = namespace::missing() {
            return skip(reason);
        }
        let app: SocketAddr = ([127, 0, 0, 1], 8000).into();
        let write = "cd /proc/sys/net/ipv6 && echo 1 > conf/all/disable_ipv6 && echo 1 > bindv6only && cd /";
        let gateway = namespace::start(everywhere(engine, app), write);
        namespace::inside(&gateway, || {
            let _oracle = Oracle::start_at(app, Script::Work);
            serves_ipv4(&gateway);
        });
    });
}

/// All that is not for this machine alone is at `[::]`.
fn everywhere(engine: Engine, app: SocketAddr) -> Setup {
    let setup = Setup::without_port(engine).port_at("[::]:0", app);
    setup.set("probe", "[::]:0").set("metrics", "[::]:0")
}

#[track_caller]
fn serves_ipv4(gateway: &Gateway) {
    let to = (Ipv4Addr::LOCALHOST, gateway.address.port()).into();
    assert_eq!(exchange(to, Duration::from_millis(1), SOON), End::Answered);
    let probe = SocketAddr::from((Ipv4Addr::LOCALHOST, gateway.status().probe.port()));
    TcpStream::connect_timeout(&probe, SOON).expect("it listens");
}
