//! The proof that NAT works here and that the original destination can be asked for: a connection of
//! our own over loopback, redirected by a rule that lives as long as the proof.
//!
//! ```text
//!   dial 127.0.0.1:15819 ── rule ──→ a listener on another port ──→ where was it going? 127.0.0.1:15819
//! ```
//!
//! Always true: the rule is gone afterwards, also if this process is killed meanwhile (the kernel
//! removes a table with the socket that owns it; before Linux 5.12 we do).

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::install::{CaptureError, lend, transact_on};
use super::netlink::{NETFILTER, Netlink};
use super::nftables::Batch;
use super::rules::{Hook, Match, Rule, Table, Verdict};
use super::{PROOF_PORT, origin};

/// Where it was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// Over 127.0.0.1.
    pub v4: bool,
    /// Over ::1.
    pub v6: bool,
}

/// Why it could not be proved.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// There is no loopback to prove it on.
    #[error("there is no loopback address to prove it on; is `lo` up? (ip link set lo up)")]
    NoLoopback,
    /// Nobody else may hold the table of the proof.
    #[error("somebody else proves it at this moment; try again")]
    Busy,
    /// The connection did not arrive.
    #[error("a connection to {to} was not redirected: {error}{}{}", Loopback(.error), Legacy)]
    NotRedirected {
        /// Whom it called.
        to: SocketAddr,
        /// How it ended.
        error: io::Error,
    },
    /// It arrived, but nobody knows where it was going.
    #[error(
        "the original destination of a redirected connection to {to} cannot be asked for ({found}): the kernel's connection tracking is missing or switched off (nf_conntrack, notrack rules){}",
        Legacy
    )]
    NoOriginal {
        /// Whom it called.
        to: SocketAddr,
        /// What the kernel said instead.
        found: String,
    },
}

struct Legacy;

struct Loopback<'a>(&'a io::Error);

/// Loopback answers at once, or never.
const PATIENCE: Duration = Duration::from_secs(1);

const TABLE: &str = "tidegate-proof";

/// The table of the proof, in force.
struct Lent(Netlink);

/// Prove it for each family that is here.
pub(super) fn prove() -> Result<Families, CaptureError> {
    let Some((v4, v6)) = listeners() else { return Err(ProofError::NoLoopback.into()) };
    let listeners: Vec<_> = [v4, v6].into_iter().flatten().collect();
    let port = listeners[0].local_addr().map_err(CaptureError::Unreadable)?.port();
    let lent = Lent::new(port)?;
    let mut families = Families { v4: false, v6: false };
    for listener in &listeners {
        let ip = listener.local_addr().map_err(CaptureError::Unreadable)?.ip();
        one(listener, SocketAddr::new(ip, PROOF_PORT))?;
        match ip {
            IpAddr::V4(_) => families.v4 = true,
            IpAddr::V6(_) => families.v6 = true,
        }
    }
    drop(lent);
    Ok(families)
}

/// A listener for each family, on one port.
fn listeners() -> Option<(Option<TcpListener>, Option<TcpListener>)> {
    /// One of so many ports is free for both.
    const TRIES: usize = 16;
    for _ in 0..TRIES {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok();
        let port = match &v4 {
            Some(v4) => v4.local_addr().ok()?.port(),
            None => 0,
        };
        match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(v6) => return Some((v4, Some(v6))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(_) => return v4.map(|v4| (Some(v4), None)),
        }
    }
    None
}

impl Lent {
    fn new(port: u16) -> Result<Self, CaptureError> {
        let netlink = Netlink::open(NETFILTER).map_err(CaptureError::NoNftables)?;
        // What an older kernel may have kept of somebody who was killed.
        let ours = |error| match error {
            // Rules of our own could be made a moment ago: this table is not ours to touch.
            CaptureError::NotPermitted => ProofError::Busy.into(),
            other => other,
        };
        transact_on(&netlink, Batch::removing(TABLE), true).map_err(ours)?;
        let mut table = Table {
            name: TABLE,
            owned: true,
            sets: Vec::new(),
            chain: "output",
            hook: Hook::Output,
            rules: vec![Rule {
                when: &[Match::ToLoopback, Match::TcpPort(PROOF_PORT)],
                then: Verdict::Redirect(port),
            }],
        };
        if lend(&netlink, &table).is_err() {
            table.owned = false;
            lend(&netlink, &table).map_err(ours)?;
        }
        Ok(Self(netlink))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let _ = transact_on(&self.0, Batch::removing(TABLE), true);
    }
}

/// One connection to `to`, which has to come out at `listener`.
fn one(listener: &TcpListener, to: SocketAddr) -> Result<(), ProofError> {
    let failed = |error| ProofError::NotRedirected { to, error };
    let client = TcpStream::connect_timeout(&to, PATIENCE).map_err(failed)?;
    let from = client.local_addr().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let arrived = loop {
        match listener.accept() {
            Ok((arrived, peer)) if peer == from => break arrived,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(failed(error)),
        }
    };
    match origin::original(&SockRef::from(&arrived), to.is_ipv4()) {
        Ok(found) if found == to => Ok(()),
        Ok(found) => Err(ProofError::NoOriginal { to, found: found.to_string() }),
        Err(error) => Err(ProofError::NoOriginal { to, found: error.to_string() }),
    }
}

/// Whether rules of the old kind are here, which may take a connection before ours do.
pub fn has_legacy_nat() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].iter().any(|file| {
        let names = fs::read_to_string(file).unwrap_or_default();
        names.lines().any(|name| name == "nat")
    })
}

impl fmt::Display for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if has_legacy_nat() {
            f.write_str("; there are NAT rules of iptables-legacy here, which may come first: see `iptables-legacy -t nat -S`, and move them to iptables-nft")?;
        }
        Ok(())
    }
}

impl fmt::Display for Loopback<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::ConnectionRefused => Ok(()),
            _ => f.write_str("; is `lo` up? (ip link set lo up)"),
        }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.v4, self.v6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4; there is no IPv6 here",
            (false, true) => "IPv6; there is no IPv4 here",
            (false, false) => "nothing",
        })
    }
}
