//! Greet: on ports where clients may speak HTTP, find out what this one speaks and tell the right
//! story. TCP takes a slot per connection, HTTP one per request.
//!
//! ```text
//!            HTTP bytes ──────────────────────────────→ http::serve
//!   classify other bytes ──→ admit → connect → relay     (a port that is declared http: closed)
//!            silence ──→ admit → connect ──→ the application speaks: relay
//!                          └───────┴────────→ the client speaks after all: its bytes decide
//! ```

use std::net::Shutdown;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::accept::ask;
use super::classify::{Spoken, listen_to};
use super::http::{self, Upstream, Version};
use super::registry::Stage;
use super::{Conn, Port, Protocol, QueuedHalfClose, admit, connect, release, serve};
use crate::io::{Engine, sock};
use crate::limit::Entry;
use crate::outcome::{Outcome, Reason};

/// After this much silence the application may be the one who speaks first.
pub(super) const SILENCE: Duration = Duration::from_millis(100);

/// How long an application may take to end a connection that turned out to be for nothing.
const PARTING: Duration = Duration::from_secs(1);

/// How long a connection that was made before the listener closed may take to say what it wants.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Carry one connection to its end, whatever it turns out to be.
pub(super) async fn greet<E: Engine>(upstream: Rc<Upstream<E>>, conn: Conn<E>) {
    let (engine, port) = (upstream.engine.clone(), upstream.port.clone());
    conn.entry.enter(Stage::Greeting);
    let patience = match port.protocol {
        Protocol::Auto => SILENCE.min(conn.config.http.header_timeout),
        Protocol::Http | Protocol::Tcp => conn.config.http.header_timeout,
    };
    let spoken = tokio::select! {
        biased;
        spoken = listen_to(&engine, &conn.client) => Some(spoken),
        () = engine.sleep_until(Instant::now() + patience) => None,
        () = last_words(&engine, &port) => Some(Spoken::Nothing),
    };
    match (spoken, port.protocol) {
        (Some(Spoken::Http1), _) => Box::pin(http::serve(upstream, conn, Version::One)).await,
        (Some(Spoken::Http2), _) => Box::pin(http::serve(upstream, conn, Version::Two)).await,
        // hyper says what is wrong with it.
        (Some(Spoken::Tcp), Protocol::Http) => {
            Box::pin(http::serve(upstream, conn, Version::One)).await;
        }
        (Some(Spoken::Tcp), _) => tcp(&upstream, conn),
        (None, Protocol::Auto) => Box::pin(silent(upstream, conn)).await,
        // It left without a word, or never said one; what it says now is not answered.
        (Some(Spoken::Nothing) | None, _) => {
            let _ = engine.socket(&conn.client).shutdown(Shutdown::Write);
            http::linger(&engine, &conn.client).await;
        }
    }
}

/// Resolves when the listeners have closed, and whoever had connected has had time for its first
/// bytes.
async fn last_words<E: Engine>(engine: &E, port: &Port) {
    port.shared.closing.raised().await;
    engine.sleep_until(Instant::now() + LAST_WORDS).await;
}

/// The story of [`serve`], from the gate on.
fn tcp<E: Engine>(upstream: &Upstream<E>, mut conn: Conn<E>) {
    let (engine, port) = (&upstream.engine, &upstream.port);
    let now = Instant::now();
    conn.entry.asks(now);
    match ask(port, conn.entry.client(), now) {
        Entry::Refuse(reason) => release::release(engine, port, conn, Outcome::Refused(reason)),
        entry => {
            conn.entry.enter(Stage::Queued);
            conn.admission = Some(entry);
            hand_over(upstream, conn);
        }
    }
}

/// To a task of its own: this one has room for every turn a greeting can take, which a connection
/// that lasts need not pay for.
fn hand_over<E: Engine>(upstream: &Upstream<E>, conn: Conn<E>) {
    let story = serve(upstream.engine.clone(), upstream.port.clone(), conn);
    upstream.engine.spawn(upstream.tasks.track_future(story));
}

