//! Which engine can run here, and if not io_uring, why not. A ladder of real steps, the last two
//! over real sockets; what the kernel's version promises is never asked.
//!
//! ```text
//! ring → operations → tokio-uring and the relay ring → a relayed round trip → a cancelled read
//! ```
//!
//! Always true: the answer comes within [`PATIENCE`] whatever the kernel does, and a failure names
//! the step, the error and what to do about it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode};
use socket2::Socket;
use tokio_util::sync::CancellationToken;

use super::epoll::Epoll;
use super::flow::Patience;
use super::uring::Uring;
use super::{App, Engine, EngineChoice, Flow, listen};

/// The engine that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selected {
    /// tokio on epoll.
    Epoll,
    /// tokio-uring and a relay ring.
    Uring {
        /// Whether a kernel thread submits.
        sqpoll: bool,
    },
}

/// One rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `io_uring_setup` with the flags we need.
    Ring,
    /// The kernel knows every operation we use.
    Operations,
    /// A tokio-uring runtime, and a registered ring of provided buffers in it.
    Start,
    /// Bytes there and back through a relay over loopback, and the end of file behind them.
    RoundTrip,
    /// A pending receive that is cancelled, and one that is shut down, come back.
    CancelledRead,
}

/// Why io_uring is not used.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error} ({advice})", advice = self.advice())]
pub struct Unusable {
    /// Where the ladder broke.
    pub step: Step,
    /// What the kernel said.
    pub error: io::Error,
}

/// How long the whole ladder may take. It takes some milliseconds; a kernel that makes it hang is
/// one not to use io_uring on.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long one read of the ladder's own peers may take.
const PEER_PATIENCE: Duration = Duration::from_millis(500);

impl Step {
    /// The ladder, from the ground up.
    pub const ALL: [Self; 5] =
        [Self::Ring, Self::Operations, Self::Start, Self::RoundTrip, Self::CancelledRead];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "setting up a ring",
            Self::Operations => "looking for the operations needed",
            Self::Start => "starting tokio-uring and the relay ring",
            Self::RoundTrip => "a round trip over loopback",
            Self::CancelledRead => "cancelling a read",
        })
    }
}

impl Unusable {
    /// Whose doing it probably is, and what would change it.
    pub fn advice(&self) -> &'static str {
        match self.error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if sysctl_disables() => {
                "the sysctl kernel.io_uring_disabled forbids it"
            }
            Some(libc::EPERM | libc::EACCES) => {
                "a seccomp profile forbids it, as the defaults of containerd 2 and Docker 25 do"
            }
            Some(libc::ENOSYS) => "the kernel has no io_uring, or a seccomp profile hides it",
            Some(libc::EINVAL | libc::EOPNOTSUPP) => "the kernel is too old: Linux 6.1 is needed",
            Some(libc::ENOMEM) => "memory or locked memory is limited too low",
            Some(libc::EMFILE | libc::ENFILE) => "the limit on open files is too low",
            _ => "io_uring does not work here as it should",
        }
    }
}

/// Choose, and say why in a few words fit for a metric label.
pub fn choose(choice: EngineChoice, sqpoll: bool) -> Result<(Selected, String), Unusable> {
    let uring = Selected::Uring { sqpoll };
    match choice {
        EngineChoice::Epoll => Ok((Selected::Epoll, "asked for".into())),
        EngineChoice::Uring => ladder(sqpoll).map(|()| (uring, "asked for".into())),
        EngineChoice::Auto => Ok(match ladder(sqpoll) {
            Ok(()) => (uring, "io_uring works here".into()),
            Err(unusable) => (Selected::Epoll, unusable.to_string()),
        }),
    }
}

/// Climb the ladder on a thread of its own.
pub fn ladder(sqpoll: bool) -> Result<(), Unusable> {
    let failed = |step| move |error| Unusable { step, error };
    let answer = apart(move || climb(sqpoll)).map_err(failed(Step::Ring))?;
    answer.ok_or(io::ErrorKind::TimedOut.into()).map_err(failed(Step::RoundTrip))?
}

/// The same round trip on epoll, which works wherever sockets do.
pub fn epoll() -> io::Result<()> {
    let try_it = || Epoll::run(Arc::default(), |engine| async move { round_trip(&engine).await })?;
    apart(try_it)?.ok_or(io::ErrorKind::TimedOut)?
}

