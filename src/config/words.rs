//! A word: one setting, said by somebody. Every layer but the file is turned into words here.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use crate::cli;
use crate::settings::{self, KEYS, Key, Scope, Value};

use super::Mistakes;
use super::capture::{HOST_IP, POD_IP};
use super::listen::ListenText;

/// One setting, said by somebody, with a value that is allowed.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) key: &'static Key,
    /// The port it is about; `None`: all of them.
    pub(super) port: Option<u16>,
    pub(super) value: Value,
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// Who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File {
        /// Its path.
        path: PathBuf,
        /// Where in it.
        line: Option<u64>,
    },
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag,
    /// `tidegate set`.
    Live,
}

/// What flags or environment said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) words: Vec<Word>,
    pub(super) listen: Vec<ListenText>,
    pub(super) config: Option<PathBuf>,
    pub(super) runtime_dir: Option<PathBuf>,
}

impl Word {
    /// Accept a word, or note the mistake.
    pub(super) fn parse(
        key: &'static Key,
        port: Option<u16>,
        text: String,
        origin: Origin,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        if port.is_some() && key.scope == Scope::Process {
            mistakes.add(
                full_name(key, port),
                None,
                origin,
                "belongs to the process, not to a port",
            );
            return None;
        }
        match key.kind.parse(&text) {
            Ok(value) => Some(Self { key, port, value, text, origin }),
            Err(problem) => {
                mistakes.add(full_name(key, port), Some(&text), origin, problem);
                None
            }
        }
    }

    /// `limit` or `limit.8080`.
    pub(super) fn name(&self) -> String {
        full_name(self.key, self.port)
    }
}

pub(super) fn full_name(key: &Key, port: Option<u16>) -> String {
    port.map_or(key.name.to_owned(), |port| format!("{}.{port}", key.name))
}

/// `--limit 5`, `--limit 8080=5`.
pub(super) fn of_flags(run: &cli::Run, mistakes: &mut Mistakes) -> Said {
    let mut said = Said::default();
    for (key, raw) in &run.settings.0 {
        let Some(text) = utf8(key.name, raw, &Origin::Flag, mistakes) else {
            continue;
        };
        let (port, text) = match text.split_once('=') {
            Some((port, rest)) if key.scope == Scope::Port => {
                let Some(port) = parse_port(key.name, port, &Origin::Flag, mistakes) else {
                    continue;
                };
                (Some(port), rest)
            }
            _ => (None, text),
        };
        said.words.extend(Word::parse(key, port, text.to_owned(), Origin::Flag, mistakes));
    }
    for raw in &run.listen {
        if let Some(text) = utf8("listen", raw, &Origin::Flag, mistakes) {
            said.listen.extend(ListenText::split(text, Origin::Flag, mistakes));
        }
    }
    said
}

/// `TIDEGATE_LIMIT=5`, `TIDEGATE_LIMIT_8080=5`.
pub(super) fn of_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    mistakes: &mut Mistakes,
) -> Said {
    let mut said = Said::default();
    for (name, raw) in variables {
        if name == "XDG_RUNTIME_DIR" {
            said.runtime_dir = Some(PathBuf::from(raw));
            continue;
        }
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix("TIDEGATE_") else {
            continue;
        };
        // What a pod knows about itself is for `tidegate capture`.
        if is_service_link(rest) || [POD_IP, HOST_IP].contains(&name) {
            continue;
        }
        let origin = Origin::Environment(name.to_owned());
        let Some(text) = utf8(name, &raw, &origin, mistakes) else {
            continue;
        };
        match rest {
            "CONFIG" => said.config = Some(PathBuf::from(text)),
            "LISTEN" => {
                for text in text.split(',') {
                    said.listen.extend(ListenText::split(text.trim(), origin.clone(), mistakes));
                }
            }
            _ => {
                let Some((key, port)) = variable(rest) else {
                    unknown(&rest.to_lowercase().replace('_', "-"), &origin, mistakes);
                    continue;
                };
                said.words.extend(Word::parse(key, port, text.to_owned(), origin, mistakes));
            }
        }
    }
    said
}

/// The key of a live change, if it is one that can change while the gateway runs.
pub(super) fn live_key(
    name: &str,
    text: &str,
    mistakes: &mut Mistakes,
) -> Option<(&'static Key, Option<u16>)> {
    let (key, port) = dotted(name, &Origin::Live, mistakes)?;
    if !key.live {
        mistakes.add(
            name,
            Some(text),
            Origin::Live,
            "needs a restart: it cannot change while the gateway runs",
        );
        return None;
    }
    Some((key, port))
}

/// `limit` or `limit.8080`, as in the file and in live changes.
pub(super) fn dotted(
    name: &str,
    origin: &Origin,
    mistakes: &mut Mistakes,
) -> Option<(&'static Key, Option<u16>)> {
    let (bare, port) = match name.split_once('.') {
        Some((bare, port)) => (bare, Some(port)),
        None => (name, None),
    };
    let Some(key) = settings::find(bare) else {
        unknown(name, origin, mistakes);
        return None;
    };
    match port {
        None => Some((key, None)),
        Some(port) => parse_port(bare, port, origin, mistakes).map(|port| (key, Some(port))),
    }
}

pub(super) fn parse_port(
    key: &str,
    text: &str,
    origin: &Origin,
    mistakes: &mut Mistakes,
) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| *port != 0 && digits);
    if port.is_none() {
        mistakes.add(key, Some(text), origin, "names no port: a port is a number from 1 to 65535");
    }
    port
}

pub(super) fn unknown(name: &str, origin: &Origin, mistakes: &mut Mistakes) {
    let problem = match settings::nearest(name) {
        Some(meant) => format!("is no setting; did you mean `{meant}`?"),
        None => {
            let all: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("is no setting; there are {}", all.join(", "))
        }
    };
    mistakes.add(name, None, origin, problem);
}

fn variable(rest: &str) -> Option<(&'static Key, Option<u16>)> {
    let find = |name: &str| settings::find(&name.to_lowercase().replace('_', "-"));
    if let Some(key) = find(rest) {
        return Some((key, None));
    }
    let (name, port) = rest.rsplit_once('_')?;
    Some((find(name)?, Some(port.parse().ok()?)))
}

/// Kubernetes tells every container about the Services of its namespace in such variables; a
/// Service called `tidegate` must not stop the gateway.
fn is_service_link(rest: &str) -> bool {
    let padded = format!("_{rest}_");
    padded.contains("_SERVICE_HOST_")
        || padded.contains("_SERVICE_PORT_")
        || padded.contains("_PORT_")
}

fn utf8<'a>(
    name: &str,
    raw: &'a OsStr,
    origin: &Origin,
    mistakes: &mut Mistakes,
) -> Option<&'a str> {
    let text = raw.to_str();
    if text.is_none() {
        mistakes.add(name, Some(&raw.to_string_lossy()), origin, "is not UTF-8");
    }
    text
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{} line {line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
            Self::Live => f.write_str("live change"),
        }
    }
}
