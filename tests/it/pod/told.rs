//! P9: who the client is to the application, and to whoever runs it: himself, by his own address of either
//! family, although one socket of the gateway is for both.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::kubelet::LivePod;
use super::network::Network;
use super::specs::{Case, Spec, cases, nginx_conf, nginx_container};
use crate::support::gateway::Gateway;
use crate::support::{SOON, process, skip, until};

cases!(beside: the_client_is_called_by_his_own_address);

const WEB: u16 = 8080;
const PROXIED: u16 = 8081;

/// As it comes, but for saying what it was told.
const NGINX: &str = r#"
server {
    listen ADDRESS:8080;
    location / { return 200 "$http_x_forwarded_for $remote_addr"; }
}
server {
    listen ADDRESS:8081 proxy_protocol;
    location / { return 200 "$proxy_protocol_addr:$proxy_protocol_port
                             $proxy_protocol_server_addr:$proxy_protocol_server_port $remote_addr"; }
}
"#;

/// In `X-Forwarded-For`, in a PROXY header together with the address that was called, in the list of
/// connections, the access log and the journal. The application's own peer is the pod, never loopback.
fn the_client_is_called_by_his_own_address(case: Case) {
    if !process::installed("nginx") {
        return skip("nginx is not installed");
    }
    let files = BTreeMap::from([("nginx.conf".to_owned(), nginx_conf(NGINX, case))]);
    let app = nginx_container();
    let spec = Spec::new(case, "shop", &[WEB, PROXIED], app).config_map("nginx", "/config");
    let spec = spec.set("access-log", "on").set_port("limit", PROXIED, 1);
    let spec = spec.set_port("queue-length", PROXIED, 0).set_port("protocol", PROXIED, "tcp");
    let spec = spec.set_port("send-proxy-protocol", PROXIED, true);
    let network = Network::new();
    let maps = BTreeMap::from([("nginx".to_owned(), files)]);
    let pod = LivePod::start(&network, case.families, spec.pod(), &maps);
    pod.wait_ready();
    let own = pod.address();
    until("nginx listens", SOON, || pod.inside(|| TcpStream::connect((own, WEB)).is_ok()));
    let gateway = pod.gateway();

    let (client, said) = ask(&network, (own, case.port(WEB)).into());
    assert_eq!(said, format!("{} {own}", client.ip()), "nothing was set for it");
    until("its line", SOON, || {
        lines(&gateway).iter().any(|line| line["client"] == *client.to_string())
    });

    let to = SocketAddr::new(own, case.port(PROXIED));
    let (client, said) = ask(&network, to);
    let (client_ip, client_port) = (client.ip(), client.port());
    let told: Vec<_> = said.split_whitespace().collect();
    let called = format!("{own}:{}", to.port());
    assert_eq!(told, [&format!("{client_ip}:{client_port}"), &called, &own.to_string()]);

    // One has the slot, and the next one none.
    let held = network.client.enter(|| TcpStream::connect(to).expect("connects"));
    let his = held.local_addr().expect("connected").to_string();
    let listed = || {
        let all = gateway.call("GET", "/connections.json", "").body;
        serde_json::from_str::<Value>(&all).expect("JSON")
    };
    until("he is in", SOON, || gateway.port_at(to.port()).active == 1);
    assert!(listed().to_string().contains(&format!("\"{his}\"")), "{his}: {}", listed());
    let next = network.client.enter(|| TcpStream::connect(to).expect("connects"));
    until("the next is refused", SOON, || gateway.port_at(to.port()).refused("limit_reached") == 1);
    let recent = gateway.call("GET", "/explain?last=1", "").body;
    let recent: Value = serde_json::from_str(&recent).expect("JSON");
    let his = next.local_addr().expect("connected").to_string();
    assert_eq!(recent["recent"][0]["client"], his, "{recent}");
    drop((held, next));
    gateway.assert_clean();
}

/// A request of a client elsewhere, on a connection of its own: who he was, and what nginx was told.
fn ask(network: &Network, to: SocketAddr) -> (SocketAddr, String) {
    network.client.enter(|| {
        let mut stream = TcpStream::connect(to).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let head = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        (stream.local_addr().expect("connected"), body.to_owned())
    })
}

/// The lines of the access log.
fn lines(gateway: &Gateway) -> Vec<Value> {
    gateway.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
