//! Socket options and facts both engines need.

use std::io;
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::ReadBuf;

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

/// How many connections wait on a listening socket to be accepted, and how many may. `None`: not a
/// socket that can say.
#[allow(unsafe_code, reason = "TCP_INFO has no safe interface")]
pub fn backlog(listener: SockRef<'_>) -> Option<[u32; 2]> {
    use std::os::fd::AsRawFd;
    const TCP_LISTEN: u8 = 10;
    /// Where in `struct tcp_info` tcpi_unacked and tcpi_sacked are, which on a listening socket are
    /// the length of its queue and the longest it may be.
    const QUEUE: [usize; 2] = [6, 7];
    let mut info = [0_u32; 8];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to where it is told, and how many to `length`.
    let answer = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let whole = answer == 0 && length as usize == size_of_val(&info);
    let [state, ..] = info[0].to_ne_bytes();
    (whole && state == TCP_LISTEN).then(|| QUEUE.map(|at| info[at]))
}
