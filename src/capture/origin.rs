//! Where a captured connection was going, and the guards against going round in a circle.
//!
//! Three guards, none of which relies on another:
//!
//! 1. who dials the capture port itself, so that there is no other destination, is turned away;
//! 2. a port of our own is never a destination, nor is an address that is not this machine's;
//! 3. a connection whose other end is a socket of this process is our own dial, come back to us by
//!    somebody's rules. No mark could tell: setting one takes a capability that serving does not have.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use socket2::SockRef;

use super::{place, sockets};

/// Why a captured connection cannot be carried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    /// It was not redirected: somebody has dialled the capture port.
    Direct,
    /// It was going to a port of ours.
    Ours,
    /// We have made it ourselves.
    Circle,
    /// It was going to another machine.
    Foreign,
    /// It was going to a port that nobody listens on.
    Nobody,
}

/// Where `socket`, which came from `peer`, was going. `is_port_of_ours`: the ports this process
/// listens on.
pub fn of(
    socket: SockRef<'_>,
    peer: Option<SocketAddr>,
    is_port_of_ours: impl Fn(u16) -> bool,
) -> Result<SocketAddr, Astray> {
    let peer = peer.ok_or(Astray::Direct)?;
    let called = original(&socket, peer.is_ipv4()).map_err(|_| Astray::Direct)?;
    if is_port_of_ours(called.port()) {
        // Where the kernel tracks connections it knows those, too, that nobody has redirected.
        let here = socket.local_addr().ok().and_then(|here| here.as_socket()).map(destination);
        return Err(if here == Some(called) { Astray::Direct } else { Astray::Ours });
    }
    // Only what began on this machine can be ours: everybody else is spared the question.
    if sockets::is_here(peer.ip(), called.ip()) && sockets::is_own(peer, called) {
        return Err(Astray::Circle);
    }
    Ok(called)
}

/// Whether `called` is an address of this machine: what is not must not be dialled for others.
pub fn is_here(called: SocketAddr) -> bool {
    place::is_local(called)
}

/// What the kernel's connection tracking says it was before NAT.
pub(super) fn original(socket: &SockRef<'_>, v4: bool) -> io::Result<SocketAddr> {
    let address = if v4 { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok(destination(address))
}

/// What is called, by which it is known again: of IPv6 a link-local address has its interface with it; the
/// flow label is the client's, another for every connection.
fn destination(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => {
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into()
        }
        _ => SocketAddr::new(address.ip().to_canonical(), address.port()),
    }
}

impl Astray {
    /// For people, to be read after what became of it.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Direct => {
                "it was not redirected: somebody dials the capture port itself, or no rules are installed (tidegate capture check)"
            }
            Self::Ours => "it was going to a port of the gateway",
            Self::Circle => {
                "the gateway has made it itself: rules redirect what this machine sends"
            }
            Self::Foreign => "it was going to another machine",
            Self::Nobody => "nobody listens on that port",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_one_address_go_to_the_same_place() {
        let link_local = "fe80::1".parse().expect("an address");
        let labelled = |label, scope| SocketAddrV6::new(link_local, 80, label, scope).into();
        assert_eq!(destination(labelled(7, 2)), destination(labelled(8, 2)));
        assert_ne!(destination(labelled(7, 2)), destination(labelled(7, 3)), "another interface");
        let mapped = "[::ffff:10.0.0.7]:80".parse().expect("an address");
        assert_eq!(destination(mapped).to_string(), "10.0.0.7:80");
    }
}
