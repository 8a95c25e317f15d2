//! A word: one setting, said by somebody. Every layer but the file is turned into words here.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use crate::cli;
use crate::settings::{self, KEYS, Key, Kind, Scope, Value};

use super::Mistakes;
use super::capture::{HOST_IP, POD_IP};
use super::listen::ListenText;
use super::pod::Source;

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
    /// An annotation of the pod template, as it was when the pod was made.
    Template,
    /// The namespace's ConfigMap.
    ConfigMap {
        /// Which of its keys.
        key: &'static str,
        /// Where in it.
        line: Option<u64>,
    },
    /// An annotation that was edited on the live pod.
    Annotation,
    /// What the operator lets nobody exceed.
    Ceilings,
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
    pub(super) pod: PodTexts,
    pub(super) injected: Injected,
}

/// What the injector said, and the pod itself.
#[derive(Debug, Default)]
pub(super) struct Injected {
    pub(super) app_probes: Option<(String, Origin)>,
    pub(super) drain_partial: bool,
    /// `TIDEGATE_POD_IP`: this is a pod, and these are its addresses.
    pub(super) pod: Option<String>,
}

/// What is said about the pod, before any of it is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct PodTexts {
    pub(super) annotations: Option<PathBuf>,
    pub(super) namespace_config: Option<PathBuf>,
    pub(super) workload: Option<String>,
    pub(super) template_annotations: Option<String>,
    pub(super) ceilings: Option<String>,
    pub(super) allowed: Option<String>,
    pub(super) watch: bool,
}

impl PodTexts {
    pub(super) fn of_flags(flags: &cli::Pod) -> Self {
        Self {
            annotations: flags.annotations.clone(),
            namespace_config: flags.namespace_config.clone(),
            workload: flags.workload.clone(),
            template_annotations: flags.template_annotations.clone(),
            ceilings: flags.ceilings.clone(),
            allowed: flags.allowed_annotations.clone(),
            watch: flags.watch_own_pod,
        }
    }

    /// What is not said here, `weaker` says.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            annotations: self.annotations.or(weaker.annotations),
            namespace_config: self.namespace_config.or(weaker.namespace_config),
            workload: self.workload.or(weaker.workload),
            template_annotations: self.template_annotations.or(weaker.template_annotations),
            ceilings: self.ceilings.or(weaker.ceilings),
            allowed: self.allowed.or(weaker.allowed),
            watch: self.watch || weaker.watch,
        }
    }

    /// Take the variable if it is one of these; an empty one says nothing, but an empty list is one.
    fn take(&mut self, name: &str, text: &str) -> bool {
        if name == "ALLOWED_ANNOTATIONS" {
            self.allowed = Some(text.to_owned());
            return true;
        }
        let text = Some(text).filter(|text| !text.is_empty());
        match name {
            "ANNOTATIONS" => self.annotations = text.map(PathBuf::from),
            "NAMESPACE_CONFIG" => self.namespace_config = text.map(PathBuf::from),
            "WORKLOAD" => self.workload = text.map(str::to_owned),
            "TEMPLATE_ANNOTATIONS" => self.template_annotations = text.map(str::to_owned),
            "CEILINGS" => self.ceilings = text.map(str::to_owned),
            "WATCH_OWN_POD" => self.watch = text == Some("true"),
            _ => return false,
        }
        true
    }

    /// Whether somebody says that this is a pod.
    pub(super) fn is_a_pod(&self) -> bool {
        self.watch
            || self.annotations.is_some()
            || self.namespace_config.is_some()
            || self.template_annotations.is_some()
            || self.ceilings.is_some()
            || self.allowed.is_some()
    }
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
        if !has_ports(key, port, &origin, mistakes) {
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

/// Whether the setting can be said of `port`.
fn has_ports(key: &Key, port: Option<u16>, origin: &Origin, mistakes: &mut Mistakes) -> bool {
    let stranger = port.is_some() && key.scope == Scope::Process;
    if stranger {
        mistakes.add(full_name(key, port), None, origin, "belongs to the process, not to a port");
    }
    !stranger
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
    said.injected.drain_partial = run.injected.drain_partial;
    said.injected.app_probes = run.injected.app_probes.clone().map(|text| (text, Origin::Flag));
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
        if name == POD_IP {
            said.injected.pod = raw.into_string().ok();
            continue;
        }
        // What else a pod knows about itself is for `tidegate capture`.
        if is_service_link(rest) || name == HOST_IP {
            continue;
        }
        let origin = Origin::Environment(name.to_owned());
        let Some(text) = utf8(name, &raw, &origin, mistakes) else {
            continue;
        };
        if said.pod.take(rest, text) {
            continue;
        }
        match rest {
            "CONFIG" => said.config = Some(PathBuf::from(text)),
            "APP_PROBES" => said.injected.app_probes = Some((text.to_owned(), origin)),
            "DRAIN_PARTIAL" => match Kind::Switch.parse(text) {
                Ok(value) => said.injected.drain_partial = value == Value::Switch(true),
                Err(problem) => mistakes.add("drain-partial", Some(text), origin, problem),
            },
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
    has_ports(key, port, &Origin::Live, mistakes).then_some((key, port))
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

impl Origin {
    /// Who that is in a pod.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::File { .. } | Self::Environment(_) | Self::Flag => Source::Operator,
            Self::Template => Source::Template,
            Self::ConfigMap { key: "_all", .. } => Source::Namespace,
            Self::ConfigMap { .. } => Source::Workload,
            Self::Annotation => Source::Annotations,
            Self::Live => Source::Live,
            Self::Ceilings => Source::Ceilings,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{} line {line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
            Self::Template => f.write_str("annotation of the pod template"),
            Self::ConfigMap { key, line: Some(line) } => {
                write!(f, "ConfigMap, key {key}, line {line}")
            }
            Self::ConfigMap { key, line: None } => write!(f, "ConfigMap, key {key}"),
            Self::Annotation => f.write_str("annotation"),
            Self::Ceilings => f.write_str("ceilings"),
            Self::Live => f.write_str("live change"),
        }
    }
}
