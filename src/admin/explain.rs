//! Why was this refused? What the journal knows, in plain sentences with the numbers in them and what
//! to do about it, and the same as JSON.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::escape::Shown;
use crate::journal::{Found, Journal, Note, Numbers, Reaches};
use crate::outcome::{Fault, Outcome, Reason};

/// How many are listed when nobody says how many, and at most.
const LISTED: [usize; 2] = [20, 1000];

/// What is known under `name`, or why nothing may be.
pub(super) fn explain(journal: &Journal, name: &str) -> Result<Value, Value> {
    let now = Instant::now();
    let Some(Found { note, of_that_name }) = journal.find(name) else {
        return Err(json!({ "known": false, "mistakes": unknown(journal, name, now) }));
    };
    let mut known = facts(journal, &note, now);
    known["known"] = true.into();
    known["of_that_name"] = of_that_name.into();
    let mut sentences = vec![what(journal, &note, now), why(&note)];
    sentences.extend(told(&note));
    sentences.extend(pace(&note));
    if of_that_name > 1 {
        sentences.push(format!(
            "There are {of_that_name} of that name here; this is the most recent. A client may choose x-request-id as it likes."
        ));
    }
    known["sentences"] = sentences.into();
    known["advice"] = advice(&note).into();
    Ok(known)
}

/// The last refusals, newest first. `query`: `last=N`.
pub(super) fn recent(journal: &Journal, query: Option<&str>) -> Value {
    let said = query.and_then(|query| query.strip_prefix("last=")?.parse().ok());
    let now = Instant::now();
    let notes = journal.last(said.unwrap_or(LISTED[0]).min(LISTED[1]));
    let recent: Vec<_> = notes.iter().map(|note| facts(journal, note, now)).collect();
    json!({ "recent": recent, "noted": journal.reach().noted })
}

/// The last part of a path, as it was before it was made one.
pub(super) fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let escaped = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match escaped.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn facts(journal: &Journal, note: &Note, now: Instant) -> Value {
    let Numbers { limit, active, queued, queue_length, queue_timeout, .. } = note.numbers;
    let request = note.request.as_ref().map(|request| {
        let maybe = |text: String| if text.is_empty() { Value::Null } else { text.into() };
        json!({
            "id": request.id.shown().to_string(),
            "method": maybe(request.method.shown().to_string()),
            "path": maybe(request.path.shown().to_string()),
            "deadline_seconds": request.deadline.map(rounded),
            "status": (request.status > 0).then_some(request.status),
            "grpc_status": request.grpc_status,
            "retry_after_seconds": request.retry_after.map(rounded),
            "mean_seconds": request.mean.map(rounded),
        })
    });
    json!({
        "at": humantime::format_rfc3339_millis(journal.time(note.at)).to_string(),
        "seconds_ago": rounded(ago(note, now).as_secs_f32()),
        "outcome": note.outcome.label(),
        "reason": note.outcome.reason().map(Reason::label),
        "fault": fault(note.outcome),
        "port": note.port.to_string(),
        "client": note.client.map(|client| client.to_string()),
        "connection": note.connection,
        "request": request,
        "lasted_seconds": rounded(note.lasted),
        "waited_seconds": rounded(note.waited),
        "limit": limit,
        "active": active,
        "queued": queued,
        "queue_length": queue_length,
        "queue_timeout_seconds": rounded(queue_timeout),
        "of_this_client": note.numbers.of_client,
        "per_client_limit": note.numbers.per_client_limit,
        "open_connections": note.numbers.open,
        "max_connections": note.numbers.max_connections,
    })
}

fn fault(outcome: Outcome) -> &'static str {
    match outcome.fault() {
        Fault::Nobody => "nobody",
        Fault::Client => "client",
        Fault::Application => "application",
        Fault::Gateway => "gateway",
    }
}

fn ago(note: &Note, now: Instant) -> Duration {
    now.saturating_duration_since(note.at)
}

/// To the microsecond.
fn rounded(seconds: f32) -> f64 {
    (f64::from(seconds) * 1e6).round() / 1e6
}

/// A time for people: `350 ms`, `2 s`, `1.5 s`.
fn time(seconds: f32) -> String {
    match seconds {
        s if s < 0.001 => format!("{} ms", (s * 1e5).round() / 100.0),
        s if s < 1.0 => format!("{} ms", (s * 1e4).round() / 10.0),
        s if s < 120.0 => format!("{} s", (s * 100.0).round() / 100.0),
        s => humantime::format_duration(Duration::from_secs(s as u64)).to_string(),
    }
}

