//! Release: the one place where a connection ends. Counts one outcome and writes one log line, so
//! that whoever sees the end finds it counted; then closes, and gives the slot back last.

use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::registry::Registered;
use super::{Conn, Port, TcpRefuse};
use crate::io::{Engine, sock};
use crate::limit::Entry;
use crate::outcome::{Fault, Outcome};

/// End `conn` as `outcome` says.
pub(super) fn release<E: Engine>(engine: &E, port: &Port, conn: Conn<E>, outcome: Outcome) {
    if let Some(Entry::Admit(_)) = conn.admission {
        port.metrics.free(conn.age(Instant::now()).saturating_sub(conn.entry.waited()));
    }
    count(port, &conn.entry, outcome, conn.bytes());
    part(engine, conn, outcome);
}

/// Close both ends as `outcome` says, and give the slot back.
pub(super) fn part<E: Engine>(engine: &E, conn: Conn<E>, outcome: Outcome) {
    let Conn { client, app, admission, config, entry } = conn;
    match outcome {
        // Never reached the application, or not far enough to have been heard.
        Outcome::Refused(_) => {
            reset_app(engine, app.as_ref());
            refuse(engine.socket(&client), config.tcp_refuse);
        }
        // What one side broke is broken for the other.
        Outcome::ClientReset
        | Outcome::AppReset
        | Outcome::ClientStalled
        | Outcome::AppStalled
        | Outcome::Failed => {
            sock::reset(engine.socket(&client));
            reset_app(engine, app.as_ref());
        }
        // The client ends as at the end of a file; the application has no time left.
        Outcome::Cut | Outcome::Abandoned => {
            let _ = engine.socket(&client).shutdown(Shutdown::Write);
            reset_app(engine, app.as_ref());
        }
        // Both have ended, or the application has and the client was told.
        Outcome::Served | Outcome::IdleTimeout => {}
    }
    drop(app);
    drop(admission);
    drop(client);
    drop(entry);
}

/// Tell a client that it is not let in.
pub(super) fn refuse(client: SockRef<'_>, how: TcpRefuse) {
    match how {
        TcpRefuse::Reset => sock::reset(client),
        // FIN first: were the socket closed with bytes unread, only a RST would go out, and the
        // client could not tell a refusal from a crash.
        TcpRefuse::Close | TcpRefuse::Hold => {
            let _ = client.shutdown(Shutdown::Write);
        }
    }
}

/// One outcome, one count, one line.
pub(super) fn count(port: &Port, entry: &Registered, outcome: Outcome, bytes: [u64; 2]) {
    let lasted = Instant::now().saturating_duration_since(entry.since());
    port.metrics.end(outcome, lasted);
    entry.counted();
    if outcome.fault() != Fault::Nobody && tracing::enabled!(tracing::Level::DEBUG) {
        let reason = match outcome {
            Outcome::Refused(reason) => reason.label(),
            _ => outcome.label(),
        };
        tracing::debug!(
            id = entry.id(),
            port = %port.listen,
            client = entry.client().map(tracing::field::display),
            outcome = outcome.label(),
            reason,
            seconds = lasted.as_secs_f64(),
            bytes_in = bytes[0],
            bytes_out = bytes[1],
            "connection ended"
        );
    }
}

/// The same for a request.
pub(super) fn count_request(
    port: &Port,
    client: Option<SocketAddr>,
    outcome: Outcome,
    lasted: Duration,
) {
    port.metrics.end_request(outcome, lasted);
    if outcome.fault() != Fault::Nobody && tracing::enabled!(tracing::Level::DEBUG) {
        let reason = match outcome {
            Outcome::Refused(reason) => reason.label(),
            _ => outcome.label(),
        };
        tracing::debug!(
            port = %port.listen,
            client = client.map(tracing::field::display),
            outcome = outcome.label(),
            reason,
            seconds = lasted.as_secs_f64(),
            "request ended"
        );
    }
}

fn reset_app<E: Engine>(engine: &E, app: Option<&E::Stream>) {
    if let Some(app) = app {
        sock::reset(engine.socket(app));
    }
}