/// How a silent connection goes on.
enum Turn {
    /// The client has spoken after all, and this.
    Spoke(Spoken),
    /// It is TCP: the application has spoken first, or the client will not speak any more.
    Relay,
    /// It is over.
    Over(Outcome),
}

/// Nobody speaks: the client may wait for the application to.
async fn silent<E: Engine>(upstream: Rc<Upstream<E>>, mut conn: Conn<E>) {
    let (engine, port) = (upstream.engine.clone(), upstream.port.clone());
    conn.entry.enter(Stage::Queued);
    let now = Instant::now();
    conn.entry.asks(now);
    let entry = ask(&port, conn.entry.client(), now);
    let turn = first_word(&engine, &port, &mut conn, entry).await;
    let version = match turn {
        Turn::Spoke(Spoken::Http1) => Version::One,
        Turn::Spoke(Spoken::Http2) => Version::Two,
        Turn::Over(outcome) => return release::release(&engine, &port, conn, outcome),
        // Both ends are there, or a slot for it; else it left the queue when it spoke.
        Turn::Spoke(Spoken::Tcp | Spoken::Nothing) | Turn::Relay => {
            return match conn.admission {
                Some(_) => hand_over(&upstream, conn),
                None => tcp(&upstream, conn),
            };
        }
    };
    // Its requests take slots of their own; the application's connection was for nothing, and its slot is
    // free when the application has ended it.
    if let Some(app) = conn.app.take() {
        give_up(&engine, &port, &app).await;
    }
    conn.entry.dialled(false);
    conn.admission = None;
    Box::pin(http::serve(upstream, conn, version)).await;
}

/// End a connection to the application that has carried nothing, and wait until it has ended.
async fn give_up<E: Engine>(engine: &E, port: &Port, app: &E::Stream) {
    let _ = engine.socket(app).shutdown(Shutdown::Write);
    tokio::select! {
        biased;
        () = engine.discard(app) => return,
        () = engine.sleep_until(Instant::now() + PARTING) => {}
        () = port.shared.cut.raised() => {}
    }
    sock::reset(engine.socket(app));
}

/// Get a slot and the application's connection, and wait for somebody to speak.
async fn first_word<E: Engine>(engine: &E, port: &Port, conn: &mut Conn<E>, entry: Entry) -> Turn {
    let header = conn.header(engine, port);
    let Conn { client, app, admission, config, entry: listed } = conn;
    let mut word = pin!(listen_to(engine, client));
    let permit = match entry {
        Entry::Admit(permit) => permit,
        Entry::Refuse(reason) => return Turn::Over(Outcome::Refused(reason)),
        Entry::Wait(ticket) => {
            let keep = config.queued_half_close == QueuedHalfClose::Keep;
            let waited = tokio::select! {
                biased;
                spoken = &mut word => match spoken {
                    Spoken::Nothing => Err(Reason::ClientGone),
                    spoken => return Turn::Spoke(spoken),
                },
                admitted = admit::wait(engine, client, keep, ticket) => admitted,
            };
            let has_waited = listed.since_it_asked(Instant::now());
            port.metrics.wait(has_waited);
            listed.has_waited(has_waited);
            match waited {
                Ok(permit) => permit,
                Err(reason) => return Turn::Over(Outcome::Refused(reason)),
            }
        }
    };
    *admission = Some(Entry::Admit(permit));
    listed.enter(Stage::Connecting);
    let dialled = tokio::select! {
        biased;
        spoken = &mut word => match spoken {
            Spoken::Nothing => return Turn::Over(Outcome::Refused(Reason::ClientGone)),
            spoken => return Turn::Spoke(spoken),
        },
        dialled = connect::connect(engine, port, config, header) => dialled,
    };
    let stream = match dialled {
        Ok(stream) => {
            listed.dialled(true);
            app.insert(stream)
        }
        Err(outcome) => {
            port.metrics.admit();
            return Turn::Over(outcome);
        }
    };
    tokio::select! {
        biased;
        spoken = &mut word => Turn::Spoke(spoken),
        () = engine.readable(stream) => Turn::Relay,
        () = port.shared.cut.raised() => {
            port.metrics.admit();
            Turn::Over(Outcome::Cut)
        }
    }
}
