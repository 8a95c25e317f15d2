//! The table of every setting: the one place that knows a setting's name, what may be written, its
//! default, and whether it can change while the gateway runs. Flags, environment, file, `tidegate
//! set`, error texts and the README's table all come from it.
//!
//! Always true: a value accepted by [`Kind::parse`] needs no further check on its own; what remains
//! for `config` is how settings fit together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One setting.
#[derive(Debug, PartialEq)]
pub struct Key {
    /// Its name, the same word everywhere.
    pub name: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// Whether each port has its own.
    pub scope: Scope,
    /// Whether it can change while the gateway runs.
    pub live: bool,
    /// What holds when nobody says anything.
    pub default: Default,
    /// One line for people.
    pub help: &'static str,
}

/// Whom a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each port; the bare key means all of them.
    Port,
    /// The process.
    Process,
}

/// What holds when nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This text, as if it had been written.
    Text(&'static str),
    /// What follows from other settings or from the machine; the text is for people.
    Rule(&'static str),
}

/// What may be written as a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// One of these words. `later`: words of features that are not built.
    Choice { words: &'static [&'static str], later: &'static [&'static str] },
    /// An integer, or the word that stands for "no number".
    Count { min: u32, max: u32, word: Option<&'static str> },
    /// A list of integers.
    Counts { max: u32, most: usize },
    /// A length of time, or the word that stands for "no such time".
    Duration { zero: bool, word: Option<&'static str> },
    /// `true` or `false`.
    Switch,
    /// An IP address and a port.
    Address,
    /// An absolute path.
    Path,
    /// A log level or a `tracing` filter directive.
    Filter,
}

/// A value that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Choice`].
    Word(&'static str),
    /// Of [`Kind::Count`].
    Count(Option<u32>),
    /// Of [`Kind::Counts`]: sorted, each once.
    Counts(Vec<u32>),
    /// Of [`Kind::Duration`].
    Duration(Option<Duration>),
    /// Of [`Kind::Switch`].
    Switch(bool),
    /// Of [`Kind::Address`].
    Address(SocketAddr),
    /// Of [`Kind::Path`].
    Path(PathBuf),
    /// Of [`Kind::Filter`].
    Text(String),
}

/// No application carries more at once; beyond it somebody has mistyped.
pub const MAX_COUNT: u32 = 1_000_000;

/// Longer than a day is no timeout; where "for ever" makes sense there is a word for it.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Timers are not finer.
const MIN_DURATION: Duration = Duration::from_millis(1);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const fn choice(words: &'static [&'static str]) -> Kind {
    Kind::Choice { words, later: &[] }
}

const fn count(min: u32, max: u32, word: Option<&'static str>) -> Kind {
    Kind::Count { min, max, word }
}

const TIMEOUT: Kind = Kind::Duration { zero: false, word: None };

const fn key(
    name: &'static str,
    kind: Kind,
    scope: Scope,
    live: bool,
    default: Default,
    help: &'static str,
) -> Key {
    Key { name, kind, scope, live, default, help }
}

const LIVE: bool = true;
const RESTART: bool = false;

use self::Default::{Rule, Text};
use self::Scope::{Port, Process};

