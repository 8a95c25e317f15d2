//! One connection read and written a piece at a time: who reads and finds nothing leaves a receive in
//! the kernel, which takes a provided buffer only when bytes come; writes are made at once and wait
//! for room only when there is none.
//!
//! ```text
//!   poll_read ── nothing there ──→ receive ── bytes ──→ waiting ──poll_read──→ the reader's buffer
//! ```
//!
//! One receive at a time, and not a multishot one as in a relay: that would fill buffer after buffer
//! for a reader who does not ask for more.
//!
//! Always true: bytes are read in the order they came: no direct read while a receive is in the
//! kernel or bytes wait; the slot goes with its last operation.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use io_uring::{cqueue, opcode, squeue, types};
use socket2::Socket;
use tokio::io::ReadBuf;

use super::buffers::{Filled, GROUP, SIZE};
use super::ring::{Core, Kind, Ready, Ring};
use crate::io::sock;

/// `IORING_RECVSEND_POLL_FIRST`: look for bytes before trying to receive them. Mostly there are none yet.
const POLL_FIRST: u16 = 1;

/// A connection that is read and written a piece at a time. Dropping it closes it.
pub struct Io {
    /// Waiting for room to write; or, without provided buffers, for something to read.
    writable: RefCell<Option<Pin<Box<Ready>>>>,
    readable: RefCell<Option<Pin<Box<Ready>>>>,
    receiver: Receiver,
    /// Last: it closes when nothing in the kernel names it any more.
    pub(super) socket: Socket,
}

/// The hold on an [`Inlet`]; dropping it ends the receive.
struct Receiver {
    ring: Ring,
    /// `None` until a first read has found nothing.
    key: Cell<Option<usize>>,
}

/// The receiving half of a connection, as the ring knows it.
pub struct Inlet {
    fd: RawFd,
    /// Received, and not yet read.
    waiting: Option<Filled>,
    /// The last read took all the room there was: there may be more.
    full: bool,
    receive: Receive,
    /// No more will come: the end, or an error.
    ended: Option<i32>,
    /// There are no buffers to receive into: the reader has to do it itself.
    starved: bool,
    reader: Option<Waker>,
    /// Nobody reads any more; the slot goes with the last completion.
    forgotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    /// Not in the kernel.
    Off,
    /// In the kernel.
    On,
    /// In the kernel, told to stop.
    Stopping,
}

impl Io {
    pub(super) fn new(ring: Ring, socket: Socket) -> Self {
        let receiver = Receiver { ring, key: Cell::new(None) };
        Self { writable: RefCell::default(), readable: RefCell::default(), receiver, socket }
    }

    /// As [`crate::io::Engine::poll_read`].
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Receiver { ring, key: slot } = &self.receiver;
        let Some(key) = slot.get() else {
            // The first time there mostly is something: a request that came with its connection.
            if let Poll::Ready(read) = self.read_now(buf) {
                return Poll::Ready(read);
            }
            let mut core = ring.core.borrow_mut();
            slot.set(Some(core.inlets.insert(Inlet::new(self.socket.as_raw_fd()))));
            drop(core);
            return self.poll_read(cx, buf);
        };
        let room = buf.remaining();
        let eager = {
            let mut core = ring.core.borrow_mut();
            if core.take_inlet(key, buf) {
                return Poll::Ready(Ok(()));
            }
            core.inlets[key].is_eager()
        };
        if eager {
            // Nothing waits and nothing is in the kernel, so this keeps the order.
            let read = self.read_now(buf);
            let mut core = ring.core.borrow_mut();
            core.inlets[key].full = buf.remaining() == 0 && room > 0;
            if read.is_ready() {
                return read;
            }
        }
        let starved = {
            let mut core = ring.core.borrow_mut();
            if let Poll::Ready(read) = core.await_inlet(key, cx) {
                return Poll::Ready(read);
            }
            core.inlets[key].starved
        };
        if starved { self.read_without_buffers(cx, buf) } else { Poll::Pending }
    }

    /// As [`crate::io::Engine::poll_write`].
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(writable) = self.writable.borrow_mut().as_mut() {
                ready!(writable.as_mut().poll(cx));
            }
            self.writable.take();
            let sent = match bytes {
                [one] => self.socket.send(one),
                several => self.socket.send_vectored(several),
            };
            match sent {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let writable =
                        self.receiver.ring.poll(self.socket.as_raw_fd(), libc::POLLOUT as u32);
                    *self.writable.borrow_mut() = Some(Box::pin(writable));
                }
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// As [`crate::io::Engine::reclaim`].
    pub(super) async fn reclaim(self) -> (Socket, Vec<u8>) {
        let Self { receiver, socket, .. } = self;
        let mut unread = Vec::new();
        if let Some(key) = receiver.key.get() {
            std::future::poll_fn(|cx| receiver.ring.core.borrow_mut().stop_inlet(key, cx)).await;
            let mut core = receiver.ring.core.borrow_mut();
            if let Some(filled) = core.inlets[key].waiting.take() {
                unread.extend_from_slice(core.buffers.bytes(filled));
                core.buffers.give_back(filled.id);
                core.tell_buffers();
            }
        }
        (socket, unread)
    }

    fn read_now(&self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match sock::receive(&self.socket, buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// All provided buffers hold bytes of others: read into the reader's own, on readiness.
    fn read_without_buffers(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(readable) = self.readable.borrow_mut().as_mut() {
                ready!(readable.as_mut().poll(cx));
            }
            self.readable.take();
            if let Poll::Ready(read) = self.read_now(buf) {
                return Poll::Ready(read);
            }
            let readable = self.receiver.ring.poll(self.socket.as_raw_fd(), libc::POLLIN as u32);
            *self.readable.borrow_mut() = Some(Box::pin(readable));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.ring.core.borrow_mut().forget_inlet(key);
        }
    }
}

