//! The bulk mode of a way: a transfer that fills its buffers goes over to one large buffer, received
//! into and sent from in turn. It stays in the cache, where a lap through the provided buffers would
//! not.
//!
//! ```text
//!   Off ──→ Wanted ──→ Receiving ──→ Sending ── more than a provided buffer ──→ Receiving
//!              ▲           │ nothing       └─── less ──→ Off
//!              └─ Watching ┘ there
//! ```
//!
//! Always true: what is in provided buffers is sent before the large one is received into; from then
//! on the way has one operation in the kernel at a time, and holds the buffer only while bytes are in
//! it or asked for.

use io_uring::{opcode, types};

use super::buffers::SIZE;
use super::relay::{Receive, SEND, Way, is_pause};
use super::ring::Core;
use crate::io::buf::Buf;

/// Full buffers in a row after which a way goes over to bulk mode.
pub(super) const BULK_AFTER: u32 = 2;

/// Where a way is in its bulk transfer.
pub(super) enum Bulk {
    /// Not in bulk mode.
    Off,
    /// The provided buffers have to be sent first.
    Wanted,
    /// The buffer is being received into, without waiting.
    Receiving(Buf),
    /// Nothing was there; the buffer was given back and the source is watched.
    Watching,
    /// `buf[done..filled]` is being sent.
    Sending { buf: Buf, done: usize, filled: usize },
}

impl Core {
    /// Receive what is there into the large buffer, without waiting.
    pub(super) fn receive_bulk(&mut self, key: usize, way: Way, mut buf: Buf) {
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        let source = types::Fd(half.source);
        let entry = opcode::Recv::new(source, buf.as_mut_ptr(), buf.len() as u32)
            .flags(libc::MSG_DONTWAIT)
            .build();
        half.bulk = Bulk::Receiving(buf);
        half.receive = Receive::On;
        relay.operations += 1;
        self.push(entry, way.receive().of(key));
    }

    /// A receive of bulk mode is back.
    pub(super) fn received_bulk(&mut self, key: usize, way: Way, result: i32) {
        let relay = &mut self.relays[key];
        relay.operations -= 1;
        let half = &mut relay.ways[way as usize];
        half.receive = Receive::Off;
        let Bulk::Receiving(buf) = std::mem::replace(&mut half.bulk, Bulk::Off) else {
            unreachable!("only called in this state")
        };
        match result {
            1.. if !half.done && !relay.stopping => {
                self.send_bulk(key, way, buf, 0, result as usize);
            }
            0 => {
                half.ended = true;
                half.end_of_file = true;
                relay.flow.finish(way.from());
            }
            _ if half.done || relay.stopping => {}
            error if is_pause(-error) => {
                drop(buf);
                half.bulk = Bulk::Watching;
                half.receive = Receive::On;
                relay.operations += 1;
                let entry = opcode::PollAdd::new(types::Fd(half.source), libc::POLLIN as u32);
                self.push(entry.build(), way.receive().of(key));
            }
            _ => {
                half.ended = true;
                relay.flow.fail(way.from());
            }
        }
        self.go_on(key, way);
    }

    /// The source of a bulk transfer has something again, or the watch was called back.
    pub(super) fn watched_bulk(&mut self, key: usize, way: Way) {
        let relay = &mut self.relays[key];
        relay.operations -= 1;
        let half = &mut relay.ways[way as usize];
        half.receive = Receive::Off;
        half.bulk = Bulk::Wanted;
        self.go_on(key, way);
    }

    fn send_bulk(&mut self, key: usize, way: Way, buf: Buf, done: usize, filled: usize) {
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        let rest = &buf[done..filled];
        let entry = opcode::Send::new(types::Fd(half.sink), rest.as_ptr(), rest.len() as u32)
            .flags(SEND)
            .build();
        half.bulk = Bulk::Sending { buf, done, filled };
        half.sending = 1;
        relay.operations += 1;
        self.sent.push((key, way));
        self.push(entry, way.send().of(key));
    }

    /// A send of bulk mode is back.
    pub(super) fn sent_bulk(&mut self, key: usize, way: Way, result: i32) {
        let relay = &mut self.relays[key];
        let half = &mut relay.ways[way as usize];
        let Bulk::Sending { buf, done, filled } = std::mem::replace(&mut half.bulk, Bulk::Off)
        else {
            unreachable!("only called in this state")
        };
        if result < 0 && !is_pause(-result) {
            relay.flow.fail(way.from().other());
            half.done = true;
        } else if !relay.stopping {
            let done = done + result.max(0) as usize;
            half.stalled = false;
            relay.flow.moved(way.from(), result.max(0) as usize);
            if done < filled {
                self.send_bulk(key, way, buf, done, filled);
            } else if filled < SIZE {
                half.full = 0;
            } else {
                self.receive_bulk(key, way, buf);
            }
        }
        self.go_on(key, way);
    }
}
