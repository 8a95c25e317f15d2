//! One relayed connection inside the ring: two ways, each a multishot receive into provided
//! buffers and one send at a time out of them. Everything here runs between two completions; no
//! task is woken until the connection has ended.
//!
//! ```text
//!   receive ── bytes ──→ waiting ──→ sending ──→ buffer given back
//!      │ more than HIGH waiting: stop receiving; start again when all is sent
//!      └ end of file: when all is sent, tell the sink, the way is done
//! ```
//!
//! A way that fills its buffers goes over to bulk mode, which is next door.
//!
//! Always true: bytes leave in the order they came; a way has at most one send in the kernel (two
//! could be reordered when the first is partial); the relay ends when both ways are done, or one
//! side broke and what it had said before has been delivered, and every operation is back.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{cqueue, opcode, types};

use super::buffers::{Filled, GROUP, SIZE};
use super::bulk::{BULK_AFTER, Bulk};
use super::ring::{Core, Kind};
use crate::io::buf::Size;
use crate::io::flow::{Flow, Side};

/// Buffers one way may hold before it stops to receive.
const HIGH: usize = 4;

/// The same for a way whose sink has been seen not to read: what a stalled peer can pin.
const HIGH_STALLED: usize = 1;

/// Buffers sent with one call.
const VECTOR: usize = 8;

/// Not MSG_WAITALL: a peer that takes a little at a time has to be seen to take it.
pub(super) const SEND: i32 = libc::MSG_NOSIGNAL;

/// One direction of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the application.
    Up,
    /// From the application to the client.
    Down,
}

pub struct Relay {
    pub(super) ways: [Half; 2],
    pub(super) flow: Rc<Flow>,
    /// Operations the kernel has not completed.
    pub(super) operations: u32,
    /// Nothing new is to be started.
    pub(super) stopping: bool,
    state: State,
}

enum State {
    /// Bytes move; this task waits for the end.
    Running(Option<Waker>),
    /// It has ended: nothing of it is in the kernel.
    Ended,
    /// Nobody waits for the end; the slot goes with the last operation.
    Forgotten,
}

/// One way's state.
pub(super) struct Half {
    pub(super) source: RawFd,
    pub(super) sink: RawFd,
    pub(super) receive: Receive,
    waiting: VecDeque<Filled>,
    /// How many buffers at the head of `waiting` the kernel is sending. 0: none.
    pub(super) sending: usize,
    message: Option<Box<Message>>,
    /// The last send was not taken at once.
    pub(super) stalled: bool,
    /// Full buffers received in a row: the sign of a bulk transfer.
    pub(super) full: u32,
    pub(super) bulk: Bulk,
    /// Nothing more comes from the source.
    pub(super) ended: bool,
    /// The end was an end of file, to be passed on.
    pub(super) end_of_file: bool,
    /// All has been sent and the sink was told; or the sink is gone.
    pub(super) done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// Not in the kernel.
    Off,
    /// In the kernel, delivering.
    On,
    /// In the kernel, told to stop.
    Stopping,
}

/// What `sendmsg` reads while it runs: it must not move or go before the completion.
struct Message {
    header: libc::msghdr,
    vectors: [libc::iovec; VECTOR],
}

impl Way {
    pub(super) const fn from(self) -> Side {
        match self {
            Self::Up => Side::Client,
            Self::Down => Side::App,
        }
    }

    pub(super) const fn receive(self) -> Kind {
        match self {
            Self::Up => Kind::ReceiveUp,
            Self::Down => Kind::ReceiveDown,
        }
    }

    pub(super) const fn send(self) -> Kind {
        match self {
            Self::Up => Kind::SendUp,
            Self::Down => Kind::SendDown,
        }
    }

    const fn out_of(side: Side) -> Self {
        match side {
            Side::Client => Self::Up,
            Side::App => Self::Down,
        }
    }
}

impl Relay {
    pub fn new(client: RawFd, app: RawFd, flow: Rc<Flow>) -> Self {
        Self {
            ways: [Half::new(client, app), Half::new(app, client)],
            flow,
            operations: 0,
            stopping: false,
            state: State::Running(None),
        }
    }

    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Running(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Ended | State::Forgotten => Poll::Ready(()),
        }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Nobody waits for the end any more.
    pub fn forget(&mut self) {
        if !self.has_ended() {
            self.state = State::Forgotten;
        }
    }

    /// Whether there is nothing left to do but to wait for operations to come back.
    fn is_over(&self) -> bool {
        self.stopping || self.ways.iter().all(|way| way.done) || self.broken_side_has_spoken()
    }

    /// One side broke, and what it had said before has been delivered, or is not taken.
    fn broken_side_has_spoken(&self) -> bool {
        let Some(side) = self.flow.broken() else { return false };
        let last_words = &self.ways[Way::out_of(side) as usize];
        last_words.done || (last_words.stalled && last_words.sending > 0)
    }
}

