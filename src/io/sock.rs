//! Socket options and facts both engines need.

use std::io;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::ReadBuf;

use super::App;

/// A peer that vanished without a word is noticed after 30 s of silence and 3 probes 10 s apart:
/// within a minute and a half also on a path that needs a few retransmissions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// How long sent bytes may stay unacknowledged: the same vanished peer, noticed while we write.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a TCP connection with another machine gets, on either side. Set on a listener it is
/// inherited by what is accepted from it, without a system call per connection.
pub fn watch_peer(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Send RST now, whoever else still refers to the socket. What was sent and not yet delivered is
/// lost, as a reset means it to be. Not all sockets can; those are closed and that is all.
pub fn reset(socket: SockRef<'_>) {
    // SO_LINGER 0 makes the kernel throw the unsent bytes away; connecting to "no address" ends
    // the connection at once, while close(2) would wait for the last reference to go.
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = rustix::net::connect_unspec(&*socket);
}

/// A fresh non-blocking socket for `app`, its options set, and the address to connect it to.
pub fn for_app(app: &App) -> io::Result<(Socket, SockAddr)> {
    match app {
        App::Tcp(addr) => {
            let domain = Domain::for_address(*addr);
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            Ok((socket, SockAddr::from(*addr)))
        }
        App::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            Ok((socket, SockAddr::unix(path)?))
        }
    }
}

/// How far a non-blocking connect has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// Connected.
    Done,
    /// Wait until the socket is writable, then ask it for its error.
    InProgress,
    /// A Unix socket's backlog is full, and nothing tells when it has room: ask again later.
    BacklogFull,
}

/// When to ask a full Unix backlog again.
pub const BACKLOG_RETRY: Duration = Duration::from_millis(5);

/// Start to connect. A loopback peer with room in its backlog has answered by the time the first
/// call returns; asking again costs a call and saves a turn of the loop.
pub fn start_connect(socket: &Socket, to: &SockAddr) -> io::Result<Connecting> {
    let mut asked = 0;
    loop {
        let Err(e) = socket.connect(to) else { return Ok(Connecting::Done) };
        asked += 1;
        match e.raw_os_error() {
            Some(libc::EISCONN) => return Ok(Connecting::Done),
            Some(libc::EINTR) => {}
            Some(libc::EINPROGRESS) if asked == 1 => {}
            Some(libc::EINPROGRESS | libc::EALREADY) => return Ok(Connecting::InProgress),
            Some(libc::EAGAIN) => return Ok(Connecting::BacklogFull),
            _ => return Err(e),
        }
    }
}

/// Receive what is there into the unfilled part of `buf`; 0 is the end.
#[allow(unsafe_code, reason = "the kernel initialises what it fills")]
pub fn receive(socket: &Socket, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: recv only ever writes to the slice, and never uninitialised bytes.
    let length = socket.recv(unsafe { buf.unfilled_mut() })?;
    // SAFETY: the kernel has written the first `length` bytes.
    unsafe { buf.assume_init(length) };
    buf.advance(length);
    Ok(length)
}

/// What has been received, without taking it; 0 is the end.
pub fn peek(socket: &SockRef<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    use rustix::net::{RecvFlags, recv};
    let (_, length) = recv(&**socket, bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(length)
}

/// Have the socket count as readable only when it has received more than `length` bytes, or ended.
#[allow(unsafe_code, reason = "SO_RCVLOWAT has no safe interface")]
pub fn wake_beyond(socket: &SockRef<'_>, length: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let least = libc::c_int::try_from(length + 1).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option is one int, which is read from where it is told.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const least).cast(),
            size_of_val(&least) as libc::socklen_t,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An error once `deadline` has passed.
pub fn check(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// Bytes that were handed to the kernel and that the peer has not acknowledged yet. `None`: not a
/// socket that can say.
#[allow(unsafe_code, reason = "SIOCOUTQ has no safe interface")]
pub fn unacknowledged(socket: SockRef<'_>) -> Option<i32> {
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which has the number of TIOCOUTQ, writes one int to where it is told.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (answer == 0).then_some(bytes)
}