impl Inlet {
    fn new(fd: RawFd) -> Self {
        Self {
            fd,
            waiting: None,
            full: false,
            receive: Receive::Off,
            ended: None,
            starved: false,
            reader: None,
            forgotten: false,
        }
    }
}

impl Inlet {
    /// Whether to try before waiting: there may be more, and nothing of it is on its way already.
    fn is_eager(&self) -> bool {
        self.full && self.receive == Receive::Off && self.ended.is_none()
    }
}

impl Core {
    /// Begin to receive, if there are buffers to receive into.
    fn receive_inlet(&mut self, key: usize) {
        let offered = self.buffers.offer();
        let inlet = &mut self.inlets[key];
        inlet.starved = !offered;
        if offered {
            inlet.receive = Receive::On;
            let receive = opcode::Recv::new(types::Fd(inlet.fd), std::ptr::null_mut(), 0);
            let receive = receive.buf_group(GROUP).ioprio(POLL_FIRST);
            let entry = receive.build().flags(squeue::Flags::BUFFER_SELECT);
            self.push(entry, Kind::Inlet.of(key));
        }
    }

    /// Hand out what was received, if there is any.
    fn take_inlet(&mut self, key: usize, buf: &mut ReadBuf<'_>) -> bool {
        let inlet = &mut self.inlets[key];
        let Some(filled) = &mut inlet.waiting else { return false };
        let bytes = self.buffers.bytes(*filled);
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        filled.at += count as u32;
        filled.len -= count as u32;
        if filled.len == 0 {
            // A buffer that was full to the brim is a sign of more.
            inlet.full = filled.at as usize == SIZE;
            let id = filled.id;
            inlet.waiting = None;
            self.buffers.give_back(id);
            self.tell_buffers();
        }
        true
    }

    /// The end, if there is nothing but that; else have the reader woken when there is something.
    fn await_inlet(&mut self, key: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let inlet = &mut self.inlets[key];
        match inlet.ended {
            Some(0) => return Poll::Ready(Ok(())),
            Some(errno) => return Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            None if inlet.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) => {}
            None => inlet.reader = Some(cx.waker().clone()),
        }
        if inlet.receive == Receive::Off {
            self.receive_inlet(key);
        }
        Poll::Pending
    }

    /// Bytes, the end, or an error.
    pub(super) fn received_inlet(&mut self, key: usize, result: i32, flags: u32) {
        let inlet = &mut self.inlets[key];
        inlet.receive = Receive::Off;
        if let Some(id) = cqueue::buffer_select(flags) {
            let filled = self.buffers.take(id, result.max(0) as u32);
            if result > 0 && !inlet.forgotten {
                inlet.waiting = Some(filled);
            } else {
                self.buffers.give_back(id);
            }
        }
        match result {
            1.. => {}
            0 => inlet.ended = Some(0),
            error if -error == libc::ENOBUFS => self.buffers.ran_out(),
            error if matches!(-error, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            error => inlet.ended = Some(-error),
        }
        if inlet.forgotten {
            self.inlets.remove(key);
        } else if let Some(reader) = inlet.reader.take() {
            reader.wake();
        }
    }

    fn recall_inlet(&mut self, key: usize) {
        let cancel = opcode::AsyncCancel::new(Kind::Inlet.of(key)).build();
        self.push(cancel, Kind::InletRecall.of(key));
    }

    /// A cancel is back. One that found nothing may have looked while the receive was between two
    /// waits, so ask again.
    pub(super) fn recalled_inlet(&mut self, key: usize, result: i32) {
        let stopping = |inlet: &Inlet| inlet.receive == Receive::Stopping;
        if result == -libc::ENOENT && self.inlets.get(key).is_some_and(stopping) {
            self.recall_inlet(key);
        }
    }

    /// Ready when nothing of it is in the kernel any more.
    fn stop_inlet(&mut self, key: usize, cx: &Context<'_>) -> Poll<()> {
        let inlet = &mut self.inlets[key];
        if inlet.receive == Receive::Off {
            return Poll::Ready(());
        }
        inlet.reader = Some(cx.waker().clone());
        if inlet.receive == Receive::On {
            inlet.receive = Receive::Stopping;
            self.recall_inlet(key);
        }
        Poll::Pending
    }

    /// Nobody reads it any more, and its descriptor is about to be closed.
    fn forget_inlet(&mut self, key: usize) {
        let inlet = &mut self.inlets[key];
        if let Some(filled) = inlet.waiting.take() {
            self.buffers.give_back(filled.id);
            self.tell_buffers();
        }
        let inlet = &mut self.inlets[key];
        let receive = inlet.receive;
        if receive == Receive::Off {
            self.inlets.remove(key);
            return;
        }
        inlet.forgotten = true;
        inlet.reader = None;
        if receive == Receive::On {
            inlet.receive = Receive::Stopping;
            self.recall_inlet(key);
        }
        // Nothing queued may still name the descriptor, and nothing in the kernel keep it open.
        self.flush_and_work();
    }
}