/// Every setting, in the order it is documented.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("mode", choice(&["enforce", "observe", "off"]), Port, LIVE, Rule("enforce with a limit, else observe"),
        "obey the limits, only count what they would do, or pass everything"),
    key("protocol", Kind::Choice { words: &["tcp"], later: &["auto", "http"] }, Port, RESTART, Text("tcp"),
        "what the port carries"),
    key("limit", count(1, MAX_COUNT, Some("none")), Port, LIVE, Text("none"),
        "connections the application has at once"),
    key("shadow-limits", Kind::Counts { max: MAX_COUNT, most: crate::limit::MAX_SHADOW_LIMITS }, Port, LIVE,
        Rule("25,50,100,200,400 while observing"), "limits that are only tried out, on live traffic"),
    key("queue-length", count(0, MAX_COUNT, None), Port, LIVE, Rule("max(limit, 16)"),
        "connections that may wait for a slot; 0: none waits"),
    key("queue-timeout", TIMEOUT, Port, LIVE, Text("5s"),
        "the longest a connection waits before it is refused"),
    key("per-client-limit", count(1, MAX_COUNT, Some("none")), Port, LIVE, Text("none"),
        "connections one source address may have, active and waiting"),
    key("max-connections", count(1, MAX_COUNT, None), Process, RESTART, Rule("from RLIMIT_NOFILE"),
        "connections the gateway itself holds, in whatever stage"),
    key("tcp-refuse", choice(&["close", "reset", "hold"]), Port, LIVE, Text("close"),
        "what a refused client sees: FIN, RST, or nothing (it waits in the kernel's backlog)"),
    key("connect-timeout", TIMEOUT, Port, LIVE, Text("1s"),
        "how long the application may take to accept a connection"),
    key("idle-timeout", Kind::Duration { zero: false, word: Some("none") }, Port, LIVE, Text("none"),
        "how long nothing may move before a connection is closed"),
    key("write-stall-timeout", TIMEOUT, Port, LIVE, Text("30s"),
        "how long a side may leave bytes untaken before the connection is reset"),
    key("abandon-timeout", TIMEOUT, Port, LIVE, Text("30s"),
        "how long the application may take to end once its client has left"),
    key("queued-half-close", choice(&["gone", "keep"]), Port, RESTART, Text("gone"),
        "what a client's FIN means while it waits: it has left, or it waits for the answer"),
    key("send-proxy-protocol", Kind::Switch, Port, RESTART, Text("false"),
        "tell the application the client's address in a PROXY protocol v2 header"),
    key("drain-delay", Kind::Duration { zero: true, word: None }, Process, LIVE, Text("5s"),
        "how long a drain goes on accepting until the news has spread"),
    key("drain-timeout", Kind::Duration { zero: true, word: None }, Process, LIVE, Rule("grace - delay - reserve"),
        "how long admitted and waiting connections may take once the listeners are closed"),
    key("grace", TIMEOUT, Process, RESTART, Text("30s"),
        "how long the process has in all before it is killed"),
    key("engine", choice(&["auto", "uring", "epoll"]), Process, RESTART, Text("auto"),
        "how bytes are moved; auto takes io_uring where it works"),
    key("uring-sqpoll", Kind::Switch, Process, RESTART, Text("false"),
        "let a kernel thread submit for io_uring; it burns a core"),
    key("workers", count(1, 64, Some("auto")), Process, RESTART, Text("1"),
        "data-plane threads; auto: what the cgroup grants, at most 4"),
    key("admin", Kind::Address, Process, RESTART, Text("127.0.0.1:15820"),
        "address of the read-only status, settings and connection list"),
    key("control", Kind::Path, Process, RESTART, Rule("/run/tidegate/control.sock, else the user's runtime directory"),
        "Unix socket for all that changes something"),
    key("probe", Kind::Address, Process, RESTART, Text("0.0.0.0:15821"),
        "address of /livez, /readyz and /startupz"),
    key("metrics", Kind::Address, Process, RESTART, Text("0.0.0.0:15822"),
        "address of /metrics"),
    key("log-format", choice(&["text", "json"]), Process, RESTART, Text("text"),
        "what a log line looks like"),
    key("log-level", Kind::Filter, Process, LIVE, Text("info"),
        "how much is logged: off, error, warn, info, debug, trace, or a filter such as info,tidegate=debug"),
];

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The setting a typing error was probably meant for.
pub fn nearest(name: &str) -> Option<&'static str> {
    let same = |key: &&Key| {
        let swap = |s: &str| s.replace(['_', '.'], "-").to_lowercase();
        let (a, b) = (swap(key.name), swap(name));
        a == b
            || a.strip_suffix('s') == Some(&b)
            || b.strip_suffix('s') == Some(&a)
            || (b.len() > 3 && (a.starts_with(&b) || a.ends_with(&b)))
    };
    KEYS.iter().find(same).map(|key| key.name)
}

