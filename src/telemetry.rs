//! Logs: to stderr, as text or JSON, with a level that can change while the gateway runs.
//!
//! ```text
//! worker threads ──try_send──→ bounded queue ──→ one thread ──→ stderr
//! ```
//!
//! Always true: a reader of stderr that has stopped reading stops that one thread and nobody else.
//! Lines beyond [`QUEUE`] are dropped, counted, and said to have been. What is logged at once is one
//! line, whatever is in it. Spans of the control plane go to a layer of their own, if traces are
//! collected ([`control`]), and never into the log.

pub mod control;
mod dial;
pub mod export;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Lines that may wait for stderr: a burst of a second or so, at most about 1 MiB.
const QUEUE: usize = 4096;

/// How long the last lines may take at exit.
const FLUSH: Duration = Duration::from_millis(500);

/// How logs look and how much is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// A level, or a filter such as `info,tidegate=debug`.
    pub level: String,
}

/// Logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The level is none.
    #[error("the log level cannot be understood: {0}")]
    Level(#[from] ParseError),
    /// Logging has begun already.
    #[error("logging has been started twice")]
    Twice(#[from] TryInitError),
    /// No thread for it.
    #[error("the thread that writes logs cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// Logging that has begun. Dropping it waits for the last lines, but not for ever.
pub struct Telemetry {
    level: Level,
    /// Where spans are handed in, if they are collected.
    traces: Option<export::Queue>,
    flush: SyncSender<Line>,
}

/// The handle to change the level, and to ask what was lost.
#[derive(Clone)]
pub struct Level {
    filter: reload::Handle<Targets, Registry>,
    dropped: Arc<AtomicU64>,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Plain,
    /// With colours: stderr is a terminal.
    Coloured,
}

/// What travels to the thread that writes.
enum Line {
    Text(Vec<u8>),
    /// Answer when everything before this has been written.
    Flush(SyncSender<()>),
}

#[derive(Clone)]
struct Queue {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
    form: Form,
}

/// One line being formatted; on its way when dropped.
struct Draft {
    queue: Queue,
    text: Vec<u8>,
}

/// Begin to log, and if `traced` to keep the spans of the control plane for the exporter.
pub fn start(config: &Config, traced: bool) -> Result<Telemetry, StartError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let (lines, written) = sync_channel(QUEUE);
    let form = match (config.json, io::stderr().is_terminal()) {
        (true, _) => Form::Json,
        (false, false) => Form::Plain,
        (false, true) => Form::Coloured,
    };
    let queue = Queue { lines, dropped: Arc::default(), form };
    let flush = queue.lines.clone();
    let dropped = queue.dropped.clone();
    let level = Level { filter: handle, dropped: dropped.clone() };
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&written, &dropped, form, &mut io::stderr()))?;

    let logs = tracing_subscriber::registry().with(queue.layer().with_filter(filter));
    let traces = traced.then(export::Queue::new);
    // Not a layer that may be none: that would make every word that is not logged be asked for anew.
    match traces.clone() {
        Some(queue) => logs.with(control::layer(queue)).try_init()?,
        None => logs.try_init()?,
    }
    Ok(Telemetry { level, traces, flush })
}

/// What is logged. The spans of the control plane are not: the log has lines of its own about it.
fn filter(level: &str) -> Result<Targets, ParseError> {
    Ok(level.parse::<Targets>()?.with_target(control::TARGET, LevelFilter::OFF))
}

impl Telemetry {
    /// The handle to change the level.
    pub fn level(&self) -> Level {
        self.level.clone()
    }

    /// Where spans are handed in, if they are collected.
    pub fn traces(&self) -> Option<export::Queue> {
        self.traces.clone()
    }
}

