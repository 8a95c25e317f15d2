//! Reading and writing a connection a piece at a time, for those who have to look at the bytes.
//!
//! Always true: a read that filled less than its buffer, or would have blocked, has cleared the
//! readiness it saw, so the next one waits for an edge; but while something urgent may be there only
//! one that would have blocked has; a closed side stays ready.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::io::unix::AsyncFdReadyGuard;

use super::Stream;
use crate::io::sock;

impl Stream {
    /// As [`crate::io::Engine::poll_read`].
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let eager = self.eager.replace(false);
            let guard = if eager { None } else { Some(ready!(self.fd.poll_read_ready(cx))?) };
            let room = buf.remaining();
            match sock::receive(self.fd.get_ref(), buf) {
                Ok(n) => {
                    match guard {
                        Some(mut guard) if n > 0 && n < room && !self.may_be_urgent() => {
                            guard.clear_ready();
                        }
                        Some(_) => {}
                        // What was read without waiting may not be all.
                        None => self.eager.set(n == room || self.may_be_urgent()),
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.nothing_is_urgent();
                    if let Some(mut guard) = guard {
                        guard.clear_ready();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => self.eager.set(eager),
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// As [`crate::io::Engine::poll_write`]: tried before it is waited for.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut guard: Option<AsyncFdReadyGuard<'_, _>> = None;
        loop {
            let sent = match bytes {
                [one] => self.fd.get_ref().send(one),
                several => self.fd.get_ref().send_vectored(several),
            };
            match sent {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
            if let Some(mut stale) = guard.take() {
                stale.clear_ready();
            }
            guard = Some(ready!(self.fd.poll_write_ready(cx))?);
        }
    }
}
