//! The kernel's socket table: the last word on how many connections an application has (P1).
//!
//! It is asked through `sock_diag`, as `ss` does. (`/proc/net/tcp` also lists every socket in TIME_WAIT:
//! 80 ms for a reading during a storm.) A reading is no snapshot: while it is made, connections come and
//! go. So a connection counts only when it is in two readings that follow each other; all of those were
//! there at once, at the moment the first reading ended. Short-lived ones are missed; the oracle counts
//! these itself.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// The kernel's cookie of a socket: never given twice.
type Cookie = u64;

/// The connections whose local IPv4 port is `port` and whose end towards the gateway is not closed:
/// established (accepted or not), half-closed by the peer, or half-closed by the application while it
/// keeps the socket.
pub(crate) fn open_at(port: u16) -> HashSet<Cookie> {
    open_in(libc::AF_INET, port)
}

/// Those too of an application that listens on an IPv6 socket and is dialled by IPv4.
pub(crate) fn open_at_either(port: u16) -> HashSet<Cookie> {
    let mut open = open_in(libc::AF_INET, port);
    open.extend(open_in(libc::AF_INET6, port));
    open
}

fn open_in(family: i32, port: u16) -> HashSet<Cookie> {
    let mut open = HashSet::new();
    each(family, port, |message| open.extend(open_socket(message)));
    open
}

/// How many bytes have come on the connection from IPv4 port `peer` that the owner of `port` has not read;
/// `None` when it is closed.
pub(crate) fn unread(port: u16, peer: u16) -> Option<u32> {
    let mut unread = None;
    each(libc::AF_INET, port, |message| {
        let is_it = message.get(6..8) == Some(&peer.to_be_bytes()[..])
            && message.get(1) == Some(&ESTABLISHED);
        let bytes = message.get(56..60).and_then(|bytes| bytes.try_into().ok());
        unread = bytes.filter(|_| is_it).map(u32::from_ne_bytes).or(unread);
    });
    unread
}

/// Every socket of that kind whose local port it is.
fn each(family: i32, port: u16, mut take: impl FnMut(&[u8])) {
    let netlink = Domain::from(libc::AF_NETLINK);
    let diag = Protocol::from(libc::NETLINK_SOCK_DIAG);
    let socket =
        Socket::new(netlink, Type::DGRAM, Some(diag)).expect("sock_diag is in every kernel");
    socket.send(&question(family, port)).expect("the kernel takes the question");
    let mut answer = vec![0; 65_536];
    loop {
        let length = (&socket).read(&mut answer).expect("the kernel answers");
        let mut rest = &answer[..length];
        while let Some(message) = Message::next(&mut rest) {
            match message.kind {
                NLMSG_ERROR => panic!("sock_diag: error {:?}", &message.body[..4]),
                NLMSG_DONE => return,
                _ => take(message.body),
            }
        }
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;

/// `struct nlmsghdr` and `struct inet_diag_req_v2`: the family, TCP, the states we want, the local port.
fn question(family: i32, port: u16) -> [u8; 72] {
    let mut question = [0; 72];
    question[0..4].copy_from_slice(&72_u32.to_ne_bytes());
    question[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    question[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    question[16..18].copy_from_slice(&[family as u8, libc::IPPROTO_TCP as u8]);
    let states: u32 =
        [ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT].iter().map(|state| 1 << state).sum();
    question[20..24].copy_from_slice(&states.to_ne_bytes());
    question[24..26].copy_from_slice(&port.to_be_bytes());
    question
}

const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

/// One `struct nlmsghdr` and what follows it.
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn next(rest: &mut &'a [u8]) -> Option<Self> {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest[4..6].try_into().ok()?);
        let body = rest.get(16..length)?;
        *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Self { kind, body })
    }
}

/// `struct inet_diag_msg`: the state at 1, the peer's port at 6, the cookie at 44, what is unread at 56, the
/// inode at 68.
fn open_socket(message: &[u8]) -> Option<Cookie> {
    let state = *message.get(1)?;
    let cookie = u64::from_ne_bytes(message.get(44..52)?.try_into().ok()?);
    let inode = u32::from_ne_bytes(message.get(68..72)?.try_into().ok()?);
    let by_application = state == FIN_WAIT1 || state == FIN_WAIT2;
    (!by_application || inode != 0).then_some(cookie) // inode 0: no process holds it any more
}

/// Samples the table in its own thread until dropped.
pub(crate) struct Watch {
    peak: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(port: u16) -> Self {
        let peak = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (peak, stop) = (Arc::clone(&peak), Arc::clone(&stop));
            move || {
                let mut before = open_at_either(port);
                while !stop.load(Ordering::Relaxed) {
                    let now = open_at_either(port);
                    let together = before.intersection(&now).count();
                    peak.fetch_max(together, Ordering::Relaxed);
                    before = now;
                    std::thread::sleep(Duration::from_micros(500)); // leave the cores to the gateway
                }
            }
        });
        Self { peak, stop, thread: Some(thread) }
    }

    /// The most that were there at once.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
