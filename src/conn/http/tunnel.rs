//! After the application has switched protocols (WebSocket and others), bytes pass as on a TCP port,
//! by the engine's relay. The slot stays held until the application has ended.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::exchange::Lease;
use super::upstream::Switched;
use super::wire::{Head, Line};
use crate::conn::registry::Stage;
use crate::conn::{Conn, Port, relay, release};
use crate::io::{Engine, Side, sock};
use crate::outcome::Outcome;

/// The application has answered 101; its connection comes when hyper is done with it.
pub struct Tunnel<E: Engine> {
    pub app: oneshot::Receiver<Switched<E>>,
    pub lease: Rc<Lease>,
}

/// The client's end of a tunnel.
pub struct Entrance<E: Engine> {
    pub line: Rc<Line<E>>,
    /// What the client had sent after its request.
    pub read: Bytes,
    /// The connection, without its stream.
    pub conn: Conn<E, ()>,
}

/// Carry what comes after the 101.
pub async fn carry<E: Engine>(engine: &E, port: &Port, entrance: Entrance<E>, tunnel: Tunnel<E>) {
    let Entrance { line: client, read: asked, conn } = entrance;
    let Ok(Switched { line: app, read: said, seat }) = tunnel.app.await else { return };
    let Some(slot) = tunnel.lease.take() else { return };
    let (Some((client, more_asked)), Some((app, more_said))) =
        (client.reclaim().await, app.reclaim().await)
    else {
        slot.will_be(Outcome::Failed);
        return;
    };
    conn.entry.enter(Stage::Relaying);
    // The heads are no part of what passes through the tunnel.
    let heads = carried(&conn);
    let early = [asked.len() + more_asked.len(), said.len() + more_said.len()];
    // What either had said before the relay begins comes first.
    let patience = conn.config.write_stall_timeout;
    let app = hand_over(engine, app, &[&asked, &more_asked], patience).await;
    let client = hand_over(engine, client, &[&said, &more_said], patience).await;
    let (app, client) = match (app, client) {
        (Some(app), Some(client)) => (app, client),
        // What one side broke is broken for the other, and the slot is free when it is.
        (Some(app), None) => return sock::reset(engine.socket(&app)),
        (None, client) => {
            slot.will_be(Outcome::AppReset);
            if let Some(client) = client {
                sock::reset(engine.socket(&client));
            }
            return;
        }
    };
    let conn = conn.with(client, app);
    let outcome = relay::relay(engine, port, &conn).await;
    slot.will_be(outcome);
    let all = conn.bytes();
    slot.carried([0, 1].map(|side: usize| all[side] - heads[side] + early[side] as u64));
    release::part(engine, conn, outcome);
    drop(seat);
    drop(slot);
}

fn carried<E: Engine>(conn: &Conn<E, ()>) -> [u64; 2] {
    [Side::Client, Side::App].map(|side| conn.entry.traffic().from(side))
}

/// Write these first, within `patience`. Who does not take them is reset.
async fn hand_over<E: Engine>(
    engine: &E,
    stream: E::Stream,
    pieces: &[&[u8]],
    patience: Duration,
) -> Option<E::Stream> {
    let bytes = pieces.concat();
    if bytes.is_empty() {
        return Some(stream);
    }
    let line = Line::new(engine, stream, Head::Busy);
    let written = tokio::select! {
        written = line.write_all(&bytes) => written.is_ok(),
        () = engine.sleep_until(Instant::now() + patience) => false,
    };
    if !written {
        sock::reset(line.socket());
        return None;
    }
    line.reclaim().await.map(|(stream, _)| stream)
}
