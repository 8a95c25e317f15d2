//! What may be written as a value: accepted, or refused with what would be accepted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::capture::PortSet;

/// What may be written as a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// One of these words. `later`: words of features that are not built.
    Choice { words: &'static [&'static str], later: &'static [&'static str] },
    /// An integer, or the word that stands for "no number".
    Count { min: u32, max: u32, word: Option<&'static str> },
    /// A list of integers.
    Counts { max: u32, most: usize },
    /// A part of the whole.
    Ratio,
    /// A length of time, or the word that stands for "no such time".
    Duration { zero: bool, word: Option<&'static str> },
    /// `true` or `false`.
    Switch,
    /// An IP address and a port.
    Address,
    /// An IP address and a port, or the word that stands for "nowhere".
    AddressOr(&'static str),
    /// A list of ports.
    Ports,
    /// An absolute path.
    Path,
    /// The name of a header, or `none`.
    Header,
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
    /// Of [`Kind::Ratio`]: of 10^9.
    Ratio(u32),
    /// Of [`Kind::Duration`].
    Duration(Option<Duration>),
    /// Of [`Kind::Switch`].
    Switch(bool),
    /// Of [`Kind::Address`].
    Address(SocketAddr),
    /// Of [`Kind::AddressOr`].
    MaybeAddress(Option<SocketAddr>),
    /// Of [`Kind::Ports`].
    Ports(PortSet),
    /// Of [`Kind::Path`].
    Path(PathBuf),
    /// Of [`Kind::Filter`] and [`Kind::Header`].
    Text(String),
}

/// Longer than a day is no timeout; where "for ever" makes sense there is a word for it.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// What a ratio is a part of.
pub const WHOLE: u32 = 1_000_000_000;

/// Timers are not finer.
const MIN_DURATION: Duration = Duration::from_millis(1);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

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
            Self::Ratio => match ratio(text) {
                Some(parts) => Ok(Value::Ratio(parts)),
                None => refused(),
            },
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
            Self::AddressOr(word) if text == word => Ok(Value::MaybeAddress(None)),
            Self::AddressOr(_) => {
                text.parse().map_or_else(|_| refused(), |a| Ok(Value::MaybeAddress(Some(a))))
            }
            Self::Ports => PortSet::parse(text).map_or_else(refused, |set| Ok(Value::Ports(set))),
            Self::Path if text.starts_with('/') => Ok(Value::Path(PathBuf::from(text))),
            Self::Path => refused(),
            Self::Header => match http::HeaderName::from_bytes(text.as_bytes()) {
                Ok(_) => Ok(Value::Text(text.to_lowercase())),
                Err(_) => refused(),
            },
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
            Self::Ratio => "a number from 0 to 1 such as `0.01`".into(),
            Self::Switch => "`true` or `false`".into(),
            Self::Address => {
                "an IP address and a port such as `127.0.0.1:8080` or `[::]:8080`".into()
            }
            Self::AddressOr(word) => {
                format!(
                    "an IP address and a port such as `0.0.0.0:15801` or `[::]:15801`, or `{word}`"
                )
            }
            Self::Ports => PortSet::ALLOWED.into(),
            Self::Path => "an absolute path".into(),
            Self::Header => "the name of a header such as `x-request-timeout`, or `none`".into(),
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

/// Of [`WHOLE`]: digits and one point, no sign, no exponent.
fn ratio(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let ratio: f64 = if plain { text.parse().ok()? } else { return None };
    let parts = (ratio * f64::from(WHOLE)).round();
    (0.0..=f64::from(WHOLE)).contains(&parts).then_some(parts as u32)
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
    use crate::settings::find;

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
    fn ratios() {
        for (text, parts) in
            [("0", 0), ("1", WHOLE), ("1.0", WHOLE), ("0.01", WHOLE / 100), (".5", WHOLE / 2)]
        {
            assert_eq!(parse("trace-sampling", text), Ok(Value::Ratio(parts)), "{text}");
        }
        for bad in ["", ".", "1.1", "-0.1", "1e-3", "NaN", "inf", "10%", "0,5", "0.0.1"] {
            parse("trace-sampling", bad).expect_err(bad);
        }
    }

    #[test]
    fn words_lists_addresses_and_filters() {
        assert!(
            parse("protocol", "udp").expect_err("never").contains("one of `auto`, `http`, `tcp`")
        );
        parse("deadline-header", "no header").expect_err("a space");
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
}