/// Who, when and where.
fn what(journal: &Journal, note: &Note, now: Instant) -> String {
    let from = note.client.map_or("an unknown client".to_owned(), |client| client.to_string());
    let mut text = match &note.request {
        Some(request) => {
            let head = [request.method.shown().to_string(), request.path.shown().to_string()];
            let head = head.join(" ");
            let head = head.trim();
            let head = if head.is_empty() { String::new() } else { format!("({head}) ") };
            let id = match request.id.bytes() {
                [] => String::new(),
                _ => format!("{} ", request.id.shown()),
            };
            format!("Request {id}{head}from {from}, on connection {},", note.connection)
        }
        None => format!("Connection {} from {from}", note.connection),
    };
    let verdict = match note.outcome {
        Outcome::Refused(Reason::ClientGone) => "left the queue".to_owned(),
        Outcome::Refused(reason) => format!("was refused ({})", reason.label()),
        other => format!("was let in and broke off ({})", other.label()),
    };
    let at = humantime::format_rfc3339_millis(journal.time(note.at));
    let ago = time(ago(note, now).as_secs_f32());
    let _ = write!(text, " {verdict} on port {} at {at}, {ago} ago.", note.port);
    text
}

/// How full the port was.
fn fullness(numbers: &Numbers) -> String {
    let Numbers { limit, active, queued, queue_length, .. } = numbers;
    match limit {
        Some(limit) => format!(
            "{active} of {limit} slots were taken and {queued} of {queue_length} places in the queue"
        ),
        None => format!("{active} were at the application, and no limit was in force"),
    }
}

/// The decision and its numbers.
fn why(note: &Note) -> String {
    let n = &note.numbers;
    let (waited, lasted, full) = (time(note.waited), time(note.lasted), fullness(n));
    if let Some(astray) = note.astray {
        return format!("It asked for no slot: {}.", astray.why());
    }
    match note.outcome {
        Outcome::Refused(reason) => match reason {
            Reason::LimitReached => {
                format!("The port was at its limit, and has no queue (queue-length is 0): {full}.")
            }
            Reason::QueueFull => {
                format!("The port was at its limit and its queue was full: {full}.")
            }
            Reason::QueueTimeout => format!(
                "It waited {waited}; queue-timeout ({}) ended that before a slot came free. Then {full}.",
                time(n.queue_timeout)
            ),
            Reason::ClientGone => {
                format!(
                    "Its client left after {waited} in the queue; nobody sent it away. Then {full}."
                )
            }
            Reason::Draining => {
                "The gateway was going away, and served only what it already had.".to_owned()
            }
            Reason::PerClientLimit => format!(
                "This client had {} active and waiting, and one may have {}. On the whole port {full}.",
                n.of_client.unwrap_or_default(),
                n.per_client_limit.unwrap_or_default()
            ),
            Reason::DeadlineUnmeetable => deadline(note),
            Reason::MaxConnections => format!(
                "The gateway held {} connections and may hold {} (max-connections), or it had no file descriptor left.",
                n.open, n.max_connections
            ),
            Reason::Loop => {
                "The application's address leads back to the gateway itself.".to_owned()
            }
            Reason::UpstreamRefused => format!(
                "It had a slot after {waited}, but the application refused the connection or could not be reached."
            ),
            Reason::UpstreamTimeout => format!(
                "It had a slot after {waited}, but the application did not accept a connection within connect-timeout."
            ),
            Reason::Abandoned => {
                "Its client had left, and the application did not finish within abandon-timeout."
                    .to_owned()
            }
            Reason::NotServed => not_served(note),
        },
        Outcome::ClientReset => {
            format!("It had a slot after {waited}; its client broke off after {lasted}.")
        }
        Outcome::AppReset => {
            format!("It had a slot after {waited}; the application broke off after {lasted}.")
        }
        Outcome::IdleTimeout => {
            format!("Nothing moved for idle-timeout; it was closed after {lasted}.")
        }
        Outcome::ClientStalled => format!(
            "Its client did not take, or did not send, for too long; it was ended after {lasted}."
        ),
        Outcome::AppStalled => format!(
            "The application took nothing for write-stall-timeout; it was ended after {lasted}."
        ),
        Outcome::Abandoned => format!(
            "Its client had left, and the application did not finish within abandon-timeout; it was reset after {lasted}."
        ),
        Outcome::Cut => {
            format!("It was still open when the drain had to end, and was cut after {lasted}.")
        }
        Outcome::Failed => {
            "The gateway failed: a bug, or the machine is out of something. Its log says more."
                .to_owned()
        }
        Outcome::Served => format!("It was served in {lasted}."),
    }
}

