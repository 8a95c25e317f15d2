//! The relay ring: the one place where operations are handed to the kernel and where their results
//! come back. It knows three things: to watch a descriptor ([`Ring::poll`]), to relay between two
//! ([`Ring::relay`]), and to receive for a reader (`stream`).
//!
//! ```text
//!   tasks ──push──→ submission queue ──enter──→ kernel
//!                          ▲                      │ eventfd, only while the thread is parked
//!                          │                      ▼
//!                   relay: receive → send    driver: turn() until nothing is left, then park
//! ```
//!
//! Always true: an operation's slot and buffers belong to the kernel until its last completion; no
//! descriptor is closed by a completion; a full submission queue is flushed, never overrun.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use tokio::io::unix::AsyncFd;

use super::buffers::Buffers;
use super::relay::{Relay, Way};
use super::stream::Inlet;
use crate::io::Gauges;
use crate::io::buf::Pool;
use crate::io::flow::Flow;

/// Entries of the submission queue: one turn of a busy relay; a fuller one is flushed.
const ENTRIES: u32 = 512;

/// Entries of the completion queue. When it overflows, the kernel keeps the rest (FEAT_NODROP) and
/// the next enter brings it.
const COMPLETIONS: u32 = 8192;

/// Rounds of one turn before the other tasks of the thread get theirs.
const ROUNDS: usize = 16;

/// Look without waiting.
const NOW: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

/// The ring of one worker thread. Cheap to clone.
#[derive(Clone)]
pub struct Ring {
    pub(super) core: Rc<RefCell<Core>>,
}

/// Resolves when its descriptor is ready; dropping it asks the kernel to forget it.
pub struct Ready {
    ring: Ring,
    key: usize,
}

/// Resolves when a relay has ended and nothing of it is left in the kernel; dropping it stops it.
pub struct Relaying {
    ring: Ring,
    key: usize,
    flow: Rc<Flow>,
    stopping: bool,
}

pub(super) struct Core {
    uring: IoUring,
    sqpoll: bool,
    polls: Slab<PollSlot>,
    pub(super) relays: Slab<Relay>,
    pub(super) inlets: Slab<Inlet>,
    pub(super) buffers: Buffers,
    /// The large buffers of bulk transfers.
    pub(super) pool: Pool,
    /// Ways that wait for a buffer to receive into.
    pub(super) starved: Vec<(usize, Way)>,
    /// Sends submitted in this round: those still out after the enter are waiting for their peer.
    pub(super) sent: Vec<(usize, Way)>,
    results: Vec<(u64, i32, u32)>,
    /// What the submission queue and the kernel would not take at once.
    overflow: std::collections::VecDeque<squeue::Entry>,
    /// Something was pushed since the last enter.
    dirty: bool,
    driver: Option<Waker>,
    /// Operations the kernel has not completed, the requests to cancel one among them.
    operations: usize,
    gauges: Arc<Gauges>,
    /// The buffers in use that `gauges` knows of.
    told: u64,
}

/// One watched descriptor.
enum PollSlot {
    /// The kernel watches; nobody has asked yet.
    Submitted,
    /// The kernel watches; this task waits.
    Waiting(Waker),
    /// It is ready.
    Done,
    /// Nobody waits any more; the slot goes when the kernel answers.
    Forgotten,
}

/// What a completion belongs to: the low bits of its user data; the slot's key is above them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    Poll = 0,
    ReceiveUp = 1,
    ReceiveDown = 2,
    SendUp = 3,
    SendDown = 4,
    Cancel = 5,
    Recall = 6,
    Inlet = 7,
    InletRecall = 8,
}

const KIND_BITS: u32 = 4;

impl Kind {
    pub(super) const fn of(self, key: usize) -> u64 {
        ((key as u64) << KIND_BITS) | self as u64
    }

    const fn split(user_data: u64) -> (Self, usize) {
        let kind = match user_data & ((1 << KIND_BITS) - 1) {
            0 => Self::Poll,
            1 => Self::ReceiveUp,
            2 => Self::ReceiveDown,
            3 => Self::SendUp,
            4 => Self::SendDown,
            6 => Self::Recall,
            7 => Self::Inlet,
            8 => Self::InletRecall,
            _ => Self::Cancel,
        };
        (kind, (user_data >> KIND_BITS) as usize)
    }
}

