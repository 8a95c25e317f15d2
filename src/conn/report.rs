//! Report: what is written down of a connection or request that is over. What did not end well goes
//! into the journal, and the first of its class in every second into the log; a connection that
//! carried no HTTP goes into the access log, if there is one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Method, Uri};

use super::Port;
use super::registry::Registered;
use crate::access::{Ending, Entry, Wanted};
use crate::capture::origin::Astray;
use crate::journal::{Note, Numbers, Request, Text};
use crate::limit::Client;
use crate::outcome::{Fault, Outcome};

/// How one request ended.
pub(super) struct Ended<'a> {
    pub client: Option<SocketAddr>,
    /// Whose share of the slots it counted towards, if that matters.
    pub counted_as: Option<Client>,
    /// The client's connection.
    pub connection: u64,
    /// `x-request-id`.
    pub id: Option<&'a HeaderValue>,
    /// The rest of what it was, unless it is on its way to the application already.
    pub head: Option<(&'a Method, &'a Uri)>,
    pub outcome: Outcome,
    pub arrived: Instant,
    pub now: Instant,
    /// How long it waited for a slot.
    pub waited: Duration,
    /// How long its client would have waited.
    pub deadline: Option<Duration>,
    /// What the client was told, if it was the gateway that answered.
    pub told: Option<Told>,
}

/// What a client was told instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub status: u16,
    /// Of gRPC, which says it beside the status.
    pub grpc_status: Option<u8>,
    /// When to come again.
    pub retry_after: Option<Duration>,
}

impl Ended<'_> {
    /// From its arrival to its end.
    pub fn lasted(&self) -> Duration {
        self.now.saturating_duration_since(self.arrived)
    }
}

/// A connection is over that was the unit of admission.
pub(super) fn connection(
    port: &Port,
    entry: &Registered,
    outcome: Outcome,
    bytes: [u64; 2],
    (now, astray): (Instant, Option<Astray>),
) {
    let lasted = now.saturating_duration_since(entry.since());
    if outcome.fault() != Fault::Nobody {
        let note = Note {
            at: now,
            outcome,
            astray,
            port: port.listen,
            client: entry.client(),
            connection: entry.id(),
            request: None,
            lasted: lasted.as_secs_f32(),
            waited: entry.waited().unwrap_or_default().as_secs_f32(),
            numbers: numbers(port, entry.client().map(|client| client.ip().into())),
        };
        if let Some(unsaid) = port.shared.journal.note(note) {
            say(&note, bytes, unsaid);
        }
    }
    if port.access_log() != Wanted::Off {
        port.shared.access.write(Box::new(Entry {
            time: std::time::SystemTime::now(),
            port: port.listen,
            client: entry.client(),
            connection: entry.id(),
            protocol: "tcp",
            request: None,
            wait: entry.waited().unwrap_or_default(),
            duration: lasted,
            outcome: Ending(Some(outcome)),
            bytes_in: bytes[0],
            bytes_out: bytes[1],
        }));
    }
}

/// A request is over.
pub(super) fn request(port: &Port, ended: &Ended<'_>) {
    if ended.outcome.fault() == Fault::Nobody {
        return;
    }
    let told = ended.told.as_ref();
    let (method, path) = match ended.head {
        Some((method, uri)) => {
            (Text::of(method.as_str().as_bytes()), Text::of(uri.path().as_bytes()))
        }
        None => (Text::EMPTY, Text::EMPTY),
    };
    let request = Request {
        id: ended.id.map_or(Text::EMPTY, |id| Text::of(id.as_bytes())),
        method,
        path,
        deadline: ended.deadline.map(|deadline| deadline.as_secs_f32()),
        status: told.map_or(0, |told| told.status),
        grpc_status: told.and_then(|told| told.grpc_status),
        retry_after: told.and_then(|told| told.retry_after).map(|after| after.as_secs_f32()),
        mean: port.pace.mean().map(|mean| mean.as_secs_f32()),
    };
    let note = Note {
        at: ended.now,
        outcome: ended.outcome,
        astray: None,
        port: port.listen,
        client: ended.client,
        connection: ended.connection,
        request: Some(request),
        lasted: ended.lasted().as_secs_f32(),
        waited: ended.waited.as_secs_f32(),
        numbers: numbers(port, ended.counted_as),
    };
    if let Some(unsaid) = port.shared.journal.note(note) {
        say(&note, [0, 0], unsaid);
    }
}

/// The numbers the gate decides by.
fn numbers(port: &Port, client: Option<Client>) -> Numbers {
    let sight = port.gate.sight(client);
    Numbers {
        limit: sight.limit.map(Into::into),
        active: sight.active,
        queued: sight.queued,
        queue_length: sight.queue_length,
        queue_timeout: sight.queue_timeout.as_secs_f32(),
        of_client: sight.of_client,
        per_client_limit: sight.per_client_limit.map(Into::into),
        open: u32::try_from(port.shared.registry.open()).unwrap_or(u32::MAX),
        max_connections: port.shared.max_connections(),
    }
}

/// The line. Every word of a client's in it is shown (`escape`), never as it came.
fn say(note: &Note, bytes: [u64; 2], unsaid: u32) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (outcome, reason) = (note.outcome.label(), note.outcome.class());
    let (port, client) = (note.port, note.client.map(tracing::field::display));
    let suppressed = (unsaid > 0).then_some(unsaid);
    let (connection, seconds, waited) = (note.connection, note.lasted, note.waited);
    match &note.request {
        Some(request) => tracing::debug!(
            id = %request.id.shown(), connection, %port, client,
            method = %request.method.shown(), path = %request.path.shown(),
            outcome, reason, seconds, waited, suppressed, "request ended"
        ),
        None => tracing::debug!(
            connection, %port, client, outcome, reason, seconds, waited,
            bytes_in = bytes[0], bytes_out = bytes[1], suppressed, "connection ended"
        ),
    }
}