fn not_served(note: &Note) -> String {
    let told = note.request.as_ref().map_or(0, |request| request.status);
    // What has been heard as a whole has an id.
    let heard = note.request.as_ref().is_some_and(|request| !request.id.bytes().is_empty());
    let why = match told {
        405 => "CONNECT asks for a way to another host, and this is not a proxy for those",
        408 => "its head had not come to its end within header-timeout",
        414 => "its path is longer than 65534 bytes",
        431 => "its head is longer than max-header-bytes, or has more than 100 fields",
        _ if heard => {
            "a request says by one Host header whom it is for, and this one has none or several"
        }
        _ => "its head cannot be read as HTTP/1.1",
    };
    format!("It never asked for a slot, whatever the port had: {why}.")
}

fn deadline(note: &Note) -> String {
    let full = fullness(&note.numbers);
    let wish = note.request.as_ref().and_then(|request| request.deadline);
    let wish =
        wish.map_or("its deadline".to_owned(), |wish| format!("its deadline of {}", time(wish)));
    if note.waited > 0.0 {
        format!("It waited {}, and {wish} came first. Then {full}.", time(note.waited))
    } else {
        format!(
            "It could not have been answered before {wish}, so it was not made to wait: {full}."
        )
    }
}

/// What the client saw.
fn told(note: &Note) -> Option<String> {
    let Outcome::Refused(reason) = note.outcome else { return None };
    let Some(request) = &note.request else {
        return (reason != Reason::ClientGone)
            .then(|| "Its connection was ended as tcp-refuse says.".to_owned());
    };
    if request.status == 0 {
        return None;
    }
    let mut text = format!("The client was told {}", request.status);
    if let Some(grpc) = request.grpc_status {
        let _ = write!(text, " with grpc-status {grpc}");
    }
    match request.retry_after {
        Some(0.0) => text += ", and to come again at once, to another instance",
        Some(after) => {
            let _ = write!(text, ", and to come again after {}", time(after));
        }
        None => {}
    }
    Some(text + ".")
}

/// What the application can do.
fn pace(note: &Note) -> Option<String> {
    if note.outcome == Outcome::Refused(Reason::NotServed) {
        return None;
    }
    let mean = note.request.as_ref()?.mean?;
    let limit = note.numbers.limit?;
    let rate = (limit as f32 / mean.max(1e-6) * 10.0).round() / 10.0;
    Some(format!(
        "A request took {} at the application of late, so {limit} at once are about {rate} a second.",
        time(mean)
    ))
}

/// What to do about it.
fn advice(note: &Note) -> Vec<String> {
    let port = note.port.port();
    let limit = note.numbers.limit.unwrap_or_default();
    let raise = format!(
        "If the application can carry more than {limit} at once, raise the limit: tidegate set limit.{port}={}",
        (limit + limit / 2).max(limit + 1)
    );
    let enough = "If it cannot, this is more traffic than it carries: add instances, or let clients come less often.";
    let longer = format!(
        "If it comes in short bursts, let more wait: tidegate set queue-length.{port}={}",
        (note.numbers.queue_length * 2).max(16)
    );
    let one = |text: &str| vec![text.to_owned()];
    if note.astray.is_some() {
        return match note.outcome {
            Outcome::Refused(Reason::UpstreamRefused) => one(
                "Nothing, if somebody looks for open ports. Else: is the application running, and does it listen on that port?",
            ),
            _ => one(
                "Nothing, if it was a stranger. Which connections are redirected says tidegate capture check.",
            ),
        };
    }
    match note.outcome {
        Outcome::Refused(Reason::LimitReached | Reason::QueueFull) => {
            vec![raise, longer, enough.to_owned()]
        }
        Outcome::Refused(Reason::QueueTimeout) => vec![
            raise,
            format!(
                "If clients are willing to wait longer: tidegate set queue-timeout.{port}={}ms",
                (note.numbers.queue_timeout * 2000.0).ceil()
            ),
            "If they are not, a shorter queue tells those at once who would wait in vain."
                .to_owned(),
            enough.to_owned(),
        ],
        Outcome::Refused(Reason::ClientGone) => vec![format!(
            "If its client has a timeout of its own, a queue-timeout below it (now {}) tells the client why.",
            time(note.numbers.queue_timeout)
        )],
        Outcome::Refused(Reason::Draining) => one(
            "Nothing, if clients come again and reach another instance. If many see this, raise drain-delay.",
        ),
        Outcome::Refused(Reason::PerClientLimit) => vec![format!(
            "Let this client do less at once. If many share this address (a proxy, NAT), raise the cap: tidegate set per-client-limit.{port}={}",
            note.numbers.per_client_limit.unwrap_or_default() * 2
        )],
        Outcome::Refused(Reason::DeadlineUnmeetable) => {
            vec![raise, "Or let clients wait longer: the deadline is theirs.".to_owned()]
        }
        Outcome::Refused(Reason::MaxConnections) => one(
            "Raise the limit on open files (ulimit -n), and max-connections if it is set; see tidegate doctor.",
        ),
        Outcome::Refused(Reason::Loop) => {
            one("Give the application's own address after = in --listen.")
        }
        Outcome::Refused(Reason::UpstreamRefused) => one(
            "Is the application running, and does it listen where it is dialled? Its own log may know.",
        ),
        Outcome::Refused(Reason::UpstreamTimeout) => one(
            "The application does not accept: it hangs, or its backlog is full. Its own log may know; a lower limit may help.",
        ),
        Outcome::Refused(Reason::NotServed) => {
            one("Nothing here: whoever wrote the client has to mend it. It may also be a scanner.")
        }
        Outcome::AppReset | Outcome::AppStalled => {
            one("Ask the application: it ended or took nothing in the middle.")
        }
        Outcome::Abandoned | Outcome::Refused(Reason::Abandoned) => one(
            "The application goes on when its clients have left; abandon-timeout bounds how long that holds a slot.",
        ),
        Outcome::Cut => one("Give the drain more time: a longer grace, or a shorter drain-delay."),
        Outcome::ClientReset | Outcome::ClientStalled | Outcome::IdleTimeout => {
            one("Nothing here, unless many do so.")
        }
        Outcome::Failed | Outcome::Served => Vec::new(),
    }
}