impl Half {
    const fn new(source: RawFd, sink: RawFd) -> Self {
        Self {
            source,
            sink,
            receive: Receive::Off,
            waiting: VecDeque::new(),
            sending: 0,
            message: None,
            stalled: false,
            full: 0,
            bulk: Bulk::Off,
            ended: false,
            end_of_file: false,
            done: false,
        }
    }
}

impl Core {
    /// Begin to receive on both ways.
    pub(super) fn start(&mut self, key: usize) {
        self.receive(key, Way::Up);
        self.receive(key, Way::Down);
    }

    /// Bytes, the end, or an error came from a way's source.
    pub(super) fn received(&mut self, key: usize, way: Way, result: i32, flags: u32) {
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        match half.bulk {
            Bulk::Receiving(_) => return self.received_bulk(key, way, result),
            Bulk::Watching => return self.watched_bulk(key, way),
            Bulk::Off | Bulk::Wanted | Bulk::Sending { .. } => {}
        }
        let last = !cqueue::more(flags);
        if last {
            half.receive = Receive::Off;
            relay.operations -= 1;
        }
        if let Some(id) = cqueue::buffer_select(flags) {
            let filled = self.buffers.take(id, result.max(0) as u32);
            if result > 0 && !half.done {
                half.waiting.push_back(filled);
            } else {
                self.buffers.give_back(id);
            }
        }
        match result {
            1.. if !half.done => {
                half.full = if result as usize == SIZE { half.full + 1 } else { 0 };
                if half.full == BULK_AFTER {
                    half.bulk = Bulk::Wanted;
                }
                let high = if half.stalled { HIGH_STALLED } else { HIGH };
                let stop = half.waiting.len() >= high || matches!(half.bulk, Bulk::Wanted);
                let stop = stop && half.receive == Receive::On;
                if stop {
                    half.receive = Receive::Stopping;
                }
                if half.sending == 0 {
                    self.send(key, way);
                }
                if stop {
                    self.cancel(way.receive().of(key));
                }
            }
            0 => {
                half.ended = true;
                half.end_of_file = true;
                relay.flow.finish(way.from());
            }
            // Late bytes for a sink that is gone.
            1.. => {}
            error if is_pause(-error) => {
                if -error == libc::ENOBUFS {
                    self.buffers.ran_out();
                }
            }
            _ => {
                half.ended = true;
                if !half.done {
                    relay.flow.fail(way.from());
                }
            }
        }
        self.go_on(key, way);
    }

    /// A send of a way is back.
    pub(super) fn sent(&mut self, key: usize, way: Way, result: i32) {
        let relay = &mut self.relays[key];
        relay.operations -= 1;
        let half = &mut relay.ways[way as usize];
        half.sending = 0;
        if let Bulk::Sending { .. } = half.bulk {
            return self.sent_bulk(key, way, result);
        }
        if result > 0 {
            half.stalled = false;
            relay.flow.moved(way.from(), result as usize);
            let mut left = result as u32;
            while left > 0 {
                let head = half.waiting.front_mut().expect("what was sent was waiting");
                if head.len > left {
                    head.at += left;
                    head.len -= left;
                    break;
                }
                left -= head.len;
                self.buffers.give_back(head.id);
                half.waiting.pop_front();
            }
        } else if !is_pause(-result) {
            // The sink is gone; what waits for it goes with it.
            relay.flow.fail(way.from().other());
            half.done = true;
            for filled in half.waiting.drain(..) {
                self.buffers.give_back(filled.id);
            }
            if half.receive == Receive::On {
                half.receive = Receive::Stopping;
                self.cancel(way.receive().of(key));
            }
        }
        self.go_on(key, way);
    }