impl Ring {
    /// A ring of this thread, and the future that drives it: poll it for as long as the ring is
    /// used. It ends only if the kernel will not work for the ring any more, and says why. `sqpoll`: let a kernel thread submit.
    pub fn new(
        sqpoll: bool,
        gauges: Arc<Gauges>,
    ) -> io::Result<(Self, impl Future<Output = io::Error>)> {
        let uring = builder(sqpoll).build(ENTRIES)?;
        // Saves looking the descriptor up at each enter; older kernels cannot.
        let _ = uring.submitter().register_ring_fd();
        let buffers = Buffers::register(&uring)?;
        let event = eventfd()?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        let core = Core {
            uring,
            sqpoll,
            polls: Slab::new(),
            relays: Slab::new(),
            inlets: Slab::new(),
            buffers,
            pool: Pool::new(0, gauges.clone()),
            starved: Vec::new(),
            sent: Vec::new(),
            results: Vec::new(),
            overflow: std::collections::VecDeque::new(),
            dirty: false,
            driver: None,
            operations: 0,
            gauges,
            told: 0,
        };
        let ring = Self { core: Rc::new(RefCell::new(core)) };
        let event = register(event)?;
        let driven = ring.clone();
        Ok((ring, async move { driven.drive(event).await }))
    }

    /// Watch `fd` for `events` (poll(2) bits), once.
    pub fn poll(&self, fd: RawFd, events: u32) -> Ready {
        let mut core = self.core.borrow_mut();
        let key = core.polls.insert(PollSlot::Submitted);
        core.push(opcode::PollAdd::new(types::Fd(fd), events).build(), Kind::Poll.of(key));
        Ready { ring: self.clone(), key }
    }

    /// Carry bytes both ways between two connected sockets, which have to stay open until the
    /// answer has resolved.
    pub fn relay(&self, client: RawFd, app: RawFd, flow: &Rc<Flow>) -> Relaying {
        let mut core = self.core.borrow_mut();
        let key = core.relays.insert(Relay::new(client, app, flow.clone()));
        core.start(key);
        Relaying { ring: self.clone(), key, flow: flow.clone(), stopping: false }
    }

    /// Resolves when the kernel has nothing of this ring's any more.
    pub async fn quiet(&self) {
        const LOOK: Duration = Duration::from_millis(1);
        while !self.core.borrow().is_quiet() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Hand over and work off what there is; park on the eventfd when there is nothing.
    async fn drive(&self, event: AsyncFd<OwnedFd>) -> io::Error {
        loop {
            match self.turn() {
                // The others first, and timers and sockets that tokio watches: waking ourselves
                // instead would come before them.
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => match poll_fn(|cx| self.poll_park(&event, cx)).await {
                    Ok(()) => {}
                    Err(error) => return error,
                },
                Err(error) => return error,
            }
        }
    }

    /// Ready when there may be something to do.
    fn poll_park(&self, event: &AsyncFd<OwnedFd>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.core.borrow_mut();
        core.driver = Some(cx.waker().clone());
        core.uring.completion().enable_eventfd();
        // The kernel posts work and then looks at the flag; we set the flag and then look for work:
        // with a fence between, one of us sees the other.
        fence(Ordering::SeqCst);
        if core.has_work() {
            return Poll::Ready(Ok(()));
        }
        // The counter is never read: the registration is edge-triggered, and every signal is an
        // edge.
        event.poll_read_ready(cx).map_ok(|mut guard| guard.clear_ready())
    }

    /// Submit, complete, react, until nothing moves. `true`: it still moves, others were waiting.
    fn turn(&self) -> io::Result<bool> {
        let mut core = self.core.borrow_mut();
        core.driver = None;
        core.uring.completion().disable_eventfd();
        for _ in 0..ROUNDS {
            core.enter()?;
            core.collect();
            if core.results.is_empty() && !core.dirty {
                core.note_stalls();
                if !core.dirty {
                    return Ok(false);
                }
            }
            core.dispatch();
        }
        Ok(true)
    }
}

impl Core {
    /// Whether the kernel has nothing of ours: not even a cancel that came too late to find anything.
    fn is_quiet(&self) -> bool {
        self.operations == 0
    }

