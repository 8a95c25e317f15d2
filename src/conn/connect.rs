//! Connect: reach the application, within the time allowed, and never ourselves.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;

use super::{Config, Port};
use crate::io::{App, Engine, sock};
use crate::outcome::{Outcome, Reason};

/// Why an address of the application is no use.
enum Unreachable {
    /// Nobody answered there, or not in time.
    Dead(io::Error),
    /// We answered there.
    Ourselves,
}

/// Dial the application's addresses in order; the first that answers is it, and has been sent the
/// `header` that [`header`] made.
pub(super) fn connect<E: Engine>(
    engine: &E,
    port: &Port,
    config: &Config,
    header: Vec<u8>,
) -> impl Future<Output = Result<E::Stream, Outcome>> {
    async move {
        let mut failure = Reason::UpstreamRefused;
        for app in &port.apps {
            let dialled = tokio::select! {
                biased;
                dialled = engine.dial(app, config.connect_timeout) => dialled,
                () = port.shared.cut.raised() => return Err(Outcome::Cut),
            };
            let met = dialled.map_err(Unreachable::Dead).and_then(|stream| {
                // The application may have accepted it: it must not be left with a connection that
                // holds no slot.
                introduce(port, app, &header, engine.socket(&stream))
                    .inspect_err(|_| sock::reset(engine.socket(&stream)))?;
                Ok(stream)
            });
            match met {
                Ok(stream) => return Ok(stream),
                Err(Unreachable::Ourselves) => failure = Reason::Loop,
                Err(Unreachable::Dead(e)) => {
                    tracing::debug!(port = %port.listen, app = %port.app_text, error = %e, "cannot reach the application");
                    failure = match e.kind() {
                        io::ErrorKind::TimedOut => Reason::UpstreamTimeout,
                        _ => Reason::UpstreamRefused,
                    };
                }
            }
        }
        Err(Outcome::Refused(failure))
    }
}

/// See that a fresh connection is the application's, and say who is behind it.
fn introduce(
    port: &Port,
    app: &App,
    header: &[u8],
    socket: SockRef<'_>,
) -> Result<(), Unreachable> {
    if let App::Tcp(to) = app
        && let Some(local) = socket.local_addr()?.as_socket()
    {
        if local == *to {
            // Linux connects a socket to itself when nobody listens on a port and the socket was
            // given that very port as its own.
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        if port.shared.is_loop(local, *to) {
            return Err(Unreachable::Ourselves);
        }
        if !same_machine(local.ip(), to.ip()) {
            sock::watch_peer(SockRef::from(&*socket))?;
        }
    }
    if !header.is_empty() && socket.send(header)? != header.len() {
        // A fresh connection has room for 52 bytes; one that has not is of no use.
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }
    Ok(())
}

impl From<io::Error> for Unreachable {
    fn from(error: io::Error) -> Self {
        Self::Dead(error)
    }
}

/// Whether both ends are sockets of one kernel: such a peer cannot vanish without a word, so five
/// system calls per connection to notice that it has are saved. In a pod this is the usual case.
fn same_machine(local: IpAddr, peer: IpAddr) -> bool {
    local == peer || peer.is_loopback()
}

/// What the application is to read first: the PROXY header of this `client`, whose socket it is, if the
/// settings want one; else nothing. Without a client the connection is the gateway's own.
pub(super) fn header(
    port: &Port,
    config: &Config,
    client: Option<(SocketAddr, SockRef<'_>)>,
) -> Vec<u8> {
    if !config.send_proxy_protocol {
        return Vec::new();
    }
    let ends = client.map(|(client, socket)| {
        // Where every address is listened on, the socket that was accepted knows which was called.
        let own = || socket.local_addr().ok().and_then(|own| own.as_socket());
        let any = port.listen.ip().is_unspecified();
        let called = any.then(own).flatten().unwrap_or(port.listen);
        (client, called)
    });
    proxy_header(ends)
}

/// The PROXY protocol v2 header: who is behind this connection, and whom he called.
/// Source: haproxy.org/download/2.8/doc/proxy-protocol.txt, section 2.2.
fn proxy_header(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
    const VERSION_2_PROXY: u8 = 0x21;
    const VERSION_2_LOCAL: u8 = 0x20;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    let mut header = SIGNATURE.to_vec();
    let Some((client, called)) = ends else {
        header.extend([VERSION_2_LOCAL, 0, 0, 0]);
        return header;
    };
    let ips = (client.ip().to_canonical(), called.ip().to_canonical());
    header.push(VERSION_2_PROXY);
    if let (IpAddr::V4(from), IpAddr::V4(to)) = ips {
        header.extend([TCP_OVER_IPV4, 0, 12]);
        header.extend(from.octets());
        header.extend(to.octets());
    } else {
        let v6 = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        header.extend([TCP_OVER_IPV6, 0, 36]);
        header.extend(v6(ips.0));
        header.extend(v6(ips.1));
    }
    header.extend(client.port().to_be_bytes());
    header.extend(called.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(client: &str, called: &str) -> Vec<u8> {
        proxy_header(Some((client.parse().unwrap(), called.parse().unwrap())))
    }

    #[test]
    fn the_header_for_an_ipv4_client() {
        let header = between("10.1.2.3:4660", "10.0.0.1:80");
        assert_eq!(&header[..12], b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A");
        assert_eq!(header[12..], [0x21, 0x11, 0, 12, 10, 1, 2, 3, 10, 0, 0, 1, 0x12, 0x34, 0, 80]);
        assert_eq!(
            between("10.1.2.3:4660", "[::ffff:10.0.0.1]:80"),
            header,
            "by one socket for both"
        );
    }

    #[test]
    fn mapped_and_plain_addresses_mix_as_ipv6() {
        let header = between("[2001:db8::1]:1", "10.0.0.1:80");
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(header.len(), 16 + 36);
    }
}
