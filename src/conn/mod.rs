//! THE STORY of one connection, one file per stage.
//!
//! ```text
//! accept ──→ admit ──→ connect ──→ relay ──→ release
//!   │          └ refused, or left while it waited ──┘
//!   └ back-off when descriptors run out; the listener's end
//! ```
//!
//! Always true: every accepted connection passes `release` exactly once; its slot is given back
//! after the application's end of it has been read, or reset.
#![allow(
    clippy::manual_async_fn,
    reason = "an async fn keeps its arguments twice, and every open connection pays for it"
)]

mod accept;
mod admit;
pub mod captured;
pub mod classify;
mod connect;
mod crowd; // connections beyond max-connections that are told so
mod greet;
pub mod http;
mod relay;
mod release;
mod report;

pub mod port;
pub mod registry;
pub mod seats;
pub mod trace;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::access;
use crate::io::{Engine, Side};
use crate::limit::Entry;
use crate::outcome::Outcome;

pub use accept::{Entrance, accept};
pub use captured::{Captured, Terms, TermsByPort};
pub use port::{Port, Protocol, Shared};
use registry::{Registered, Stage};

/// How a port treats its connections; everything but admission. All of it can change live, for
/// connections accepted from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long the application may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long nothing may move before a connection is closed. `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// How long a side may leave bytes untaken before the connection is reset.
    pub write_stall_timeout: Duration,
    /// How long the application may take to end once its client has left.
    pub abandon_timeout: Duration,
    /// What refusing a connection looks like to the client.
    pub tcp_refuse: TcpRefuse,
    /// What the client's FIN means while it waits in the queue.
    pub queued_half_close: QueuedHalfClose,
    /// Whether the application is told the client's address in a PROXY protocol v2 header.
    pub send_proxy_protocol: bool,
    /// What is written to the access log. Holds at once, for open connections too.
    pub access_log: access::Wanted,
    /// What is only about HTTP.
    pub http: http::Config,
}

/// What refusing a TCP connection looks like to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpRefuse {
    /// FIN: the client reads an end of file.
    Close,
    /// RST: the client reads "connection reset".
    Reset,
    /// Nobody is refused while limit and queue are full: connections wait in the kernel's backlog.
    Hold,
}

/// What the client's FIN means while it waits in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuedHalfClose {
    /// The client has left.
    Gone,
    /// The client has said all it has to say and waits for the answer.
    Keep,
}

/// One accepted connection on its way, and what it holds. Fields are dropped in this order: the
/// application's socket is closed before the slot is free.
struct Conn<E: Engine, S = <E as Engine>::Stream> {
    client: S,
    app: Option<E::Stream>,
    /// The gate's answer; once admitted, the slot. Empty only while it waits.
    admission: Option<Entry>,
    /// The port's settings when the connection came.
    config: Arc<Config>,
    entry: Registered,
}

/// Carry one admitted or queued connection to its end.
fn serve<E: Engine>(engine: E, port: Arc<Port>, mut conn: Conn<E>) -> impl Future<Output = ()> {
    async move {
        let outcome = {
            let story = pin!(carry(&engine, &port, &mut conn));
            contain(story).await
        };
        release::release(&engine, &port, conn, outcome);
    }
}

/// A bug in a stage ends this connection, and is counted; nobody else notices.
fn contain(
    mut story: Pin<&mut impl Future<Output = Result<Outcome, Outcome>>>,
) -> impl Future<Output = Outcome> {
    poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| story.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(outcome) | Err(outcome))) => Poll::Ready(outcome),
        Err(_) => Poll::Ready(Outcome::Failed),
    })
}

/// The stages. Each hands on, or says how it ended.
fn carry<E: Engine>(
    engine: &E,
    port: &Port,
    conn: &mut Conn<E>,
) -> impl Future<Output = Result<Outcome, Outcome>> {
    async move {
        admit::admit(engine, port, conn).await?;
        // A greeting may have connected already, to hear whether the application speaks first.
        if conn.app.is_none() {
            conn.entry.enter(Stage::Connecting);
            let header = conn.header(engine, port);
            conn.app = Some(connect::connect(engine, port, &conn.config, header).await?);
            conn.entry.dialled(true);
        }
        conn.entry.enter(Stage::Relaying);
        Ok(relay::relay(engine, port, conn).await)
    }
}

impl<E: Engine> Conn<E> {
    /// The client's stream, and the rest, for those who read and write it themselves.
    fn part(self) -> (E::Stream, Conn<E, ()>) {
        let Self { client, app, admission, config, entry } = self;
        (client, Conn { client: (), app, admission, config, entry })
    }

    /// What the application is told about the client.
    fn header(&self, engine: &E, port: &Port) -> Vec<u8> {
        let client = self.entry.client().map(|client| (client, engine.socket(&self.client)));
        connect::header(port, &self.config, client)
    }

    fn bytes(&self) -> [u64; 2] {
        let traffic = self.entry.traffic();
        [traffic.from(Side::Client), traffic.from(Side::App)]
    }
}

impl<E: Engine> Conn<E, ()> {
    /// A connection whose both ends are known.
    fn with(self, client: E::Stream, app: E::Stream) -> Conn<E> {
        let Self { admission, config, entry, .. } = self;
        Conn { client, app: Some(app), admission, config, entry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::epoll::Epoll;
    use crate::io::uring::Uring;

    fn size_of_story<E: Engine, F>(_: fn(E, Arc<Port>, Conn<E>) -> F) -> usize {
        size_of::<F>()
    }

    /// P10: what an open connection costs us is mostly this future. Its task gets multiples of 128
    /// bytes, of which tokio needs 112: these are the largest that fit into 640 and 768. With two
    /// registrations (epoll) and its row in the list a connection stays below 2 KiB.
    #[test]
    fn the_story_of_a_connection_is_small() {
        let (uring, epoll) = (size_of_story(serve::<Uring>), size_of_story(serve::<Epoll>));
        assert!(uring <= 528, "the future has grown to {uring} bytes");
        assert!(epoll <= 656, "the future has grown to {epoll} bytes");
    }

    /// P8: a panic ends at most the connection it happened in, through the usual door.
    #[test]
    fn a_panic_is_an_outcome() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let story = async {
            tokio::task::yield_now().await;
            panic!("a bug in a stage")
        };
        assert_eq!(runtime.block_on(contain(pin!(story))), Outcome::Failed);
    }
}
