//! The kernel's table of TCP sockets, asked over `sock_diag` as `ss` does: who owns the other end of a
//! connection, whether anybody listens on a port, and who reaches the application beside the gateway.
//!
//! Layouts: `linux/inet_diag.h`. No capability is needed.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::PortSet;
use super::netlink::{DUMP, Message, Netlink, REQUEST, Received, SOCK_DIAG};

/// Where an application listens on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Application {
    /// Its address; `None`: whatever address of this machine is called.
    pub ip: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// What is asked about connections beside the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Of each port, where its application is. It can have several addresses.
    pub ports: Vec<Vec<Application>>,
    /// Ports that are captured, and that nobody has called here.
    pub uncalled: PortSet,
}

/// How many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// To each port. `None`: its application is not on this machine, or the kernel does not tell.
    pub ports: Vec<Option<u64>>,
    /// From other machines to [`Question::uncalled`]: somebody calls those, and no rules bring him here.
    pub uncalled: Option<u64>,
}

/// The connections beside the gateway, asked for at most once in a while.
#[derive(Debug, Default)]
pub struct Beside {
    last: Mutex<Option<Reading>>,
}

#[derive(Debug)]
struct Reading {
    /// When it was finished, and how long that had taken.
    at: Instant,
    took: Duration,
    of: Question,
    counted: Counted,
}

/// Whoever asks more often is told the same: the kernel walks its whole table.
const FRESH: Duration = Duration::from_secs(1);

/// And with tens of thousands of connections so many times as long as it took: it costs a hundredth of a
/// core at most.
const REST: u32 = 100;

/// A socket as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    uid: u32,
    /// 0: no process holds it (any more, or yet).
    inode: u64,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NO_COOKIE: [u8; 8] = [0xff; 8];

const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;
const OPEN_OR_LISTENING: [u8; 5] = [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LISTEN];

const V4: u8 = libc::AF_INET as u8;
const V6: u8 = libc::AF_INET6 as u8;

/// More descriptors than this are not looked through one by one: then it is not known which sockets of our
/// user are ours.
const MOST_DESCRIPTORS: usize = 16_384;

/// So many connections of this machine are asked about one by one.
const MOST_QUESTIONS: usize = 256;

impl Beside {
    /// How many connections reach applications beside the gateway.
    pub fn count(&self, of: Question) -> Counted {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |r: &&Reading| r.of == of && r.at.elapsed() < FRESH.max(r.took * REST);
        if let Some(reading) = last.as_ref().filter(fresh) {
            return reading.counted.clone();
        }
        let begun = Instant::now();
        let flat: Vec<Application> = of.ports.iter().flatten().copied().collect();
        let (found, uncalled) = beside(&flat, &of.uncalled).ok().unzip();
        let mut found = found.map(Vec::into_iter);
        let of_port = |apps: &Vec<Application>| {
            let counts = found.as_mut().filter(|_| !apps.is_empty())?;
            Some(counts.take(apps.len()).sum())
        };
        let ports: Vec<_> = of.ports.iter().map(of_port).collect();
        let counted = Counted { ports, uncalled: uncalled.filter(|_| !of.uncalled.is_empty()) };
        let (at, took) = (Instant::now(), begun.elapsed());
        *last = Some(Reading { at, took, of, counted: counted.clone() });
        counted
    }
}