/// The settings as the README shows them, in Markdown.
pub fn settings_table() -> String {
    let mut table = String::from("| key | value | default | live | |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let default = match key.default {
            Text(text) => format!("`{text}`"),
            Rule(rule) => rule.to_owned(),
        };
        let live = if key.live { "yes" } else { "restart" };
        let name = key.name;
        let per_port = if key.scope == Port { "" } else { " (process)" };
        let allowed = key.kind.allowed();
        table +=
            &format!("| `{name}`{per_port} | {allowed} | {default} | {live} | {} |\n", key.help);
    }
    table
}

impl Kind {
    /// Accept a value, or say what would be accepted.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let refused = || Err(format!("must be {}", self.allowed()));
        if text.is_empty() {
            return Err(format!("is empty; it must be {}", self.allowed()));
        }
        match *self {
            Self::Choice { words, later } => {
                if let Some(word) = words.iter().find(|word| **word == text) {
                    return Ok(Value::Word(word));
                }
                if later.contains(&text) {
                    return Err(format!("is not built yet; it must be {}", self.allowed()));
                }
                refused()
            }
            Self::Count { word: Some(word), .. } if text == word => Ok(Value::Count(None)),
            Self::Count { min, max, .. } => match number(text) {
                Some(n) if (min..=max).contains(&n) => Ok(Value::Count(Some(n))),
                _ => refused(),
            },
            Self::Counts { .. } if text == "none" => Ok(Value::Counts(Vec::new())),
            Self::Counts { max, most } => {
                let numbers: Option<Vec<u32>> =
                    text.split(',').map(|part| number(part.trim())).collect();
                match numbers {
                    Some(mut list) if list.iter().all(|n| (1..=max).contains(n)) => {
                        list.sort_unstable();
                        list.dedup();
                        if list.len() > most { refused() } else { Ok(Value::Counts(list)) }
                    }
                    _ => refused(),
                }
            }
            Self::Duration { word: Some(word), .. } if text == word => Ok(Value::Duration(None)),
            Self::Duration { zero, .. } => match duration(text) {
                Some(d) if d <= MAX_DURATION && (d >= MIN_DURATION || zero && d.is_zero()) => {
                    Ok(Value::Duration(Some(d)))
                }
                _ if text.parse::<u64>().is_ok() => {
                    Err(format!("has no unit; it must be {}", self.allowed()))
                }
                _ => refused(),
            },
            Self::Switch => match text {
                "true" => Ok(Value::Switch(true)),
                "false" => Ok(Value::Switch(false)),
                _ => refused(),
            },
            Self::Address => text.parse().map_or_else(|_| refused(), |a| Ok(Value::Address(a))),
            Self::Path if text.starts_with('/') => Ok(Value::Path(PathBuf::from(text))),
            Self::Path => refused(),
            Self::Filter if text.split(',').all(is_directive) => Ok(Value::Text(text.to_owned())),
            Self::Filter => refused(),
        }
    }

    /// What may be written, as the end of a sentence that begins with "must be".
    pub fn allowed(&self) -> String {
        match *self {
            Self::Choice { words, .. } => match words {
                [only] => format!("`{only}`"),
                words => format!("one of `{}`", words.join("`, `")),
            },
            Self::Count { min, max, word } => {
                format!("an integer from {min} to {max}{}", or(word))
            }
            Self::Counts { max, most } => {
                format!("up to {most} integers from 1 to {max} with commas between, or `none`")
            }
            Self::Duration { zero, word } => {
                let least = if zero { "0s" } else { "1ms" };
                format!("a duration from {least} to 24h such as `500ms`, `5s`, `2m`{}", or(word))
            }
            Self::Switch => "`true` or `false`".into(),
            Self::Address => {
                "an IP address and a port such as `127.0.0.1:8080` or `[::]:8080`".into()
            }
            Self::Path => "an absolute path".into(),
            Self::Filter => {
                "a level (`off`, `error`, `warn`, `info`, `debug`, `trace`) or a filter such as \
                 `info,tidegate=debug`"
                    .into()
            }
        }
    }
}

fn or(word: Option<&str>) -> String {
    word.map(|word| format!(", or `{word}`")).unwrap_or_default()
}