/// On a thread of its own, which is left behind if it does not end in time: then `None`.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<Option<T>> {
    let (done, answer) = mpsc::channel();
    thread::Builder::new().name("tidegate-probe".into()).spawn(move || done.send(work()))?;
    Ok(answer.recv_timeout(PATIENCE).ok())
}

fn climb(sqpoll: bool) -> Result<(), Unusable> {
    let at = |step| move |error| Unusable { step, error };
    let ring = super::uring::ring_builder(sqpoll).build(8).map_err(at(Step::Ring))?;
    operations(&ring).map_err(at(Step::Operations))?;
    drop(ring);
    // From here on the engine itself is tried: starting it brings tokio-uring and the buffers.
    Uring::run(sqpoll, Arc::default(), |engine| async move {
        round_trip(&engine).await.map_err(at(Step::RoundTrip))?;
        cancelled_read(&engine).await.map_err(at(Step::CancelledRead))
    })
    .map_err(at(Step::Start))?
}

/// Ask the kernel for the operations we use, not for its version.
fn operations(ring: &IoUring) -> io::Result<()> {
    const USED: [u8; 7] = [
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Read::CODE,
        opcode::Write::CODE,
    ];
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if USED.iter().all(|code| probe.is_supported(*code)) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// A listener of the engine's and its address, on loopback.
fn loopback() -> io::Result<(Socket, SocketAddr)> {
    let socket = listen::open(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let addr = socket.local_addr()?.as_socket().expect("bound to an IP address");
    Ok((socket, addr))
}

/// Client → relay → application → relay → client, and the ends of file after the bytes.
async fn round_trip<E: Engine>(engine: &E) -> io::Result<()> {
    let (socket, front) = loopback()?;
    let listener = engine.listen(socket)?;
    let app = TcpListener::bind("127.0.0.1:0")?;
    let back = app.local_addr()?;
    let peers = thread::spawn(move || peers(front, &app));
    let stop = CancellationToken::new();
    let (client, _) = engine.accept(&listener, &stop).await?.expect("nobody stops this listener");
    let client = engine.adopt(client)?;
    let app = engine.dial(&App::Tcp(back), PEER_PATIENCE).await?;
    let flow =
        Rc::new(Flow::new(Arc::default(), Arc::default(), Patience::ENDLESS, Instant::now()));
    tokio::time::timeout(PATIENCE / 2, engine.relay(&client, &app, &flow)).await?;
    drop((client, app));
    peers.join().map_err(|_| io::Error::other("the ladder's peers panicked"))?
}

/// Both ends of the round trip, played in turn: say it, hear it, say it back, hear it back.
fn peers(front: SocketAddr, app: &TcpListener) -> io::Result<()> {
    const WORDS: &[u8] = b"the tide is in";
    let hear = |mut from: &TcpStream| {
        let mut heard = Vec::new();
        from.set_read_timeout(Some(PEER_PATIENCE))?;
        from.read_to_end(&mut heard)?;
        if heard == WORDS { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
    };
    let mut client = TcpStream::connect(front)?;
    client.write_all(WORDS)?;
    client.shutdown(Shutdown::Write)?;
    let (mut served, _) = app.accept()?;
    hear(&served)?;
    served.write_all(WORDS)?;
    drop(served);
    hear(&client)
}

/// A receive nobody answers must come back when it is cancelled, and one of tokio-uring's when its
/// socket is shut down: without that no timeout could be kept.
async fn cancelled_read(engine: &Uring) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let silent = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;

    let (client, app) = (Socket::from(silent.try_clone()?), Socket::from(other));
    let flow =
        Rc::new(Flow::new(Arc::default(), Arc::default(), Patience::ENDLESS, Instant::now()));
    flow.break_off();
    tokio::time::timeout(PATIENCE / 4, engine.relay(&client, &app, &flow)).await?;

    let stream = Rc::new(tokio_uring::net::TcpStream::from_std(silent));
    let reading = stream.clone();
    let read = tokio_uring::spawn(async move { reading.read(vec![0; 16]).await.0 });
    tokio::task::yield_now().await;
    stream.shutdown(Shutdown::Both)?;
    tokio::time::timeout(PATIENCE / 4, read).await??.map(drop)
}

fn sysctl_disables() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .is_ok_and(|value| value.trim() != "0")
}