/// How many connections each application has that do not come from this process; and how many there are
/// from other machines to somebody who listens on one of the `uncalled` ports.
fn beside(applications: &[Application], uncalled: &PortSet) -> io::Result<(Vec<u64>, u64)> {
    let mut counts = vec![0; applications.len()];
    if applications.is_empty() && uncalled.is_empty() {
        return Ok((counts, 0));
    }
    let (mut called, mut listened) = (BTreeMap::<u16, u64>::new(), BTreeSet::new());
    let at = |end: SocketAddr| {
        applications
            .iter()
            .position(|app| app.port == end.port() && app.ip.is_none_or(|ip| ip == end.ip()))
    };
    let own = Own::default();
    let mut dialled = HashSet::new();
    let mut served = Vec::new();
    for family in [V4, V6] {
        dump(family, &OPEN_OR_LISTENING, |listed| {
            if listed.state == LISTEN {
                listened.insert(listed.local.port());
                return;
            }
            // What was closed on this side, and is not held by anybody, only waits for its end.
            let gone = listed.inode == 0 && matches!(listed.state, FIN_WAIT1 | FIN_WAIT2);
            if let Some(at) = at(listed.local).filter(|_| !gone && !own.may_hold(&listed)) {
                served.push((at, listed));
            } else if at(listed.remote).is_some() && own.may_hold(&listed) {
                dialled.insert((listed.local, listed.remote));
            } else if !gone
                && uncalled.contains(listed.local.port())
                && !is_here(listed.remote.ip(), listed.local.ip())
            {
                // Or one that this machine has dialled, from a port that nobody listens on.
                *called.entry(listed.local.port()).or_default() += 1;
            }
        })?;
    }
    let mut questions = 0;
    for (at, listed) in served {
        let from = listed.remote;
        if dialled.contains(&(from, listed.local)) {
            continue;
        }
        // The table is no snapshot: our own end may have come or gone while it was read.
        if is_here(from.ip(), listed.local.ip()) && questions < MOST_QUESTIONS {
            questions += 1;
            match find(from, listed.local)? {
                Some(other) if !own.may_hold(&other) => {}
                _ => continue,
            }
        }
        counts[at] += 1;
    }
    let called = called.iter().filter(|(port, _)| listened.contains(port));
    Ok((counts, called.map(|(_, count)| count).sum()))
}

/// Whether anybody listens where `called` leads.
pub fn listens_at(called: SocketAddr) -> io::Result<bool> {
    let mut found = false;
    for family in [V4, V6] {
        let question = question(family, DUMP, &[LISTEN], called.port(), None);
        ask(question, |listed| {
            let ip = listed.local.ip();
            found |= listed.local.port() == called.port()
                && (ip == called.ip() || ip.is_unspecified() && (family == V6 || called.is_ipv4()));
        })?;
    }
    Ok(found)
}

/// Whether the other end of a connection, which called `called` from `from`, is a socket of this very
/// process.
pub fn is_own(from: SocketAddr, called: SocketAddr) -> bool {
    match find(from, called) {
        Ok(Some(listed)) => Own::default().may_hold(&listed),
        Ok(None) | Err(_) => false,
    }
}

/// The sockets (inodes) of others that listen where each application does. What may be ours is not: an
/// application that is overlooked would be taken to have ended.
pub fn listening(applications: &[Application]) -> io::Result<Vec<BTreeSet<u64>>> {
    listening_beside(&Own::default(), applications)
}

fn listening_beside(own: &Own, applications: &[Application]) -> io::Result<Vec<BTreeSet<u64>>> {
    let mut found = vec![BTreeSet::new(); applications.len()];
    for family in [V4, V6] {
        dump(family, &[LISTEN], |listed| {
            for (app, sockets) in applications.iter().zip(&mut found) {
                let ip = listed.local.ip();
                let called = app.ip.is_none_or(|app| {
                    app == ip || ip.is_unspecified() && (family == V6 || app.is_ipv4())
                });
                if app.port == listed.local.port() && called && own.holds(&listed) != Some(true) {
                    sockets.insert(listed.inode);
                }
            }
        })?;
    }
    Ok(found)
}

/// Whether a connection between these began on this machine: its source is one of its own addresses,
/// and the kernel takes the one that is called.
pub fn is_here(from: IpAddr, called: IpAddr) -> bool {
    from == called || from.is_loopback()
}

/// The sockets of this process; looked for only when a socket of its user was met.
#[derive(Default)]
struct Own {
    inodes: OnceCell<Option<HashSet<u64>>>,
}

impl Own {
    /// `None`: it is our user's, and there are too many to know.
    fn holds(&self, listed: &Listed) -> Option<bool> {
        if listed.inode == 0 || listed.uid != rustix::process::geteuid().as_raw() {
            return Some(false);
        }
        let inodes = self.inodes.get_or_init(own_inodes).as_ref()?;
        Some(inodes.contains(&listed.inode))
    }