/// Digits only: no sign, no exponent, no spaces.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn duration(text: &str) -> Option<Duration> {
    let spaced = text.bytes().any(|b| b.is_ascii_whitespace());
    if spaced { None } else { humantime::parse_duration(text).ok() }
}

/// `debug` or `target=debug`. Stricter than the filter's own parser, to which a mistyped level is
/// the name of a target.
fn is_directive(part: &str) -> bool {
    let level = part.split_once('=').map_or(part, |(_, level)| level);
    LEVELS.contains(&level)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, text: &str) -> Result<Value, String> {
        find(key).expect("a key of the table").kind.parse(text)
    }

    #[test]
    fn every_bad_limit_is_refused_and_told_what_is_allowed() {
        for bad in [
            "0",
            "-1",
            "1e9",
            "NaN",
            "1000001",
            "99999999999999999999",
            "",
            " 5",
            "+5",
            "0x5",
            "five",
            "5.0",
        ] {
            let problem = parse("limit", bad).expect_err(bad);
            assert!(problem.contains("an integer from 1 to 1000000, or `none`"), "{problem}");
        }
        assert_eq!(parse("limit", "1000000"), Ok(Value::Count(Some(1_000_000))));
        assert_eq!(parse("limit", "none"), Ok(Value::Count(None)));
        assert_eq!(parse("queue-length", "0"), Ok(Value::Count(Some(0))));
    }

    #[test]
    fn durations_have_a_unit_and_bounds() {
        for (text, millis) in
            [("500ms", 500), ("5s", 5000), ("2m", 120_000), ("1m30s", 90_000), ("24h", 86_400_000)]
        {
            let value = Value::Duration(Some(Duration::from_millis(millis)));
            assert_eq!(parse("queue-timeout", text), Ok(value), "{text}");
        }
        for bad in ["5", "0s", "-5s", "1us", "25h", "1M", "NaN", "1e9s", "5 s", "", "none", "s"] {
            parse("queue-timeout", bad).expect_err(bad);
        }
        assert!(parse("queue-timeout", "5").expect_err("no unit").contains("no unit"));
        assert_eq!(parse("idle-timeout", "none"), Ok(Value::Duration(None)));
        assert_eq!(parse("drain-delay", "0s"), Ok(Value::Duration(Some(Duration::ZERO))));
    }

    #[test]
    fn words_lists_addresses_and_filters() {
        assert!(parse("protocol", "http").expect_err("later").contains("not built yet"));
        assert!(parse("protocol", "udp").expect_err("never").contains("must be `tcp`"));
        assert_eq!(parse("shadow-limits", "50, 25,50"), Ok(Value::Counts(vec![25, 50])));
        assert_eq!(parse("shadow-limits", "none"), Ok(Value::Counts(vec![])));
        for bad in ["0", "25,", "a", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"] {
            parse("shadow-limits", bad).expect_err(bad);
        }
        for bad in ["8080", "localhost:8080", "1.2.3.4", "1.2.3.4:99999", ""] {
            parse("admin", bad).expect_err(bad);
        }
        assert!(parse("log-level", "info,tidegate::conn=debug").is_ok());
        parse("log-level", "debgu").expect_err("a mistyped level");
        parse("control", "control.sock").expect_err("a relative path");
    }

    #[test]
    fn the_table_names_every_key_once_and_its_defaults_are_allowed() {
        let table = settings_table();
        for (at, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..at].iter().all(|other| other.name != key.name), "{} twice", key.name);
            assert_eq!(table.matches(&format!("| `{}`", key.name)).count(), 1);
            if let Default::Text(text) = key.default {
                key.kind.parse(text).expect("a default is a value that may be written");
            }
        }
        assert_eq!(table.lines().count(), KEYS.len() + 2);
    }

    #[test]
    fn near_misses_are_recognised() {
        assert_eq!(nearest("queue_length"), Some("queue-length"));
        assert_eq!(nearest("limits"), Some("limit"));
        assert_eq!(nearest("frobnicate"), None);
    }
}
