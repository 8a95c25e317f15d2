//! The access log: one JSON line on stdout for every request, and for every connection that carries
//! no HTTP, when it is over.
//!
//! ```text
//! worker threads ──try_send──→ bounded queue ──→ one thread: JSON ──→ stdout
//! ```
//!
//! Always true: nobody who forwards waits for a reader of stdout; lines beyond [`QUEUE`] are dropped,
//! counted, and said to have been; no byte of a client's ends a line or says something in our name.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::escape::Shown;
use crate::outcome::Outcome;

/// Lines that may wait for stdout: some tenths of a second of a busy gateway, at most about 6 MiB.
const QUEUE: usize = 4096;

/// How long the last lines may take at exit.
const FLUSH: Duration = Duration::from_millis(500);

/// What is written at once.
const BATCH: usize = 64 * 1024;

/// Of a path, and of a query, so much is kept.
pub const MOST_PATH: usize = 1024;

/// Of a request's name, and of a method.
pub const MOST_NAME: usize = 128;

/// What a port writes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Wanted {
    /// Nothing.
    #[default]
    Off,
    /// A line for each request, without its query: that is where tokens and names of people are.
    On,
    /// The query too.
    WithQuery,
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// When it was over.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// The listening address it came to.
    pub port: SocketAddr,
    /// Who it was from.
    pub client: Option<SocketAddr>,
    /// The connection, as the list of connections and the log have it.
    pub connection: u64,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2` or `tcp`.
    pub protocol: &'static str,
    /// The request, if it is one.
    #[serde(flatten)]
    pub request: Option<Box<Request>>,
    /// Seconds it waited for a slot.
    #[serde(serialize_with = "seconds")]
    pub wait: Duration,
    /// Seconds from its arrival to its last byte.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// How it ended; `None`: it never asked for a slot.
    #[serde(flatten)]
    pub outcome: Ending,
    /// Bytes of the client's body, or of its connection.
    pub bytes_in: u64,
    /// Bytes of the answer's body, or of the application's connection.
    pub bytes_out: u64,
}

/// What only requests have.
#[derive(Debug, Serialize)]
pub struct Request {
    /// As the client wrote it.
    #[serde(serialize_with = "shown")]
    pub method: Clipped,
    /// Likewise.
    #[serde(serialize_with = "shown")]
    pub path: Clipped,
    /// Only if it is wanted.
    #[serde(serialize_with = "maybe_shown", skip_serializing_if = "Option::is_none")]
    pub query: Option<Clipped>,
    /// What it was answered; 499: its client had left.
    pub status: u16,
    /// `x-request-id`.
    #[serde(serialize_with = "shown")]
    pub request_id: Clipped,
    /// Of the trace it belongs to.
    #[serde(serialize_with = "trace")]
    pub trace_id: Option<[u8; 32]>,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending(pub Option<Outcome>);

/// Bytes of a client's, as many as may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clipped {
    bytes: Box<[u8]>,
    cut: bool,
}

/// The log of one process. Nothing is there until somebody wants it.
#[derive(Debug, Default)]
pub struct Log {
    lines: OnceLock<SyncSender<Line>>,
    dropped: Arc<AtomicU64>,
}

/// What travels to the thread that writes.
enum Line {
    Entry(Box<Entry>),
    /// Answer when everything before this has been written.
    Flush(SyncSender<()>),
}

impl Wanted {
    /// From the word of a [`u8`], as ports keep it.
    pub const fn from_u8(word: u8) -> Self {
        match word {
            1 => Self::On,
            2 => Self::WithQuery,
            _ => Self::Off,
        }
    }
}

impl Clipped {
    /// The first `most` bytes.
    pub fn of(bytes: &[u8], most: usize) -> Self {
        let cut = bytes.len() > most;
        Self { bytes: bytes[..bytes.len().min(most)].into(), cut }
    }

    /// For people.
    pub fn shown(&self) -> Shown<'_> {
        if self.cut { Shown::cut(&self.bytes) } else { Shown::all(&self.bytes) }
    }
}

impl Log {
    /// Lines will come: start the thread that writes them, if it does not run yet.
    pub fn begin(&self) -> io::Result<()> {
        if self.lines.get().is_some() {
            return Ok(());
        }
        let (lines, written) = sync_channel(QUEUE);
        let dropped = self.dropped.clone();
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&written, &dropped, &mut io::stdout()))?;
        // Somebody else may have been quicker: that thread ends when its queue is dropped.
        let _ = self.lines.set(lines);
        Ok(())
    }

    /// One line more, unless there are too many.
    pub fn write(&self, entry: Box<Entry>) {
        let sent = self.lines.get().is_some_and(|lines| lines.try_send(Line::Entry(entry)).is_ok());
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Wait for the last lines, but not for ever.
    pub fn flush(&self) {
        let Some(lines) = self.lines.get() else { return };
        let (done, written) = sync_channel(1);
        // If the queue is full, nobody reads stdout, and there is nothing to wait for.
        if lines.try_send(Line::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

/// Write what comes, as much as has come at once; and what did not come is told, too.
fn write_lines(lines: &Receiver<Line>, dropped: &AtomicU64, out: &mut impl Write) {
    let mut batch = Vec::new();
    let mut told = 0;
    for first in lines {
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            let _ = writeln!(
                batch,
                r#"{{"time":"{}","dropped":{},"message":"lines were dropped: stdout is not read fast enough"}}"#,
                humantime::format_rfc3339_millis(SystemTime::now()),
                lost - told,
            );
            told = lost;
        }
        let mut next = Some(first);
        while let Some(line) = next {
            match line {
                Line::Entry(entry) => line_of(&entry, &mut batch),
                Line::Flush(done) => {
                    write_out(&mut batch, out);
                    let _ = done.try_send(());
                }
            }
            next = if batch.len() < BATCH { lines.try_recv().ok() } else { None };
        }
        write_out(&mut batch, out);
    }
}

fn write_out(batch: &mut Vec<u8>, out: &mut impl Write) {
    // With stdout gone there is nobody to tell.
    let _ = out.write_all(batch).and_then(|()| out.flush());
    batch.clear();
}

/// One entry as it is written.
fn line_of(entry: &Entry, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, entry)
        .expect("every field can be JSON, and memory is written to");
    out.push(b'\n');
}

impl Serialize for Ending {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Words {
            outcome: &'static str,
            reason: Option<&'static str>,
        }
        let outcome = self.0.map_or("not_served", Outcome::label);
        let reason = self.0.and_then(Outcome::reason).map(|reason| reason.label());
        Words { outcome, reason }.serialize(serializer)
    }
}

fn shown<S: Serializer>(text: &Clipped, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&text.shown())
}

fn maybe_shown<S: Serializer>(text: &Option<Clipped>, serializer: S) -> Result<S::Ok, S::Error> {
    match text {
        Some(text) => shown(text, serializer),
        None => serializer.serialize_none(),
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time) as &dyn Display)
}

/// To the microsecond: more would be noise.
fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1e6)
}

fn trace<S: Serializer>(id: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(digits) => serializer.collect_str(&Shown::all(digits)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::escape::hidden;
    use crate::outcome::Reason;

    fn entry(method: &[u8], path: &[u8], query: Option<&[u8]>, id: &[u8]) -> Entry {
        let request = Request {
            method: Clipped::of(method, MOST_NAME),
            path: Clipped::of(path, MOST_PATH),
            query: query.map(|query| Clipped::of(query, MOST_PATH)),
            status: 503,
            request_id: Clipped::of(id, MOST_NAME),
            trace_id: Some(*b"0af7651916cd43dd8448eb211c80319c"),
        };
        Entry {
            time: SystemTime::UNIX_EPOCH,
            port: SocketAddr::from(([127, 0, 0, 1], 8000)),
            client: None,
            connection: 7,
            protocol: "HTTP/1.1",
            request: Some(Box::new(request)),
            wait: Duration::from_millis(3),
            duration: Duration::from_micros(1_234_567),
            outcome: Ending(Some(Outcome::Refused(Reason::QueueFull))),
            bytes_in: 1,
            bytes_out: 2,
        }
    }

    fn written(entry: &Entry) -> String {
        let mut line = Vec::new();
        line_of(entry, &mut line);
        String::from_utf8(line).expect("JSON is UTF-8")
    }

    #[test]
    fn a_line_says_everything() {
        let line = written(&entry(b"GET", b"/a", None, b"id"));
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:00.000Z","port":"127.0.0.1:8000","client":null,"connection":7,"#,
            r#""protocol":"HTTP/1.1","method":"GET","path":"/a","status":503,"request_id":"id","#,
            r#""trace_id":"0af7651916cd43dd8448eb211c80319c","wait":0.003,"duration":1.234567,"#,
            r#""outcome":"refused","reason":"queue_full","bytes_in":1,"bytes_out":2}"#,
            "\n"
        );
        assert_eq!(line, expected);
        let tcp = Entry { request: None, protocol: "tcp", ..entry(b"", b"", None, b"") };
        let tcp: Value = serde_json::from_str(&written(&tcp)).expect("JSON");
        assert_eq!((&tcp["protocol"], tcp.get("path")), (&"tcp".into(), None));
    }

    #[test]
    fn what_is_too_long_is_cut_and_looks_so() {
        let line = written(&entry(b"GET", &[b'x'; 4 * MOST_PATH], None, b"id"));
        let value: Value = serde_json::from_str(&line).expect("JSON");
        let path = value["path"].as_str().expect("text");
        assert!(path.ends_with("x…") && path.chars().count() == MOST_PATH + 1);
    }

    proptest! {
        /// No byte sequence in what clients send ends a line or makes up a field.
        #[test]
        fn a_client_cannot_forge_a_line(
            method: Vec<u8>, path: Vec<u8>, query: Option<Vec<u8>>, id: Vec<u8>,
            line in prop::sample::select(vec!["", "\n{\"status\":200}\n", "\"},{\"", "\u{2028}\r\n\x1b[2J"]),
        ) {
            let path = [&path[..], line.as_bytes()].concat();
            let text = written(&entry(&method, &path, query.as_deref(), &id));
            let plain = text.strip_suffix('\n').expect("it ends");
            prop_assert!(plain.chars().all(|c| !c.is_control() && c != '\u{2028}'), "{plain:?}");
            let value: Value = serde_json::from_str(plain).expect("JSON");
            let back = |key: &str| value[key].as_str().and_then(hidden);
            prop_assert_eq!(back("method"), Some(method));
            prop_assert_eq!(back("path"), Some(path));
            prop_assert_eq!(back("query"), query);
            prop_assert_eq!(back("request_id"), Some(id));
            prop_assert_eq!(&value["status"], &Value::from(503));
        }
    }

    #[test]
    fn a_stuck_reader_stops_nobody_and_losses_are_told() {
        let (lines, written) = sync_channel(2);
        let log = Log { lines: OnceLock::from(lines), dropped: Arc::default() };
        for _ in 0..10 {
            log.write(Box::new(entry(b"GET", b"/", None, b"id")));
        }
        assert_eq!(log.dropped(), 8);
        let mut out = Vec::new();
        let dropped = log.dropped.clone();
        drop(log);
        write_lines(&written, &dropped, &mut out);
        let out = String::from_utf8(out).expect("UTF-8");
        let lines: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3, "{out}");
        assert_eq!((&lines[0]["dropped"], &lines[1]["path"]), (&8.into(), &"/".into()), "{out}");
    }
}