    /// Queue an operation. It reaches the kernel at the next enter, in this turn of the loop.
    #[allow(unsafe_code, reason = "the ring cannot know what an operation points to")]
    pub(super) fn push(&mut self, entry: squeue::Entry, user_data: u64) {
        let entry = entry.user_data(user_data);
        self.operations += 1;
        self.gauges.ring_ops.fetch_add(1, Ordering::Relaxed);
        if !self.dirty {
            self.dirty = true;
            if let Some(driver) = self.driver.take() {
                driver.wake();
            }
        }
        if !self.overflow.is_empty() {
            return self.overflow.push_back(entry);
        }
        // SAFETY: what an entry points to (a provided buffer, a way's message header) is kept until
        // its completion has been seen, by `Buffers` and by the relay's slot.
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            let _ = self.uring.submit();
            // SAFETY: as above.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                self.overflow.push_back(entry);
            }
        }
    }

    /// Ask the kernel to end an operation; its own completion still comes.
    pub(super) fn cancel(&mut self, user_data: u64) {
        self.push(opcode::AsyncCancel::new(user_data).build(), Kind::Cancel.of(0));
    }

    /// Whether there is something for the next round.
    fn pending(&mut self) -> bool {
        let (submissions, taskrun, overflown) = {
            let queue = self.uring.submission();
            (self.dirty, queue.taskrun(), queue.cq_overflow())
        };
        submissions || taskrun || overflown || !self.uring.completion().is_empty()
    }

    /// [`pending`](Self::pending), without believing a flag the kernel forgot to take down: it
    /// queues work and then raises the flag, and by then the work may have been done. Its poll(2)
    /// looks at the queues themselves. Work that comes after that look finds them empty, and
    /// therefore signals the eventfd.
    fn has_work(&mut self) -> bool {
        if !self.pending() {
            return false;
        }
        let (taskrun, overflown) = {
            let queue = self.uring.submission();
            (queue.taskrun(), queue.cq_overflow())
        };
        if self.dirty || overflown || !taskrun || !self.uring.completion().is_empty() {
            return true;
        }
        let mut look = [rustix::event::PollFd::new(&self.uring, rustix::event::PollFlags::IN)];
        // If it cannot be asked, believe the flag.
        !matches!(rustix::event::poll(&mut look, Some(&NOW)), Ok(0))
    }

    #[allow(unsafe_code, reason = "see push")]
    fn enter(&mut self) -> io::Result<()> {
        if !self.pending() && !self.sqpoll {
            return Ok(());
        }
        self.dirty = false;
        let refused = match self.uring.submit() {
            Ok(_) => false,
            // The entries stay queued and the next round tries again.
            Err(e) if is_passing(&e) => true,
            Err(e) => return Err(e),
        };
        while let Some(entry) = self.overflow.front() {
            // SAFETY: as in `push`.
            if unsafe { self.uring.submission().push(entry) }.is_err() {
                break;
            }
            self.overflow.pop_front();
        }
        self.dirty = !self.uring.submission().is_empty() && !self.sqpoll
            || !self.overflow.is_empty()
            || refused;
        Ok(())
    }

    /// Nothing moves: whoever was sent to and has not taken it by now has no room.
    fn note_stalls(&mut self) {
        let mut sent = std::mem::take(&mut self.sent);
        for (key, way) in sent.drain(..) {
            self.note_unanswered(key, way);
        }
        self.sent = sent;
    }

    fn collect(&mut self) {
        self.results.clear();
        for entry in self.uring.completion() {
            self.results.push((entry.user_data(), entry.result(), entry.flags()));
        }
    }

    fn dispatch(&mut self) {
        let mut results = std::mem::take(&mut self.results);
        for (user_data, result, flags) in results.drain(..) {
            if !cqueue::more(flags) {
                self.operations -= 1;
                self.gauges.ring_ops.fetch_sub(1, Ordering::Relaxed);
            }
            let (kind, key) = Kind::split(user_data);
            match kind {
                Kind::Poll => self.polled(key),
                Kind::ReceiveUp => self.received(key, Way::Up, result, flags),
                Kind::ReceiveDown => self.received(key, Way::Down, result, flags),
                Kind::SendUp => self.sent(key, Way::Up, result),
                Kind::SendDown => self.sent(key, Way::Down, result),
                Kind::Recall => self.recalled(key, result),
                Kind::Inlet => self.received_inlet(key, result, flags),
                Kind::InletRecall => self.recalled_inlet(key, result),
                Kind::Cancel => {}
            }
        }
        self.results = results;
        if self.buffers.offer() {
            self.feed();
        }
        self.tell_buffers();
    }

    /// Have the gauge know how many buffers hold bytes.
    pub(super) fn tell_buffers(&mut self) {
        let filled = self.buffers.filled() as u64;
        // Workers share the gauge: tell it the difference. Wrapping, it is right as a sum.
        let change = filled.wrapping_sub(self.told);
        if change != 0 {
            self.told = filled;
            self.gauges.buffers.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Have the kernel take everything that is queued, and work off what that set going: what was
    /// called back lets go of its descriptor.
    pub(super) fn flush_and_work(&mut self) {
        self.flush();
        if self.uring.submission().taskrun() {
            let _ = self.enter();
        }
    }

    /// Have the kernel take everything that is queued.
    pub(super) fn flush(&mut self) {
        /// The kernel refuses only while it is out of memory; do not wait for that for ever.
        const TRIES: usize = 1_000;
        for _ in 0..TRIES {
            if self.enter().is_err() {
                return;
            }
            if self.sqpoll {
                let _ = self.uring.submitter().squeue_wait();
            }
            if self.overflow.is_empty() && self.uring.submission().is_empty() {
                return;
            }
        }
    }

    fn polled(&mut self, key: usize) {
        match std::mem::replace(&mut self.polls[key], PollSlot::Done) {
            PollSlot::Waiting(waker) => waker.wake(),
            PollSlot::Forgotten => drop(self.polls.remove(key)),
            PollSlot::Submitted | PollSlot::Done => {}
        }
    }
}

impl Future for Ready {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut core = self.ring.core.borrow_mut();
        let slot = &mut core.polls[self.key];
        if matches!(slot, PollSlot::Done) {
            return Poll::Ready(());
        }
        *slot = PollSlot::Waiting(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let mut core = self.ring.core.borrow_mut();
        if matches!(core.polls[self.key], PollSlot::Done) {
            core.polls.remove(self.key);
            return;
        }
        core.polls[self.key] = PollSlot::Forgotten;
        core.cancel(Kind::Poll.of(self.key));
    }
}

impl Future for Relaying {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut core = this.ring.core.borrow_mut();
        if this.flow.is_broken_off() && !this.stopping {
            this.stopping = true;
            core.stop(this.key);
        }
        core.relays[this.key].poll_ended(cx)
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        let mut core = self.ring.core.borrow_mut();
        if !core.relays[self.key].has_ended() {
            core.stop(self.key);
            core.relays[self.key].forget();
            // The sockets are about to be closed: nothing queued may still name their descriptors.
            core.flush();
        }
        core.reap(self.key);
    }
}

/// An error of an enter that goes away by itself.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EAGAIN, libc::EBUSY, libc::EINTR, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| passing.contains(&errno))
}

/// A relay ring's flags.
pub fn builder(sqpoll: bool) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).setup_submit_all().dontfork();
    if sqpoll {
        const IDLE_MS: u32 = 50;
        builder.setup_sqpoll(IDLE_MS);
    } else {
        // Completions are worked off inside our own enter, not by interrupting us: half the cost
        // per message (ARCHITECTURE.md).
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }
    builder
}

fn eventfd() -> io::Result<OwnedFd> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    Ok(rustix::event::eventfd(0, flags)?)
}

#[allow(unsafe_code, reason = "tokio asks for a promise that the descriptor stays open")]
fn register(event: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by, and moves into, the AsyncFd, which never gives it out.
    Ok(unsafe { AsyncFd::register(event) }?)
}
