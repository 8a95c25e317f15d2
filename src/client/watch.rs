//! `tidegate status --watch`: the sister of the page on the admin address. On a terminal it is redrawn
//! in place, with small plots; on a pipe every look is a line for each thing there is to say.
//!
//! Always true: no line is longer than the terminal is wide, and there are no more lines than it has;
//! where there is no UTF-8 there is nothing but ASCII.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::admin::story::{self, Story, Tone, duration, grouped, rate, visible};

/// What the output can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// It is a terminal on which lines can be written again.
    pub terminal: bool,
    /// It shows more than ASCII.
    pub unicode: bool,
    /// It shows colours, and they are wanted.
    pub colours: bool,
    /// Columns and rows, if it is a terminal.
    pub size: (usize, usize),
}

/// Terminals have 80 columns and 24 rows unless they say otherwise.
const USUAL: (usize, usize) = (80, 24);

/// What a plot shows, and how many seconds are one sign of it: the highest of them.
const SECONDS: usize = 172;
const EACH: usize = 4;

/// Of the names and of the numbers beside the plots.
const NAME: usize = 9;
const NUMBERS: usize = 22;

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One look.
struct Look<'a> {
    status: &'a Value,
    screen: &'a Screen,
    lines: Vec<String>,
}

impl Screen {
    /// What stdout can show, by what the environment says.
    pub fn new<K, V>(terminal: bool, environment: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<std::ffi::OsStr>,
        V: AsRef<std::ffi::OsStr>,
    {
        let wanted = ["TERM", "NO_COLOR", "LC_ALL", "LC_CTYPE", "LANG"];
        let mut set: [Option<String>; 5] = Default::default();
        for (name, value) in environment {
            if let Some(at) = wanted.iter().position(|wanted| name.as_ref() == *wanted) {
                set[at] = value.as_ref().to_str().map(str::to_owned).filter(|v| !v.is_empty());
            }
        }
        let [term, no_color, locale @ ..] = set;
        let terminal = terminal && term.is_none_or(|term| term != "dumb");
        // The first of the three that says something holds (POSIX, chapter 8.2).
        let locale = locale.into_iter().flatten().next().unwrap_or_default().to_ascii_lowercase();
        let unicode = locale.contains("utf-8") || locale.contains("utf8");
        Self { terminal, unicode, colours: terminal && no_color.is_none(), size: USUAL }
    }

    /// The same, as large as the terminal is now.
    pub(super) fn measured(self) -> Self {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        Self {
            size: size.filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or(USUAL),
            ..self
        }
    }

    fn paint(&self, tone: Tone, text: &str) -> String {
        let colour = match tone {
            Tone::Bad => 31,
            Tone::Busy => 33,
            Tone::Open => 36,
            Tone::Calm => 32,
        };
        if self.colours { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// What to write for one look, with what moves the cursor. `problem`: the status is an old one.
pub(super) fn frame(
    status: &Value,
    problem: Option<&str>,
    screen: &Screen,
    now: SystemTime,
) -> String {
    let mut look = Look { status, screen, lines: Vec::new() };
    if let Some(problem) = problem {
        // A problem can have several lines; here it is one.
        let problem: Vec<_> = problem.split_whitespace().collect();
        let problem = format!("{} no answer: {}", clock(now), visible(&problem.join(" ")));
        look.say(Tone::Bad, &problem);
    }
    if !screen.terminal {
        look.log(problem.is_some(), now);
        return look.lines.iter().fold(String::new(), |all, line| all + line + "\n");
    }
    look.screenful(now);
    look.lines.truncate(screen.size.1.saturating_sub(1));
    // Home; each line wipes what is left of the one before; the last wipes what is below.
    let lines = look.lines.iter().fold("\x1b[H".to_owned(), |all, line| all + line + "\x1b[K\n");
    lines + "\x1b[J"
}

impl Look<'_> {
    /// A line for each thing there is to say.
    fn log(&mut self, old: bool, now: SystemTime) {
        if old {
            return;
        }
        for story in self.stories() {
            let line = self.plain(&format!("{} {}", clock(now), story.sentence()));
            self.lines.push(line);
        }
    }

    fn screenful(&mut self, now: SystemTime) {
        if self.status.is_null() {
            return;
        }
        let status = self.status;
        let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), visible);
        self.line(&format!(
            "{}  tidegate {}, {}, {}, up {}, {} connections",
            clock(now),
            text(&status["version"]),
            text(&status["phase"]),
            text(&status["engine"]["name"]),
            duration(status["uptime_seconds"].as_f64().unwrap_or(0.0).floor()),
            grouped(status["connections"].as_u64().unwrap_or(0)),
        ));
        self.line("");
        let ports = status["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut stories = self.stories();
        // The drain first, then the port that is worst off.
        let of_process = stories.len() - ports.len();
        stories[of_process..].sort_by_key(|story| story.tone);
        for story in &stories {
            self.say(story.tone, &format!("{} {}", story.tone.sign(), story.sentence()));
        }
        self.drain();
        for port in ports {
            self.line("");
            if ports.len() > 1 {
                self.line(&format!("Port {}", story::name(status, port)));
            }
            self.port(port);
        }
    }

    fn stories(&self) -> Vec<Story> {
        let ports = self.status["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut stories = story::process(self.status);
        stories.extend(ports.iter().map(|port| story::port(self.status, port)));
        stories
    }

    fn drain(&mut self) {
        let draining = &self.status["draining"];
        if !draining.is_object() {
            return;
        }
        let number = |key: &str| draining[key].as_u64().unwrap_or(0);
        let (left, done) = (number("left"), number("finished") + number("refused"));
        let cut = draining["cut_in_seconds"].as_f64().unwrap_or(0.0).ceil();
        let words = format!("{done} of {} ended; cut in {}", done + left, duration(cut));
        let room = self.screen.size.0.saturating_sub(4 + NAME + words.chars().count()).min(40);
        let full = match done + left {
            0 => room,
            all => (room as u64 * done / all) as usize,
        };
        let bar: String = (0..room).map(|at| if at < full { '█' } else { '░' }).collect();
        self.line(&format!("  {:<NAME$} {bar} {words}", "drain"));
    }

    fn port(&mut self, port: &Value) {
        let (recent, history) = (&port["recent"], &port["history"]);
        let number = |key: &str| port[key].as_u64().unwrap_or(0);
        let per_second = |value: &Value| format!("{}/s", rate(value.as_f64().unwrap_or(0.0)));
        let limit = port["limit"].as_f64().filter(|_| port["mode"] == "enforce");
        let in_flight = match limit {
            Some(limit) => format!("{} of {limit}", grouped(number("active"))),
            None => grouped(number("active")),
        };
        self.row("in flight", &in_flight, &history["active"], limit);
        let waiting =
            format!("{} of {}", grouped(number("queued")), grouped(number("queue_length")));
        self.row("waiting", &waiting, &history["queued"], None);
        let admitted = per_second(&recent["admitted_per_second"]);
        self.row("admitted", &admitted, &history["admitted_per_second"], None);
        let rates = recent["refused_per_second"].as_object().into_iter().flatten();
        let rates = rates.filter(|(why, _)| !story::OWN.contains(&why.as_str()));
        let refused: f64 = rates.filter_map(|(_, rate)| rate.as_f64()).sum();
        self.row("refused", &format!("{}/s", rate(refused)), &history["refused_per_second"], None);
        let percentiles = |of: &Value| match (of["p50"].as_f64(), of["p99"].as_f64()) {
            (Some(p50), Some(p99)) => format!("p50 {} p99 {}", duration(p50), duration(p99)),
            _ => "-".to_owned(),
        };
        self.row("wait p99", &percentiles(&recent["wait_seconds"]), &history["wait_p99"], None);
        for (name, key) in [("took", "request"), ("lasts", "connection")] {
            let seen = &history[format!("{key}_p99")];
            if seen.as_array().into_iter().flatten().any(|value| !value.is_null()) {
                let of = &recent[format!("{key}_seconds")];
                self.row(&format!("{name} p99"), &percentiles(of), seen, None);
            }
        }
        self.list("so far", &port["refused"], "refused ");
        self.list("tried out", &port["shadow"], "not at once ");
    }

    /// Name, numbers and plot.
    fn row(&mut self, name: &str, numbers: &str, history: &Value, ceiling: Option<f64>) {
        let room = self.screen.size.0.saturating_sub(4 + NAME + NUMBERS + 1);
        let plot = plot(history, ceiling, room.min(SECONDS / EACH));
        self.line(&format!("  {name:<NAME$} {numbers:<NUMBERS$} {plot}"));
    }

    /// The counters that are not zero, in the order of their names or numbers.
    fn list(&mut self, name: &str, object: &Value, verb: &str) {
        let all = object.as_object().into_iter().flatten();
        let mut some: Vec<_> = all
            .filter_map(|(key, n)| Some((key.as_str(), n.as_u64().filter(|n| *n > 0)?)))
            .collect();
        if some.is_empty() {
            return;
        }
        some.sort_by_key(|(key, _)| (key.parse::<u64>().ok(), *key));
        let words: Vec<_> =
            some.iter().map(|(key, n)| format!("{} {}", visible(key), grouped(*n))).collect();
        self.line(&format!("  {name:<NAME$} {verb}{}", words.join(", ")));
    }

    fn line(&mut self, text: &str) {
        let line = self.fitting(text);
        self.lines.push(line);
    }

    fn say(&mut self, tone: Tone, text: &str) {
        let columns = if self.screen.terminal { self.screen.size.0 } else { usize::MAX };
        for line in wrap(&self.plain(text), columns.saturating_sub(1)) {
            let painted = self.screen.paint(tone, &line);
            self.lines.push(painted);
        }
    }

    /// Some terminals wrap at the last column.
    fn fitting(&self, text: &str) -> String {
        let room = self.screen.size.0.saturating_sub(1);
        let text = self.plain(text);
        match text.char_indices().nth(room) {
            Some((end, _)) => text[..end].trim_end().to_owned(),
            None => text.trim_end().to_owned(),
        }
    }

    /// As the output can show it.
    fn plain(&self, text: &str) -> String {
        if self.screen.unicode {
            return text.to_owned();
        }
        text.chars()
            .map(|c| match c {
                '—' | '–' => '-',
                '■' | '█' => '#',
                '▲' => '!',
                '●' => '*',
                '○' => 'o',
                '░' => '.',
                'µ' => 'u',
                '…' => '~',
                '\u{a0}' => ' ',
                c if LEVELS.contains(&c) => {
                    let level = LEVELS.iter().position(|level| *level == c).unwrap_or(0);
                    ['_', '.', ':', '-', '=', '+', '*', '#'][level]
                }
                c if c.is_ascii() => c,
                _ => '?',
            })
            .collect()
    }
}

/// The history in so many signs, the newest last. Nothing is the lowest sign, anything is higher.
fn plot(history: &Value, ceiling: Option<f64>, room: usize) -> String {
    let values: Vec<_> =
        history.as_array().into_iter().flatten().map(|value| value.as_f64()).collect();
    let newest = &values[values.len().saturating_sub(room * EACH)..];
    let signs = newest.rchunks(EACH).map(|few| few.iter().flatten().copied().reduce(f64::max));
    let signs: Vec<_> = signs.collect();
    let top = signs.iter().flatten().copied().fold(ceiling.unwrap_or(0.0), f64::max);
    let mut text = String::new();
    for sign in signs.iter().rev() {
        text.push(match sign {
            None => ' ',
            Some(value) if *value <= 0.0 || top <= 0.0 => LEVELS[0],
            Some(value) => LEVELS[((value / top * 7.0).ceil() as usize).clamp(1, 7)],
        });
    }
    format!("{text:>room$}")
}

fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                let _ = write!(line, " {word}");
            }
            None => lines.push(word.chars().take(columns).collect()),
            // Further lines stand under the sentence, not under its sign.
            Some(_) => lines.push(format!("  {word}").chars().take(columns).collect()),
        }
    }
    lines
}

