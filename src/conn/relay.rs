//! Relay: let the engine carry bytes, and break off what has been silent, stuck or abandoned for
//! too long. The slot stays held until the application's end has been read.

use std::net::Shutdown;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use super::registry::Stage;
use super::{Conn, Port};
use crate::io::flow::{Overdue, Patience};
use crate::io::{Engine, Flow, Side, sock};
use crate::outcome::Outcome;

/// Why the relay did not go on to its own end.
enum Halt {
    Overdue(Overdue),
    Cut,
}

/// Carry `conn` until both ends have ended, or one of them, or patience, broke it.
pub(super) fn relay<E: Engine>(
    engine: &E,
    port: &Port,
    conn: &Conn<E>,
) -> impl Future<Output = Outcome> {
    async move {
        let app = conn.app.as_ref().expect("connect comes before relay");
        let patience = Patience {
            idle: conn.config.idle_timeout,
            // Looked at twice: between the two looks it has to have taken something.
            write_stall: Some(conn.config.write_stall_timeout / 2),
            abandon: Some(conn.config.abandon_timeout),
        };
        let traffic = conn.entry.traffic().clone();
        let totals = port.metrics.bytes.clone();
        let flow = Rc::new(Flow::new(traffic, totals, patience, Instant::now()));

        let halt = move_bytes(engine, port, conn, app, &flow).await;
        match (halt, flow.broken()) {
            (Some(Halt::Cut), _) => Outcome::Cut,
            (Some(Halt::Overdue(Overdue::Stalled(Side::Client))), _) => Outcome::ClientStalled,
            (Some(Halt::Overdue(Overdue::Stalled(Side::App))), _) => Outcome::AppStalled,
            (Some(Halt::Overdue(Overdue::Unfinished(Side::App))), _) => Outcome::Abandoned,
            (Some(Halt::Overdue(Overdue::Unfinished(Side::Client))), _) => Outcome::IdleTimeout,
            (Some(Halt::Overdue(Overdue::Idle)), _) => {
                Box::pin(idle(engine, port, conn, &flow)).await
            }
            (None, Some(Side::Client)) => Outcome::ClientReset,
            (None, Some(Side::App)) => Outcome::AppReset,
            (None, None) => Outcome::Served,
        }
    }
}

/// Let the engine work until it is done, or there is a reason to stop it.
fn move_bytes<E: Engine>(
    engine: &E,
    port: &Port,
    conn: &Conn<E>,
    app: &E::Stream,
    flow: &Rc<Flow>,
) -> impl Future<Output = Option<Halt>> {
    async move {
        let mut moving = pin!(engine.relay(&conn.client, app, flow));
        let halt = loop {
            let overdue = tokio::select! {
                biased;
                () = &mut moving => return None,
                overdue = flow.overdue(|at| engine.sleep_until(at)) => overdue,
                () = port.shared.cut.raised() => break Halt::Cut,
            };
            if let Overdue::Stalled(side) = overdue {
                let sink = if side == Side::Client { &conn.client } else { app };
                if flow.takes_slowly(side, sock::unacknowledged(engine.socket(sink))) {
                    continue;
                }
            }
            break Halt::Overdue(overdue);
        };
        flow.break_off();
        moving.await;
        Some(halt)
    }
}

/// Both were silent: end the client, ask the application to end, and wait until it has.
async fn idle<E: Engine>(engine: &E, port: &Port, conn: &Conn<E>, flow: &Flow) -> Outcome {
    let app = conn.app.as_ref().expect("connect comes before relay");
    let _ = engine.socket(&conn.client).shutdown(Shutdown::Both);
    if flow.is_finished(Side::App) {
        return Outcome::IdleTimeout;
    }
    conn.entry.enter(Stage::Ending);
    let _ = engine.socket(app).shutdown(Shutdown::Write);
    let deadline = Instant::now() + conn.config.abandon_timeout;
    tokio::select! {
        () = engine.discard(app) => Outcome::IdleTimeout,
        () = engine.sleep_until(deadline) => {
            sock::reset(engine.socket(app));
            Outcome::IdleTimeout
        }
        () = port.shared.cut.raised() => Outcome::Cut,
    }
}
