//! Listening sockets: opened once for all workers, and closed without resetting anybody.
//!
//! Closing a listener resets every connection in its backlog, also those that came in between the
//! last `accept` and the `close`. So the end of a listener has steps:
//!
//! ```text
//! 1. a filter on the listener drops new SYNs (the client's kernel will ask again, and be refused)
//! 2. handshakes that had begun get SETTLE to finish; everything that finished is accepted
//! 3. the backlog is empty and stays empty: close
//! ```

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use super::{Accepted, sock};

/// Connections the kernel may keep for us before we accept them. The kernel caps it at
/// `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// How long a handshake that had begun may take to finish: a few round trips inside a cluster.
const SETTLE: Duration = Duration::from_millis(100);

/// The steps of closing, kept beside a listener by each worker.
#[derive(Debug, Default)]
pub struct Ending {
    settled_at: Cell<Option<Instant>>,
}

/// What to do next with a listener that is being closed.
#[derive(Debug)]
pub enum Next {
    /// Hand this connection out.
    Accepted(Accepted),
    /// Ask again then.
    SettleUntil(Instant),
    /// Nothing is left: close.
    Empty,
}

/// How long the port of a predecessor that was killed may still be taken: the kernel closes what an
/// io_uring held some milliseconds after the process has gone.
const PREDECESSOR: Duration = Duration::from_millis(200);

/// The kernel's queue of connections that nobody has accepted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// How many there are.
    pub waiting: u32,
    /// How many there may be: [`BACKLOG`], or `net.core.somaxconn` if that is less.
    pub capacity: u32,
}

/// The backlog of a listening socket. `None`: the kernel does not say.
pub fn backlog(listener: &Socket) -> Option<Backlog> {
    let [waiting, capacity] = sock::backlog(listener.into())?;
    Some(Backlog { waiting, capacity })
}

/// Bind and listen on `addr`. What every accepted connection needs is set here, to be inherited. `[::]`
/// is both families, whatever the machine's default is, and IPv4 alone where there is no IPv6: who
/// writes it does not know on which machine it will be.
pub fn open(addr: SocketAddr) -> io::Result<Socket> {
    match open_as(addr) {
        Err(error) if is_any_v6(addr) && lacks_ipv6(&error) => {
            open_as((Ipv4Addr::UNSPECIFIED, addr.port()).into())
        }
        opened => opened,
    }
}

/// Whether this machine had no IPv6 for a socket that was opened at `addr`.
pub fn fell_back(addr: SocketAddr, socket: &Socket) -> bool {
    let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
    addr.is_ipv6() && bound.is_some_and(|bound| bound.is_ipv4())
}

fn is_any_v6(addr: SocketAddr) -> bool {
    addr.ip() == Ipv6Addr::UNSPECIFIED
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open_as(addr: SocketAddr) -> io::Result<Socket> {
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match bind(addr) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(PREDECESSOR / 20);
            }
            bound => return bound,
        }
    }
}

fn bind(addr: SocketAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    // What is accepted inherits it. An urgent byte (FTP's ABOR, telnet's break) that is not in line
    // would be left out of what we read, and so of what we pass on.
    socket.set_out_of_band_inline(true)?;
    if is_any_v6(addr) {
        socket.set_only_v6(false)?;
    }
    sock::watch_peer(SockRef::from(&socket))?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

impl Ending {
    /// One step. Never waits.
    pub fn step(&self, listener: &Socket) -> io::Result<Next> {
        if self.settled_at.get().is_none() {
            // If the filter cannot be set, closing is as it is everywhere else: a connection that
            // arrives in the last microseconds is reset.
            let _ = SockRef::from(listener).attach_filter(&DROP_NEW_SYNS);
            self.settled_at.set(Some(Instant::now() + SETTLE));
        }
        match accept(listener) {
            Ok(accepted) => Ok(Next::Accepted(accepted)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.settled_at.get() {
                Some(at) if at > Instant::now() => Ok(Next::SettleUntil(at)),
                _ => Ok(Next::Empty),
            },
            Err(e) => Err(e),
        }
    }
}

/// One non-blocking accept; the connection comes non-blocking too. Errors of a connection that
/// died in the backlog are passed over, as accept(2) says they must be. A peer has the address by which
/// others know it: that one socket takes both families is nobody else's business.
pub fn accept(listener: &Socket) -> io::Result<Accepted> {
    /// More in a row is no accident: something forbids accepting as such.
    const DEAD_IN_A_ROW: usize = 64;
    let mut dead = 0;
    loop {
        // socket2 would leave the new socket blocking; making it non-blocking costs a call more.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(listener, flags).map_err(io::Error::from) {
            Ok((stream, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(plain);
                return Ok((Socket::from(stream), peer));
            }
            Err(e) if is_of_the_connection(&e) && dead < DEAD_IN_A_ROW => dead += 1,
            Err(e) => return Err(e),
        }
    }
}

/// An IPv4 address as such where IPv6 has wrapped it up.
fn plain(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, peer.port()),
        _ => peer,
    }
}

/// An error accept(2) reports about the connection, not about the listener.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}

/// An error that goes away by itself when descriptors or memory come free.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Classic BPF over the TCP header: drop what has SYN and not ACK, keep everything else.
const DROP_NEW_SYNS: [SockFilter; 5] = [
    // A = flags byte of the TCP header
    SockFilter::new(0x30, 0, 0, 13),
    // A &= SYN | ACK
    SockFilter::new(0x54, 0, 0, 0x12),
    // A == SYN ? drop : keep
    SockFilter::new(0x15, 1, 0, 0x02),
    SockFilter::new(0x06, 0, 0, 0xffff_ffff),
    SockFilter::new(0x06, 0, 0, 0),
];

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_socket_for_both_families_knows_its_peers_by_their_own_addresses() {
        let listener = open((Ipv6Addr::UNSPECIFIED, 0).into()).expect("a free port");
        let port = listener.local_addr().expect("bound").as_socket().expect("an IP socket").port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
        let (_, peer) = accept(&listener).expect("accepts");
        assert_eq!(peer, client.local_addr().ok());
    }

    #[test]
    fn the_backlog_is_what_nobody_has_accepted_yet() {
        let listener = open((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = listener.local_addr().expect("bound").as_socket().expect("an IP socket");
        let waiting = || backlog(&listener).expect("the kernel says").waiting;
        assert_eq!(waiting(), 0);
        let clients = [(); 3].map(|()| TcpStream::connect(address).expect("connects"));
        assert_eq!(waiting(), 3);
        assert!(backlog(&listener).is_some_and(|backlog| backlog.capacity >= 128));
        let (accepted, _) = accept(&listener).expect("accepts");
        assert_eq!(waiting(), 2);
        assert_eq!(backlog(&accepted), None, "it does not listen");
        drop(clients);
    }
}