/// Of the zone all machines agree on.
fn clock(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TERMINAL: Screen =
        Screen { terminal: true, unicode: true, colours: false, size: (80, 24) };

    fn overloaded() -> Value {
        let hostile = "\u{1b}[2J\u{202e}x".repeat(20);
        json!({
            "version": "0.1.0", "phase": "closing", "uptime_seconds": 192.4,
            "engine": { "name": "uring", "reason": hostile }, "connections": 20, "max_connections": 100_000,
            "draining": {
                "finished": 4, "refused": 2, "left": 6, "closes_in_seconds": null, "cut_in_seconds": 16.2,
            },
            "last_reload": { "error": hostile },
            "ports": [{
                "listen": "0.0.0.0:8080", "app": hostile, "mode": "enforce", "limit": 8, "active": 8,
                "queued": 12, "queue_length": 16, "refused": { "queue_full": 123_456, "queue_timeout": 3 },
                "shadow": { "25": 10, "100": 2 },
                "recent": {
                    "admitted_per_second": 200.2, "refused_per_second": { "queue_full": 41.2 },
                    "wait_seconds": { "p50": 0.012, "p99": 0.080 },
                    "request_seconds": { "p50": 0.02, "p99": 0.031 },
                },
                "history": {
                    "active": (0..180).map(|n| n / 20).collect::<Vec<_>>(),
                    "request_p99": [null, 0.5],
                },
            }],
        })
    }

    #[test]
    fn a_screen_of_80_columns_shows_all_of_it() {
        let shown = frame(&overloaded(), None, &TERMINAL, UNIX_EPOCH);
        let shown = shown.replace("\x1b[H", "").replace("\x1b[J", "").replace("\x1b[K", "");
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() < 80), "{shown}");
        assert!(shown.lines().count() < 24, "{shown}");
        for part in [
            "00:00:00 UTC  tidegate 0.1.0, closing, uring, up 3 min 12 s, 20 connections\n",
            "▲ Gateway: draining — 4 finished, 6 left; the rest is cut in 17 s\n",
            "■ Port 8080: full — 8 of 8 in flight, 12 wait, 41/s refused (queue_full)\n",
            "  drain     ████████████████████░░░░░░░░░░░░░░░░░░░░ 6 of 12 ended; cut in 17 s\n",
            "  in flight 8 of 8                 ▁▁▁▂▂▂▂▂▃▃▃▃▃▄▄▄▄▄▅▅▅▅▅▆▆▆▆▆▇▇▇▇▇██████████\n",
            "  refused   41/s\n",
            "  wait p99  p50 12 ms p99 80 ms\n",
            "  so far    refused queue_full 123\u{a0}456, queue_timeout 3\n",
            "  tried out not at once 25 10, 100 2\n",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        for size in [(1, 1), (20, 3), (40, 10), (79, 24), (200, 60)] {
            let shown =
                frame(&overloaded(), Some("gone"), &Screen { size, ..TERMINAL }, UNIX_EPOCH);
            let shown = shown.replace("\x1b[H", "").replace("\x1b[J", "").replace("\x1b[K", "");
            assert!(shown.lines().count() < size.1.max(1), "{size:?}\n{shown}");
            assert!(shown.lines().all(|line| line.chars().count() < size.0), "{size:?}\n{shown}");
        }
    }

    #[test]
    fn on_a_pipe_there_are_lines_and_without_utf_8_there_is_ascii() {
        let pipe = Screen { terminal: false, unicode: false, ..TERMINAL };
        let shown = frame(&overloaded(), None, &pipe, UNIX_EPOCH);
        assert!(shown.is_ascii() && !shown.contains('\u{1b}'), "{shown}");
        assert!(
            shown.ends_with(
                "00:00:00 UTC Port 8080: full - 8 of 8 in flight, 12 wait, 41/s refused (queue_full)\n"
            ),
            "{shown}"
        );
        let ascii = frame(&overloaded(), None, &Screen { unicode: false, ..TERMINAL }, UNIX_EPOCH);
        assert!(ascii.is_ascii(), "{ascii}");
        let gone = frame(&Value::Null, Some("no gateway answers"), &pipe, UNIX_EPOCH);
        assert_eq!(gone, "00:00:00 UTC no answer: no gateway answers\n");
    }

    #[test]
    fn the_environment_says_what_can_be_shown() {
        let of = |set: &[(&str, &str)]| {
            let screen = Screen::new(true, set.iter().copied());
            (screen.terminal, screen.unicode, screen.colours)
        };
        assert_eq!(of(&[]), (true, false, true));
        assert_eq!(of(&[("LANG", "de_DE.UTF-8")]), (true, true, true));
        assert_eq!(of(&[("LANG", "C.utf8"), ("LC_ALL", "C")]), (true, false, true));
        assert_eq!(of(&[("LANG", "C.utf8"), ("NO_COLOR", "1")]), (true, true, false));
        assert_eq!(of(&[("TERM", "dumb"), ("LC_CTYPE", "C.UTF-8")]), (false, true, false));
    }

    #[test]
    fn a_plot_ends_with_the_newest() {
        assert_eq!(plot(&json!([]), None, 3), "   ");
        assert_eq!(plot(&json!([0, 0, 0, 0, 1, 8, 0, null]), None, 3), " ▁█");
        assert_eq!(plot(&json!([null, null, null, null, 0.001]), None, 2), " █");
        assert_eq!(plot(&json!([4]), Some(8.0), 1), "▅");
    }
}
