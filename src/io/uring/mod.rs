//! The io_uring engine: a tokio-uring thread hosts tasks and timers; a ring of its own carries the
//! bytes, with multishot receives into provided buffers, so that an idle connection holds none.
//!
//! Accepting and dialling are non-blocking calls that watch readiness on that same ring instead of
//! tokio-uring's `accept` and `connect` operations: a dropped accept there leaks a descriptor
//! (tokio-uring#129), a connect there cannot be bounded, because its socket is out of reach until
//! it has succeeded, and each would be a second ring to enter per new connection.

mod buffers;
mod bulk;
mod relay;
mod ring;
mod stream;

use std::future::Future;
use std::io::{self, IoSlice, Read};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};
use tokio::io::ReadBuf;
use tokio_util::sync::CancellationToken;

use super::listen::{self, Ending, Next};
use super::{Accepted, App, Engine, Flow, Gauges, dial};
use ring::Ring;
pub use ring::builder as ring_builder;
use stream::Io;

/// The engine. Cheap to clone; lives on one thread.
#[derive(Clone)]
pub struct Uring {
    ring: Ring,
}

/// A listening socket.
pub struct Listener {
    socket: Socket,
    ending: Ending,
}

impl Uring {
    /// Run `main` to its end on a tokio-uring runtime of its own, on this thread, and leave only
    /// when the kernel has nothing of ours any more.
    pub fn run<F, M>(sqpoll: bool, gauges: Arc<Gauges>, main: M) -> io::Result<F::Output>
    where
        M: FnOnce(Self) -> F,
        F: Future,
    {
        /// tokio-uring's own ring is idle while the relay ring works.
        const HOST_ENTRIES: u32 = 64;
        let mut host = tokio_uring::builder();
        host.entries(HOST_ENTRIES)
            .uring_builder(tokio_uring::uring_builder().setup_coop_taskrun().setup_single_issuer());
        let runtime = tokio_uring::Runtime::new(&host)?;
        runtime.block_on(async {
            let (ring, driver) = Ring::new(sqpoll, gauges)?;
            let mut driver = tokio_uring::spawn(driver);
            let main = async {
                let answer = main(Self { ring: ring.clone() }).await;
                ring.quiet().await;
                answer
            };
            tokio::select! {
                answer = main => {
                    driver.abort();
                    Ok(answer)
                }
                // Nothing moves without it: whoever runs this thread has to know.
                failed = &mut driver => Err(failed.unwrap_or_else(io::Error::other)),
            }
        })
    }
}

impl Engine for Uring {
    type Listener = Listener;
    type Stream = Socket;
    type Io = Io;

    fn listen(&self, socket: Socket) -> io::Result<Listener> {
        Ok(Listener { socket, ending: Ending::default() })
    }

    async fn accept(
        &self,
        listener: &Listener,
        stop: &CancellationToken,
    ) -> io::Result<Option<Accepted>> {
        while !stop.is_cancelled() {
            match listen::accept(&listener.socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return accepted.map(Some),
            }
            tokio::select! {
                () = self.ring.poll(listener.socket.as_raw_fd(), libc::POLLIN as u32) => {}
                () = stop.cancelled() => {}
            }
        }
        loop {
            match listener.ending.step(&listener.socket)? {
                Next::Accepted(accepted) => return Ok(Some(accepted)),
                Next::SettleUntil(at) => self.sleep_until(at).await,
                Next::Empty => return Ok(None),
            }
        }
    }

    fn listening<'a>(&self, listener: &'a Listener) -> &'a Socket {
        &listener.socket
    }

    fn adopt(&self, socket: Socket) -> io::Result<Socket> {
        Ok(socket)
    }

    fn dial(&self, app: &App, timeout: Duration) -> impl Future<Output = io::Result<Socket>> {
        dial::dial(self, app, timeout, async |socket: &Socket| {
            self.ring.poll(socket.as_raw_fd(), libc::POLLOUT as u32).await;
            Ok(())
        })
    }

    async fn peer_left(&self, stream: &Socket) {
        let events = libc::POLLRDHUP | libc::POLLERR | libc::POLLHUP;
        self.ring.poll(stream.as_raw_fd(), events as u32).await;
    }

    async fn readable(&self, stream: &Socket) {
        self.ring.poll(stream.as_raw_fd(), libc::POLLIN as u32).await;
    }

    fn open(&self, stream: Socket) -> Io {
        Io::new(self.ring.clone(), stream)
    }

    fn stream<'a>(&self, io: &'a Io) -> &'a Socket {
        &io.socket
    }

    fn poll_read(
        &self,
        io: &Io,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        io.poll_read(cx, buf)
    }

    fn poll_write(
        &self,
        io: &Io,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        io.poll_write(cx, bytes)
    }

    async fn reclaim(&self, io: Io) -> (Socket, Vec<u8>) {
        io.reclaim().await
    }

    async fn relay(&self, client: &Socket, app: &Socket, flow: &Rc<Flow>) {
        self.ring.relay(client.as_raw_fd(), app.as_raw_fd(), flow).await;
    }

    async fn discard(&self, stream: &Socket) {
        loop {
            // Not in the match: what it matches on would live on while it waits, 4 KiB of it.
            let read = (&mut &*stream).read(&mut [0; 4096]);
            match read {
                Ok(0) => return,
                Ok(_) => tokio::task::yield_now().await,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.ring.poll(stream.as_raw_fd(), libc::POLLIN as u32).await;
                }
                Err(_) => return,
            }
        }
    }

    fn socket<'a>(&self, stream: &'a Socket) -> SockRef<'a> {
        SockRef::from(stream)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio_uring::spawn(task);
    }

    async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline.into()).await;
    }
}