impl Level {
    /// Log this much from now on.
    pub fn set(&self, directive: &str) -> Result<(), String> {
        let filter = filter(directive).map_err(|error| error.to_string())?;
        self.filter.reload(filter).map_err(|error| error.to_string())
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        // If the queue is full, nobody reads stderr, and there is nothing to wait for.
        if self.flush.try_send(Line::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

fn write_lines(lines: &Receiver<Line>, dropped: &AtomicU64, form: Form, out: &mut impl Write) {
    let mut told = 0;
    for line in lines {
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            let text = say_dropped(lost - told, form);
            told = lost;
            let _ = out.write_all(text.as_bytes());
        }
        match line {
            // With stderr gone there is nobody to tell.
            Line::Text(text) => drop(out.write_all(&text)),
            Line::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// The only line that does not come from the subscriber, in the same form.
fn say_dropped(lost: u64, form: Form) -> String {
    let now = humantime::format_rfc3339_micros(SystemTime::now());
    let text = "lines were dropped: stderr is not read fast enough";
    match form {
        Form::Json => format!(
            "{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"{text}\",\
             \"dropped\":{lost},\"target\":\"tidegate::telemetry\"}}\n"
        ),
        Form::Plain | Form::Coloured => {
            format!("{now}  WARN tidegate::telemetry: {text} dropped={lost}\n")
        }
    }
}

/// What was logged at once, as one line: the subscriber leaves line ends, and more, as they are where
/// something is shown by its `Display`. Only the colours it paints itself may pass.
fn tame(text: &mut Vec<u8>, form: Form) {
    let end = text.len().saturating_sub(1);
    let is_bad = |byte: &u8| byte.is_ascii_control() || *byte >= 0x80;
    if !text[..end].iter().any(is_bad) {
        return;
    }
    let raw = String::from_utf8_lossy(&text[..end]).into_owned();
    let mut tamed = String::with_capacity(raw.len() + 16);
    let mut rest = raw.as_str();
    while let Some(c) = rest.chars().next() {
        let colour = if form == Form::Coloured { colour(rest) } else { 0 };
        let length = colour.max(c.len_utf8());
        match c {
            _ if colour > 0 => tamed.push_str(&rest[..colour]),
            '\'' | '"' | '\\' => tamed.push(c),
            // The encoder has seen to the rest of the control characters; these end lines for some.
            _ if form == Form::Json && c.escape_debug().count() > 1 => {
                let mut pair = [0; 2];
                let units = c.encode_utf16(&mut pair).iter().map(|unit| format!("\\u{unit:04x}"));
                tamed.extend(units);
            }
            _ => tamed.extend(c.escape_debug()),
        }
        rest = &rest[length..];
    }
    tamed.push('\n');
    *text = tamed.into_bytes();
}

/// How long the colour is that `text` begins with: ESC, `[`, numbers, `m`.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\x1b[") else { return 0 };
    match rest.find(|c: char| !c.is_ascii_digit() && c != ';') {
        Some(at) if rest[at..].starts_with('m') => at + 3,
        _ => 0,
    }
}

impl Queue {
    /// The layer that makes lines and puts them here.
    fn layer<S>(self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        let form = self.form;
        let output = fmt::layer().with_writer(self).with_ansi(form == Form::Coloured);
        match form {
            Form::Json => output.json().flatten_event(true).boxed(),
            Form::Plain | Form::Coloured => output.boxed(),
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Draft;

    fn make_writer(&'a self) -> Draft {
        Draft { queue: self.clone(), text: Vec::with_capacity(256) }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        tame(&mut text, self.queue.form);
        let line = Line::Text(text);
        match self.queue.lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.queue.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hands out each line when it is asked to.
    struct Stuck(Receiver<()>, Vec<u8>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().expect("the test lets it go on");
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_log_never_sees_the_spans_of_the_control_plane() {
        for level in ["info", "trace", "off,tidegate::control=trace"] {
            let filter = filter(level).expect("a level");
            assert!(!filter.would_enable(control::TARGET, &tracing::Level::INFO), "{level}");
        }
        assert!(filter("info").expect("a level").would_enable("tidegate", &tracing::Level::INFO));
    }

    #[test]
    fn a_stuck_reader_stops_nobody_and_losses_are_told() {
        let (lines, written) = sync_channel(2);
        let queue = Queue { lines, dropped: Arc::default(), form: Form::Plain };
        let dropped = queue.dropped.clone();
        for _ in 0..10 {
            queue.make_writer().write_all(b"line\n").expect("never blocks");
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 8);
        drop(queue);

        let form = Form::Plain;
        let (go_on, gate) = sync_channel(16);
        (0..16).for_each(|_| go_on.send(()).expect("room"));
        let mut out = Stuck(gate, Vec::new());
        write_lines(&written, &dropped, form, &mut out);
        let text = String::from_utf8(out.1).expect("text");
        let first = text.lines().next().expect("a line");
        assert!(first.contains("lines were dropped") && first.ends_with("dropped=8"), "{text}");
        assert!(text.ends_with("line\nline\n"), "{text}");
        let json = say_dropped(8, Form::Json);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["dropped"], 8);
    }

    /// What is logged under a subscriber of that form.
    fn logged(form: Form, log: impl FnOnce()) -> String {
        let (lines, written) = sync_channel(16);
        let queue = Queue { lines, dropped: Arc::default(), form };
        let subscriber = tracing_subscriber::registry().with(queue.layer());
        tracing::subscriber::with_default(subscriber, log);
        let mut out = Vec::new();
        write_lines(&written, &AtomicU64::new(0), form, &mut out);
        String::from_utf8(out).expect("text")
    }

    proptest! {
        /// Nothing that is logged, by whatever way, is more than one line, moves a cursor or is lost
        /// in JSON.
        #[test]
        fn nobody_forges_a_line(
            strange: String,
            more in prop::sample::select(vec!["", "\n2026-01-01T00:00:00Z  INFO tidegate: all is well", "\r\x1b[2K", "\u{2028}\u{9b}1m\u{202e}"]),
        ) {
            let strange = strange + more;
            let log = || tracing::error!(shown = %strange, debugged = ?strange, text = strange.as_str(), "said {strange}");
            for form in [Form::Plain, Form::Coloured] {
                let text = logged(form, log);
                let line = text.strip_suffix('\n').expect("it ends");
                let bad = |c: char| {
                    c.is_control() && !(form == Form::Coloured && c == '\x1b') || "\u{2028}\u{202e}".contains(c)
                };
                prop_assert!(!line.contains(bad), "{form:?}: {line:?}");
                let escapes = line.match_indices('\x1b').map(|(at, _)| colour(&line[at..]));
                prop_assert!(escapes.into_iter().all(|length| length > 0), "{line:?}");
            }
            let text = logged(Form::Json, log);
            let line = text.strip_suffix('\n').expect("it ends");
            prop_assert!(!line.contains(|c: char| c.is_control() || "\u{2028}\u{202e}".contains(c)), "{line:?}");
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            prop_assert_eq!(value["shown"].as_str(), Some(&*strange));
            prop_assert_eq!(value["text"].as_str(), Some(&*strange));
            prop_assert_eq!(value["message"].as_str(), Some(&*format!("said {strange}")));
        }
    }
}
