//! Crowd: connections beyond `max-connections`, where clients may speak HTTP. A few at a time are heard, and
//! told in their own language why nobody serves them; the others are closed at once.
//!
//! Always true: none of them asks the gate; there are never more than [`Shared::hears`] lets in, none for long.
//!
//! [`Shared::hears`]: super::Shared::hears

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::classify::{Spoken, listen_to};
use super::greet::SILENCE;
use super::http::{self, Upstream, Version};
use super::registry::Stage;
use super::{Conn, Port, Protocol, release};
use crate::io::Engine;
use crate::outcome::{Outcome, Reason};

/// How long it may take to say what it wants, and then to be told.
const PATIENCE: Duration = Duration::from_secs(1);

/// The right to be told.
pub struct Heard(Arc<Port>);

impl Heard {
    /// If not too many are being told already.
    pub fn of(port: &Arc<Port>) -> Option<Self> {
        port.shared.hears().then(|| Self(port.clone()))
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.0.shared.has_heard();
    }
}

/// Tell one connection.
pub async fn hear_out<E: Engine>(upstream: Rc<Upstream<E>>, conn: Conn<E>, heard: Heard) {
    let (engine, port) = (upstream.engine.clone(), &*heard.0);
    conn.entry.enter(Stage::Greeting);
    // Nobody is kept waiting whose server may be the one who speaks first.
    let patience = if port.protocol == Protocol::Http { PATIENCE } else { SILENCE };
    let spoken = tokio::select! {
        biased;
        spoken = listen_to(&engine, &conn.client) => spoken,
        () = engine.sleep_until(Instant::now() + patience) => Spoken::Nothing,
        () = port.shared.closing.raised() => Spoken::Nothing,
    };
    let version = match (spoken, port.protocol) {
        (Spoken::Http2, _) => Version::Two,
        (Spoken::Http1, _) | (Spoken::Tcp, Protocol::Http) => Version::One,
        (Spoken::Tcp | Spoken::Nothing, _) => {
            let outcome = Outcome::Refused(Reason::MaxConnections);
            return release::release(&engine, port, conn, outcome);
        }
    };
    tokio::select! {
        () = http::refuse_all(upstream, conn, version) => {}
        () = engine.sleep_until(Instant::now() + PATIENCE) => {}
    }
}
