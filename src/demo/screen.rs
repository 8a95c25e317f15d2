//! What the demo shows: on a terminal a row for each act that is redrawn in place, on a pipe a row a
//! second, and the summary at the end. 80 columns, no colours where none are wanted.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::config;

use super::application::{Application, CAPACITY, WORK, WORKERS};
use super::load::{Load, PATIENCE};
use super::summary::{Act, COLUMNS, Summary, with};
use super::{CALM, DRAIN, SURGE};

/// Where and how to show it.
pub struct Screen {
    /// Nothing is shown but the summary, as JSON.
    json: bool,
    /// Rows are redrawn in place.
    terminal: bool,
    colours: bool,
    live: RefCell<Live>,
}

/// The row of the act that is on.
struct Live {
    begun: Instant,
    shown: Option<Instant>,
    /// The counters of the last second, oldest first.
    past: VecDeque<(Instant, Counters)>,
}

/// Clients that came, were served, were refused, gave up.
type Counters = [u64; 4];

/// How often a row is redrawn.
const REDRAW: Duration = Duration::from_millis(100);

/// What the rates in a row are of, and how often there is one on a pipe.
const WINDOW: Duration = Duration::from_secs(1);

/// Of text; terminals have 80 columns, and some wrap at the last.
const WIDTH: usize = 78;

/// Where a line is not to be broken.
pub const FIXED_SPACE: char = '\u{a0}';

const HEAD: &str = "act    gateway   time  offered/s     200/s      503/s  gave up/s  in the app";

impl Screen {
    /// On stdout, in the way that suits it.
    pub fn new(json: bool) -> Self {
        let set = |wanted: &str| {
            config::environment().find(|(name, _)| name == wanted).map(|(_, value)| value)
        };
        let terminal = io::stdout().is_terminal() && set("TERM").is_none_or(|term| term != "dumb");
        let colours = terminal && set("NO_COLOR").is_none_or(|value| value.is_empty());
        let live = Live { begun: Instant::now(), shown: None, past: VecDeque::new() };
        Self { json, terminal, colours, live: RefCell::new(live) }
    }

    /// Before the first act: who plays.
    pub fn open(&self, flags: &[String]) {
        if self.json {
            return;
        }
        let rate = |share: f64| share * CAPACITY;
        let patience = PATIENCE.as_millis();
        let cast = [
            (
                "application",
                format!(
                    "{WORKERS} workers x {} ms = {CAPACITY:.0} requests/s; its queue has no end, and \
                     it works on for clients that have left",
                    WORK.as_millis()
                ),
            ),
            (
                "clients",
                format!(
                    "leave after {patience} ms; calm {:.0}/s, surge {:.0}/s, drain {:.0}/s",
                    rate(CALM),
                    rate(SURGE),
                    rate(DRAIN)
                ),
            ),
            ("gateway", flags.join(" ")),
        ];
        print("Tidegate in front of an application that can carry little\n\n");
        for (who, what) in cast {
            const INDENT: usize = 13;
            let lines = wrap(&what, WIDTH - INDENT);
            print(&format!("{who:<INDENT$}{}\n", lines.join(&format!("\n{:INDENT$}", ""))));
        }
        print(&format!("\n{}\n", self.paint(BOLD, HEAD)));
    }

    /// Show the act while it is on.
    pub async fn follow(
        &self,
        act: Act,
        gateway: bool,
        load: &Load,
        app: &Application,
    ) -> Infallible {
        let now = Instant::now();
        self.live.replace(Live { begun: now, shown: None, past: VecDeque::from([(now, [0; 4])]) });
        let every = if self.terminal { REDRAW } else { WINDOW };
        loop {
            tokio::time::sleep(every).await;
            self.row(act, gateway, load, app);
        }
    }

    /// The act is over.
    pub fn last(&self, act: Act, gateway: bool, load: &Load, app: &Application) {
        let stale = self.live.borrow().shown.is_none_or(|shown| shown.elapsed() > WINDOW / 2);
        if stale {
            self.row(act, gateway, load, app);
        }
        if self.terminal && !self.json {
            print("\n");
        }
    }

    /// Ctrl-C.
    pub fn leave(&self) {
        if self.terminal && !self.json {
            print("\n");
        }
    }

    /// The summary.
    pub fn close(&self, summary: &Summary) {
        if self.json {
            print(&format!("{}\n", summary.json()));
            return;
        }
        let cells = COLUMNS.map(|(name, _)| name.to_owned());
        print(&format!("\n{}\n", self.paint(BOLD, &line(&cells))));
        print(&format!("{}\n", line(&COLUMNS.map(|(_, width)| "-".repeat(width)))));
        for played in &summary.acts {
            let colour = match (played.act, played.gateway) {
                (Act::Surge, false) => RED,
                (Act::Surge, true) => GREEN,
                _ => PLAIN,
            };
            print(&format!("{}\n", self.paint(colour, &line(&played.row()))));
        }
        print("\n");
        for sentence in summary.sentences() {
            print(&format!("{}\n", wrap(&sentence, WIDTH).join("\n")));
        }
        print(&format!("Engine: {} ({}).\n", summary.engine, summary.reason));
        for promise in summary.broken() {
            print(&format!("{}\n", self.paint(RED, &format!("BROKEN: {promise}"))));
        }
    }

    fn row(&self, act: Act, gateway: bool, load: &Load, app: &Application) {
        if self.json {
            return;
        }
        let now = Instant::now();
        let counters = load.look(|seen| {
            let refused = seen.refused.len() as u64 + seen.late;
            [seen.offered, seen.served.len() as u64, refused, seen.gave_up]
        });
        let mut live = self.live.borrow_mut();
        live.past.push_back((now, counters));
        while live.past.len() > 2 && now - live.past[1].0 >= WINDOW {
            live.past.pop_front();
        }
        let (since, before) = live.past[0];
        let seconds = (now - since).as_secs_f64().max(0.001);
        let rate = |at: usize| (counters[at] - before[at]) as f64 / seconds;
        let row = format!(
            "{:<5}  {:<7}  {:>4.1}s  {:>9.0}  {:>8.0}  {:>9.0}  {:>9.0}  {:>10}",
            act.label(),
            with(gateway),
            (now - live.begun).as_secs_f64(),
            rate(0),
            rate(1),
            rate(2),
            rate(3),
            app.seen().open,
        );
        live.shown = Some(now);
        if self.terminal { print(&format!("\r{row}")) } else { print(&format!("{row}\n")) }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours && colour != PLAIN {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

const PLAIN: &str = "";
const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";

/// Cells in the columns: words to the left, numbers to the right.
fn line(cells: &[String; COLUMNS.len()]) -> String {
    let pad = |(at, (cell, (_, width))): (usize, (&String, &(&str, usize)))| match at {
        0 | 1 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    };
    cells.iter().zip(&COLUMNS).enumerate().map(pad).collect::<Vec<_>>().join("  ")
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if length(line) + 1 + length(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter().map(|line| line.replace(FIXED_SPACE, " ")).collect()
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn print(text: &str) {
    let mut out = io::stdout();
    // A reader that has left, such as `head`, is no failure.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_on_a_terminal() {
        assert!(HEAD.len() <= WIDTH);
        assert!(line(&COLUMNS.map(|(name, _)| name.to_owned())).len() <= WIDTH);
        assert!(wrap(&"word ".repeat(50), WIDTH).iter().all(|line| line.len() <= WIDTH));
    }
}
