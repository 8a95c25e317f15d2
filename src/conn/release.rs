//! Release: the one place where a connection ends. Counts one outcome and writes it down, so that
//! whoever sees the end finds it counted; then closes, and gives the slot back last.

use std::net::Shutdown;
use std::time::Instant;

use socket2::SockRef;

use super::registry::Registered;
use super::{Conn, Port, TcpRefuse, report};
use crate::capture::origin::Astray;
use crate::io::{Engine, sock};
use crate::limit::Entry;
use crate::outcome::{Outcome, Reason};

/// End `conn` as `outcome` says.
pub(super) fn release<E: Engine>(engine: &E, port: &Port, conn: Conn<E>, outcome: Outcome) {
    if let Some(Entry::Admit(_)) = conn.admission {
        let waited = conn.entry.waited().unwrap_or_default();
        let asked = conn.entry.since_it_asked(Instant::now());
        port.metrics.free(asked.saturating_sub(waited));
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

/// One outcome, one count, and what is written down of it: first, so that whoever sees it counted can
/// have it explained.
pub(super) fn count(port: &Port, entry: &Registered, outcome: Outcome, bytes: [u64; 2]) {
    count_and_say(port, entry, outcome, bytes, None);
}

/// The same, of a captured connection that has nowhere to go, and why.
pub(super) fn count_astray(port: &Port, entry: &Registered, reason: Reason, astray: Astray) {
    count_and_say(port, entry, Outcome::Refused(reason), [0, 0], Some(astray));
}

fn count_and_say(
    port: &Port,
    entry: &Registered,
    outcome: Outcome,
    bytes: [u64; 2],
    astray: Option<Astray>,
) {
    let now = Instant::now();
    report::connection(port, entry, outcome, bytes, (now, astray));
    if let Some(tracer) = &port.shared.tracer {
        tracer.connection(port, entry, outcome, bytes);
    }
    port.metrics.end(outcome, now.saturating_duration_since(entry.since()));
    entry.counted();
}

/// The same for a request. Its line in the access log comes later, when its last byte has gone.
pub(super) fn count_request(port: &Port, ended: &report::Ended<'_>) {
    report::request(port, ended);
    port.metrics.end_request(ended.outcome, ended.lasted());
}

fn reset_app<E: Engine>(engine: &E, app: Option<&E::Stream>) {
    if let Some(app) = app {
        sock::reset(engine.socket(app));
    }
}