    /// Where mistaking another's for ours does less harm than the other way round.
    fn may_hold(&self, listed: &Listed) -> bool {
        self.holds(listed).unwrap_or(true)
    }
}

/// The inodes of every socket this process holds; `None`: too many to look through.
fn own_inodes() -> Option<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for (count, entry) in fs::read_dir("/proc/self/fd").ok()?.enumerate() {
        if count >= MOST_DESCRIPTORS {
            return None;
        }
        let link = entry.ok().and_then(|entry| fs::read_link(entry.path()).ok());
        let link = link.unwrap_or_default();
        let number =
            link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Some(inodes)
}

/// The socket whose own end is `local` and whose other end is `remote`.
fn find(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Listed>> {
    let family = if local.is_ipv4() { V4 } else { V6 };
    let mut found = None;
    let asked = ask(question(family, 0, &[], local.port(), Some((local, remote))), |listed| {
        found = Some(listed);
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found.filter(|found| found.local == local && found.remote == remote)),
    }
}

fn dump(family: u8, states: &[u8], each: impl FnMut(Listed)) -> io::Result<()> {
    ask(question(family, DUMP, states, 0, None), each)
}

/// `struct inet_diag_req_v2`. A dump is of the local port `port`, 0 of all; else it is about one socket.
fn question(
    family: u8,
    dump: u16,
    states: &[u8],
    port: u16,
    ends: Option<(SocketAddr, SocketAddr)>,
) -> Message {
    let mut request = [0; 56];
    request[..2].copy_from_slice(&[family, libc::IPPROTO_TCP as u8]);
    let states: u32 = states.iter().map(|state| 1 << state).sum();
    request[4..8].copy_from_slice(&states.to_ne_bytes());
    request[8..10].copy_from_slice(&port.to_be_bytes());
    if let Some((local, remote)) = ends {
        request[10..12].copy_from_slice(&remote.port().to_be_bytes());
        for (at, ip) in [(12, local.ip()), (28, remote.ip())] {
            match ip {
                IpAddr::V4(ip) => request[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => request[at..at + 16].copy_from_slice(&ip.octets()),
            }
        }
        request[48..56].copy_from_slice(&NO_COOKIE);
    }
    Message::new(SOCK_DIAG_BY_FAMILY, REQUEST | dump, 1, &request)
}

fn ask(question: Message, mut each: impl FnMut(Listed)) -> io::Result<()> {
    let netlink = Netlink::open(SOCK_DIAG)?;
    let bytes = question.into_bytes();
    let is_dump = u16::from_ne_bytes([bytes[6], bytes[7]]) & DUMP != 0;
    netlink.send(&bytes)?;
    let received = netlink.receive(|message| {
        if let Some(listed) = listed(message) {
            each(listed);
        }
        !is_dump
    });
    received.map_err(|(_, error)| error)
}

/// `struct inet_diag_msg`
fn listed(message: Received<'_>) -> Option<Listed> {
    let body = message.body;
    if message.kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let number = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let end = |port: usize, ip: usize| {
        let ip: IpAddr = match body[0] {
            V4 => IpAddr::from(<[u8; 4]>::try_from(body.get(ip..ip + 4)?).ok()?),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(body.get(ip..ip + 16)?).ok()?).to_canonical(),
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes([*body.get(port)?, *body.get(port + 1)?])))
    };
    Some(Listed {
        state: *body.get(1)?,
        local: end(4, 8)?,
        remote: end(6, 24)?,
        uid: number(64)?,
        inode: number(68)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_may_be_ours_is_taken_for_the_applications() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("its address");
        let app = [Application { ip: None, port: at.port() }];
        let none = || listening(&app).expect("the kernel tells")[0].is_empty();
        assert!(none(), "our own");
        let unknown = Own { inodes: OnceCell::from(None) };
        let found = listening_beside(&unknown, &app).expect("the kernel tells");
        assert_eq!(found[0].len(), 1, "of our user, and nobody knows whose");
    }
}
