//! Admit: wait for the slot the gate promised, and watch the client leave meanwhile. Nothing is
//! read from the client.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use super::{Conn, Port, QueuedHalfClose};
use crate::io::Engine;
use crate::limit::{Entry, Permit, Ticket};
use crate::outcome::{Outcome, Reason};

/// Turn the gate's answer into a slot, held by `conn`, or say why there is none.
pub(super) async fn admit<E: Engine>(
    engine: &E,
    port: &Port,
    conn: &mut Conn<E>,
) -> Result<(), Outcome> {
    if let Some(Entry::Wait(ticket)) = conn.admission.take_if(|a| matches!(a, Entry::Wait(_))) {
        // In a box: only those who wait pay for its timer and its watch.
        let keep = conn.config.queued_half_close == QueuedHalfClose::Keep;
        let admitted = Box::pin(wait(engine, &conn.client, keep, ticket)).await;
        let waited = conn.entry.since_it_asked(Instant::now());
        port.metrics.wait(waited);
        conn.entry.has_waited(waited);
        conn.admission = Some(Entry::Admit(admitted.map_err(Outcome::Refused)?));
    }
    port.metrics.admit();
    Ok(())
}

/// The queue. First come, first served is the gate's business; here the client is watched, so that
/// nobody is forwarded who has left. `keep`: a client that has only half-closed has not left.
pub(super) async fn wait<E: Engine>(
    engine: &E,
    client: &E::Stream,
    keep: bool,
    mut ticket: Ticket,
) -> Result<Permit, Reason> {
    let gone = || has_left(engine.socket(client), keep);
    let mut watching = true;
    let mut left = pin!(engine.peer_left(client));
    let mut alarm_at = ticket.deadline();
    let mut alarm = pin!(engine.sleep_until(alarm_at));
    poll_fn(|cx| {
        if watching && left.as_mut().poll(cx).is_ready() {
            if gone() {
                return Poll::Ready(Err(Reason::ClientGone));
            }
            // Its FIN is here and it is to be kept: there is nothing more to watch for.
            watching = false;
        }
        loop {
            if let Poll::Ready(admitted) = ticket.poll(Instant::now(), cx) {
                // The client may have left since this thread last heard from the kernel.
                let too_late = admitted.is_ok() && gone();
                return Poll::Ready(if too_late { Err(Reason::ClientGone) } else { admitted });
            }
            // The timeout may have been changed meanwhile; the gate wakes us then.
            if ticket.deadline() != alarm_at {
                alarm_at = ticket.deadline();
                alarm.set(engine.sleep_until(alarm_at));
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Whether the client has sent FIN or RST, even behind unread bytes; with `keep`, only RST counts.
pub(super) fn has_left(client: SockRef<'_>, keep: bool) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(&*client, PollFlags::RDHUP)];
    if poll(&mut fds, Some(&now)).unwrap_or(0) == 0 {
        return false;
    }
    let seen = fds[0].revents();
    let reset = seen.intersects(PollFlags::ERR | PollFlags::HUP);
    reset || (seen.contains(PollFlags::RDHUP) && !keep)
}
