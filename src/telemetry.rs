//! Logs: to stderr, as text or JSON, with a level that can change while the gateway runs.
//!
//! ```text
//! worker threads ──try_send──→ bounded queue ──→ one thread ──→ stderr
//! ```
//!
//! Always true: a reader of stderr that has stopped reading stops that one thread and nobody else.
//! Lines beyond [`QUEUE`] are dropped, counted, and said to have been. Spans of the control plane go to a
//! layer of their own, if traces are collected ([`control`]), and never into the log.

pub mod control;
pub mod export;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

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

/// The handle to change the level.
#[derive(Clone)]
pub struct Level(reload::Handle<Targets, Registry>);

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
    let queue = Queue { lines, dropped: Arc::default() };
    let flush = queue.lines.clone();
    let dropped = queue.dropped.clone();
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write_lines(&written, &dropped, &mut io::stderr()))?;

    let output = fmt::layer().with_writer(queue).with_ansi(io::stderr().is_terminal());
    let output =
        if config.json { output.json().flatten_event(true).boxed() } else { output.boxed() };
    let logs = tracing_subscriber::registry().with(output.with_filter(filter));
    let traces = traced.then(export::Queue::new);
    // Not a layer that may be none: that would make every word that is not logged be asked for anew.
    match traces.clone() {
        Some(queue) => logs.with(control::layer(queue)).try_init()?,
        None => logs.try_init()?,
    }
    Ok(Telemetry { level: Level(handle), traces, flush })
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
        self.0.reload(filter).map_err(|error| error.to_string())
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

fn write_lines(lines: &Receiver<Line>, dropped: &AtomicU64, out: &mut impl Write) {
    for line in lines {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} log lines were dropped: stderr is not read fast enough");
        }
        match line {
            // With stderr gone there is nobody to tell.
            Line::Text(text) => drop(out.write_all(&text)),
            Line::Flush(done) => drop(done.try_send(())),
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
        let line = Line::Text(std::mem::take(&mut self.text));
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
        let queue = Queue { lines, dropped: Arc::default() };
        let dropped = queue.dropped.clone();
        for _ in 0..10 {
            queue.make_writer().write_all(b"line\n").expect("never blocks");
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 8);
        drop(queue);

        let (go_on, gate) = sync_channel(16);
        (0..16).for_each(|_| go_on.send(()).expect("room"));
        let mut out = Stuck(gate, Vec::new());
        write_lines(&written, &dropped, &mut out);
        let text = String::from_utf8(out.1).expect("text");
        assert!(text.starts_with("8 log lines were dropped"), "{text}");
        assert!(text.ends_with("line\nline\n"), "{text}");
    }
}