/// Why there may be nothing under that name.
fn unknown(journal: &Journal, name: &str, now: Instant) -> Vec<String> {
    let reach = journal.reach();
    let begun = humantime::format_rfc3339_seconds(reach.begun);
    let mut reasons = vec![
        format!("nothing is known of {}. That may be because", Shown::all(name.as_bytes())),
        "  it was served: only what was refused or broke off is written down".to_owned(),
        format!("  it came before this gateway started, at {begun}, or to another one"),
        "  its head could not be read: it has no id, and is known by its connection's number"
            .to_owned(),
    ];
    reasons.push(match reach.reaches {
        Reaches::Everything if reach.noted == 0 => {
            "  (nothing has been refused or broken off here since then)".to_owned()
        }
        Reaches::Everything => {
            "  (it is not too old: all that was refused or broken off since then is still here)"
                .to_owned()
        }
        Reaches::Since(since) => {
            let ago = time(now.saturating_duration_since(since).as_secs_f32());
            format!(
                "  it came more than {ago} ago: there have been so many since that of the time before only some are still here"
            )
        }
    });
    reasons.push(
        "the last refusals are listed by tidegate explain; ids are also in the x-request-id of every answer"
            .to_owned(),
    );
    reasons
}

/// What was explained, for a terminal. It is made from the JSON, so that a program of one version can
/// show what a gateway of another knows.
pub fn plain(known: &Value) -> String {
    let lines = |key: &str| known[key].as_array().cloned().unwrap_or_default();
    let mut out = String::new();
    for sentence in lines("sentences") {
        let _ = writeln!(out, "{}", word(&sentence));
    }
    if !lines("advice").is_empty() {
        out += "\nWhat to do:\n";
    }
    for advice in lines("advice") {
        let _ = writeln!(out, "- {}", word(&advice));
    }
    out
}

/// The list of the last refusals, for a terminal.
pub fn list(known: &Value) -> String {
    let recent = known["recent"].as_array().map(Vec::as_slice).unwrap_or_default();
    if recent.is_empty() {
        return "nothing has been refused yet\n".to_owned();
    }
    let mut rows = vec![["AT", "PORT", "CLIENT", "REASON", "WAITED", "ID"].map(str::to_owned)];
    rows.extend(recent.iter().map(|note| {
        let waited = note["waited_seconds"].as_f64().unwrap_or_default();
        let id = &note["request"]["id"];
        [
            word(&note["at"]),
            word(&note["port"]),
            word(&note["client"]),
            word(&note["reason"]),
            time(waited as f32),
            word(if id.is_null() { &note["connection"] } else { id }),
        ]
    }));
    let mut out = String::new();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}