    /// Nothing moves any more: a send that is still out waits for its peer to read.
    pub(super) fn note_unanswered(&mut self, key: usize, way: Way) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let half = &mut relay.ways[way as usize];
        if half.sending == 0 {
            return;
        }
        relay.flow.block(way.from().other());
        half.stalled = true;
        if half.receive == Receive::On && matches!(half.bulk, Bulk::Off) {
            half.receive = Receive::Stopping;
            self.cancel(way.receive().of(key));
        }
        self.settle(key);
    }

    /// Break the relay off: bring every operation back, deliver nothing more.
    pub(super) fn stop(&mut self, key: usize) {
        self.relays[key].stopping = true;
        self.recall(key);
        self.settle(key);
    }

    /// Forget a relay nobody waits for, once the kernel has.
    pub(super) fn reap(&mut self, key: usize) {
        if self.relays[key].operations == 0 {
            self.discard(key);
            self.relays.remove(key);
        }
    }

    /// Buffers are to be had again: let the starved receive.
    pub(super) fn feed(&mut self) {
        for (key, way) in std::mem::take(&mut self.starved) {
            if self.relays.contains(key) {
                self.go_on(key, way);
            }
        }
    }

    /// What a way does next, whatever just happened.
    pub(super) fn go_on(&mut self, key: usize, way: Way) {
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        if !relay.stopping && !half.done {
            if half.sending == 0 && !half.waiting.is_empty() {
                self.send(key, way);
            } else if half.sending == 0 && half.ended {
                half.done = true;
                if half.end_of_file && relay.flow.passes_on_end_of(way.from()) {
                    shutdown_write(half.sink);
                }
            } else if half.receive == Receive::Off && !half.ended && half.waiting.is_empty() {
                match half.bulk {
                    Bulk::Off => self.receive(key, way),
                    Bulk::Wanted => {
                        let buf = self.pool.take(Size::Large);
                        self.receive_bulk(key, way, buf);
                    }
                    Bulk::Receiving(_) | Bulk::Watching | Bulk::Sending { .. } => {}
                }
            }
        }
        self.settle(key);
    }

    /// End the relay if it is over: first what is still in the kernel has to come back.
    fn settle(&mut self, key: usize) {
        let relay = &mut self.relays[key];
        if !relay.is_over() {
            return;
        }
        if relay.operations > 0 {
            if !relay.stopping {
                relay.stopping = true;
                self.recall(key);
            }
            return;
        }
        match std::mem::replace(&mut relay.state, State::Ended) {
            State::Running(waker) => {
                self.discard(key);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Forgotten => self.reap(key),
            State::Ended => {}
        }
    }

    /// Ask for every operation of a relay back.
    fn recall(&mut self, key: usize) {
        for way in [Way::Up, Way::Down] {
            let half = &mut self.relays[key].ways[way as usize];
            let (receiving, sending) = (half.receive != Receive::Off, half.sending > 0);
            if receiving {
                self.recall_one(key, way.receive());
            }
            if sending {
                self.recall_one(key, way.send());
            }
        }
    }

    fn recall_one(&mut self, key: usize, kind: Kind) {
        let cancel = opcode::AsyncCancel::new(kind.of(key)).build();
        self.push(cancel, Kind::Recall.of(key));
    }

    /// A cancel is back. One that found nothing may have looked while its operation was between
    /// two waits, so ask again for what is still out.
    pub(super) fn recalled(&mut self, key: usize, result: i32) {
        let missed = result == -libc::ENOENT;
        let open = |relay: &Relay| relay.stopping && relay.operations > 0;
        if missed && self.relays.get(key).is_some_and(open) {
            self.recall(key);
        }
    }

    /// Give back the buffers of bytes that will not be delivered.
    fn discard(&mut self, key: usize) {
        for half in &mut self.relays[key].ways {
            for filled in half.waiting.drain(..) {
                self.buffers.give_back(filled.id);
            }
        }
    }

    fn receive(&mut self, key: usize, way: Way) {
        if !self.buffers.offer() {
            return self.starved.push((key, way));
        }
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        half.receive = Receive::On;
        relay.operations += 1;
        let entry = opcode::RecvMulti::new(types::Fd(half.source), GROUP).build();
        self.push(entry, way.receive().of(key));
    }

    /// Send what waits: one buffer as it is, several with one call.
    fn send(&mut self, key: usize, way: Way) {
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        if relay.stopping {
            return;
        }
        let count = half.waiting.len().min(VECTOR);
        let entry = if count == 1 {
            let filled = half.waiting[0];
            let bytes = self.buffers.pointer(filled);
            opcode::Send::new(types::Fd(half.sink), bytes, filled.len).flags(SEND).build()
        } else {
            let message = half.message.get_or_insert_with(Message::boxed);
            for (vector, filled) in message.vectors.iter_mut().zip(&half.waiting) {
                vector.iov_base = self.buffers.pointer(*filled).cast_mut().cast();
                vector.iov_len = filled.len as usize;
            }
            message.header.msg_iov = message.vectors.as_mut_ptr();
            message.header.msg_iovlen = count;
            opcode::SendMsg::new(types::Fd(half.sink), &raw const message.header)
                .flags(SEND as u32)
                .build()
        };
        half.sending = count;
        relay.operations += 1;
        self.sent.push((key, way));
        self.push(entry, way.send().of(key));
    }
}

impl Message {
    #[allow(unsafe_code, reason = "msghdr has private padding on some C libraries")]
    fn boxed() -> Box<Self> {
        // SAFETY: all zeroes is a valid msghdr and iovec: null pointers and zero lengths.
        Box::new(unsafe { std::mem::zeroed() })
    }
}

/// An error that means "not now": no buffer, told to stop, or interrupted.
pub(super) const fn is_pause(errno: i32) -> bool {
    matches!(errno, libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN)
}

#[allow(unsafe_code, reason = "the ring knows descriptors, not their owners")]
fn shutdown_write(fd: RawFd) {
    // SAFETY: the relay's contract is that both sockets stay open until it has ended.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}
