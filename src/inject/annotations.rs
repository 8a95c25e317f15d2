//! What a pod's annotations ask for: settings of the gateway, and words that only the injector reads.
//!
//! Always true: what is asked for has been checked against the settings' own table, is on the operator's list,
//! and, where the injector is the one who obeys it, within the operator's ceilings. Everything else is a mistake
//! that names the key, the value and what is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::operator::{Capture, Terms};
use super::quantity::{self, Quantity};
use crate::settings::{self, Key, OPERATORS, Scope, Value};

/// What every annotation of ours begins with.
pub const PREFIX: &str = "tidegate.dev/";
/// What those begin with that may still change.
const ALPHA: &str = "alpha.tidegate.dev/";

/// Written by the injector; nobody else's business.
const OUTPUTS: [&str; 3] = ["status", "injected-version", "original"];

/// What was meant by a name that is none is looked for so often, and in names that are no longer than this: it
/// takes a while, and of both a pod may have as much as fits into it.
const MOST_GUESSES: usize = 16;
const LONGEST_GUESSED: usize = 64;

const NO_SETTING: &str = "is no setting; README.md lists them";

/// An annotation that only the injector reads.
struct Word {
    name: &'static str,
    allowed: &'static str,
    default: &'static str,
    help: &'static str,
}

const CAPTURES: &str = "one of `auto`, `redirect`, `listen`";
const PORTS: &str = "numbers, ranges or names of container ports with commas between, such as \
                     `8080,http,9000-9100`, or `all`, or `none`";

/// Every annotation that only the injector reads, in the order it is documented.
const WORDS: [Word; 7] = [
    Word {
        name: "capture",
        allowed: CAPTURES,
        default: "`auto`: `redirect` unless Pod Security, a mesh or a platform that gives users forbids it",
        help: "how connections get to the gateway: the kernel redirects them, or it listens on ports of its own, to which the names of the application's are moved",
    },
    Word {
        name: "include-inbound-ports",
        allowed: PORTS,
        default: "container ports named `http*`, `grpc*`, `h2c*`",
        help: "ports that are gated",
    },
    Word {
        name: "exclude-inbound-ports",
        allowed: PORTS,
        default: "`none`",
        help: "ports that are not, whatever includes them",
    },
    Word {
        name: "sidecar-cpu-request",
        allowed: quantity::ALLOWED,
        default: "the operator's",
        help: "CPU the sidecar asks for; the pod keeps its class of service",
    },
    Word {
        name: "sidecar-cpu-limit",
        allowed: quantity::ALLOWED,
        default: "the operator's",
        help: "CPU the sidecar may use; heeded where every container of the pod has such a limit",
    },
    Word {
        name: "sidecar-memory-request",
        allowed: quantity::ALLOWED,
        default: "the operator's",
        help: "memory the sidecar asks for",
    },
    Word {
        name: "sidecar-memory-limit",
        allowed: quantity::ALLOWED,
        default: "the operator's",
        help: "memory the sidecar may use",
    },
];

/// What is asked for, and is allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    pub(super) capture: Option<Capture>,
    pub(super) include: Option<Vec<PortWord>>,
    pub(super) exclude: Option<Vec<PortWord>>,
    pub(super) cpu_request: Option<Quantity>,
    pub(super) cpu_limit: Option<Quantity>,
    pub(super) memory_request: Option<Quantity>,
    pub(super) memory_limit: Option<Quantity>,
    /// Settings of the gateway, by their names without prefix: `limit`, `limit.8080`.
    pub(super) settings: BTreeMap<String, String>,
    /// Everything that is said and may be, right or wrong, by its name without prefix: the sidecar has to know
    /// what was there from the beginning, so that it sees what is edited later.
    pub(super) found: BTreeMap<String, String>,
}

/// Some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortWord {
    All,
    Range(u16, u16),
    Name(String),
}

/// An annotation that is not heeded, or not as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The whole key.
    pub key: String,
    /// What was written.
    pub value: String,
    /// What is wrong with it and what would be right, to be read after both.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 100;
        let Self { key, value, problem } = self;
        let shown: String = value.chars().take(SHOWN).collect();
        let more = if shown.len() < value.len() { "…" } else { "" };
        write!(f, "annotation {key}: {shown:?}{more} {problem}")
    }
}

/// What these annotations ask for, and every mistake in them. `guaranteed`: they are of a pod where every container
/// asks for all that it may use.
pub(super) fn judge(
    annotations: &BTreeMap<String, String>,
    terms: &Terms<'_>,
    guaranteed: bool,
) -> (Wishes, Vec<Mistake>) {
    let mut wishes = Wishes::default();
    let mut mistakes = Vec::new();
    for (key, value) in annotations {
        let (name, alpha) = match (key.strip_prefix(PREFIX), key.strip_prefix(ALPHA)) {
            (Some(name), _) => (name, false),
            (None, Some(name)) => (name, true),
            _ => continue,
        };
        if !alpha && OUTPUTS.contains(&name) {
            continue;
        }
        let judged = if name == "inject" || name == "revision" {
            Err("is a label: write it under `labels`".to_owned())
        } else if alpha {
            Err("is no annotation of this version; none begins with `alpha.`".to_owned())
        } else {
            let guess = mistakes.len() < MOST_GUESSES && name.len() <= LONGEST_GUESSED;
            one(name, value, terms, guaranteed, guess, &mut wishes)
        };
        if let Err(problem) = judged {
            mistakes.push(Mistake { key: key.clone(), value: value.clone(), problem });
        }
    }
    mistakes.extend(enforcing_nothing(&wishes, terms));
    (wishes, mistakes)
}

/// Enforcing needs something to enforce.
fn enforcing_nothing(wishes: &Wishes, terms: &Terms<'_>) -> Vec<Mistake> {
    let limited = |port: Option<&str>| {
        let said = |name: &str| {
            let own = port.and_then(|port| {
                let full = format!("{name}.{port}");
                wishes.settings.get(&full).or(terms.defaults.get(&full))
            });
            own.or(wishes.settings.get(name)).or(terms.defaults.get(name))
        };
        ["limit", "per-client-limit"].iter().any(|name| said(name).is_some_and(|n| n != "none"))
    };
    let of_ports = |plain: &str| {
        let dotted = format!("{plain}.");
        wishes.settings.keys().any(|key| key.starts_with(&dotted))
    };
    let modes = wishes.settings.iter().filter(|(name, value)| {
        let (plain, port) = match name.split_once('.') {
            Some((plain, port)) => (plain, Some(port)),
            None => (name.as_str(), None),
        };
        let somewhere = port.is_none() && (of_ports("limit") || of_ports("per-client-limit"));
        plain == "mode" && value.as_str() == "enforce" && !limited(port) && !somewhere
    });
    let mistake = |(name, value): (&String, &String)| Mistake {
        key: format!("{PREFIX}{name}"),
        value: value.clone(),
        problem: "needs a `limit` or a `per-client-limit` to enforce".into(),
    };
    modes.map(mistake).collect()
}

/// What an operator writes as a default or a ceiling, which has no prefix and no list to be on.
pub(super) fn check_default(name: &str, value: &str) -> Result<(), String> {
    match WORDS.iter().find(|word| word.name == name) {
        Some(_) if name == "capture" => Err("has a place of its own: `capture`".into()),
        Some(word) => wish(word, value, &mut Wishes::default()),
        None => setting(name, value).map(|_| ()),
    }
}

/// A ceiling has to be of something that has more and less.
pub(super) fn check_ceiling(name: &str, value: &str) -> Result<(), String> {
    if name.contains('.') {
        return Err("is for all ports: leave the port away".into());
    }
    if quantity_of(name).is_some() {
        return Quantity::parse(value).map(|_| ()).ok_or(format!("must be {}", quantity::ALLOWED));
    }
    match measure(&setting(name, value)?) {
        Some(_) => Ok(()),
        None => Err("has no more and less, so it can have no ceiling".into()),
    }
}

/// What defaults of the operator say to the injector itself.
pub(super) fn defaults(terms: &Terms<'_>) -> Wishes {
    let mut wishes = Wishes::default();
    for word in &WORDS {
        if let Some(value) = terms.defaults.get(word.name) {
            // Operators' words were checked when they were read.
            let _ = wish(word, value, &mut wishes);
        }
    }
    wishes
}

/// Whether there is such an annotation, and it is not the operator's own.
pub(super) fn is_known(name: &str) -> bool {
    is_word(name) || settings::find(name).is_some() && !OPERATORS.contains(&name)
}

/// Whether a name is one of those that only the injector reads.
pub(super) fn is_word(name: &str) -> bool {
    WORDS.iter().any(|word| word.name == name)
}

/// The annotations that only the injector reads, as the README shows them, in Markdown.
pub fn annotations_table() -> String {
    let mut table = String::from("| annotation | value | default | |\n|---|---|---|---|\n");
    for Word { name, allowed, default, help } in &WORDS {
        table += &format!("| `{PREFIX}{name}` | {allowed} | {default} | {help} |\n");
    }
    table
}

fn one(
    name: &str,
    value: &str,
    terms: &Terms<'_>,
    guaranteed: bool,
    guess: bool,
    wishes: &mut Wishes,
) -> Result<(), String> {
    let plain = name.split_once('.').map_or(name, |(plain, _)| plain);
    let word = WORDS.iter().find(|word| word.name == name);
    let allowed = terms.allowed.iter().any(|known| known == "*" || known == plain);
    let known = word.is_some() || settings::find(plain).is_some();
    if known && !allowed {
        return Err(match terms.allowed {
            [] => "is not heeded: the operator allows none".into(),
            some => format!("is not heeded: the operator allows only {}", some.join(", ")),
        });
    }
    if OPERATORS.contains(&plain) {
        return Err("is not heeded: this is the operator's to set, no annotation changes it".into());
    }
    wishes.found.insert(name.to_owned(), value.to_owned());
    match word {
        Some(word) => {
            wish(word, value, wishes)?;
            match (quantity_of(name), ceiling_of(name, terms, guaranteed)) {
                (Some(of), Some(ceiling)) if of(wishes).as_ref() > Some(&ceiling) => {
                    let problem =
                        format!("is above the operator's ceiling, {ceiling}, which it gets");
                    *of(wishes) = Some(ceiling);
                    Err(problem)
                }
                _ => Ok(()),
            }
        }
        None if !known && !guess => Err(NO_SETTING.into()),
        None => {
            let parsed = setting(name, value)?;
            // The sidecar itself keeps to the ceilings, live changes included.
            wishes.settings.insert(name.to_owned(), value.to_owned());
            let ceiling = terms.ceilings.get(plain).map(String::as_str);
            match ceiling.map(|ceiling| (ceiling, setting(plain, ceiling))) {
                Some((ceiling, Ok(most))) if measure(&parsed) > measure(&most) => {
                    Err(format!("is above the operator's ceiling, {ceiling}, which it gets"))
                }
                _ => Ok(()),
            }
        }
    }
}

/// The most that annotations may ask for of a quantity. Who asks for more than the usual limit gets it as the limit,
/// and in a pod where both are the same a limit is what is asked for: there the other's ceiling counts too.
fn ceiling_of(name: &str, terms: &Terms<'_>, guaranteed: bool) -> Option<Quantity> {
    let (own, other) = match name.strip_suffix("-request") {
        Some(of) => (name, Some(format!("{of}-limit"))),
        None if guaranteed => (name, Some(name.replace("-limit", "-request"))),
        None => (name, None),
    };
    let ceiling = |name: &str| Quantity::parse(terms.ceilings.get(name)?);
    match (ceiling(own), other.and_then(|other| ceiling(&other))) {
        (Some(own), Some(other)) => Some(if other < own { other } else { own }),
        (own, other) => own.or(other),
    }
}

/// A setting of the gateway, with or without a port.
fn setting(name: &str, value: &str) -> Result<Value, String> {
    let (plain, port) = match name.split_once('.') {
        Some((plain, port)) => (plain, Some(port)),
        None => (name, None),
    };
    let Some(key) = settings::find(plain) else {
        let meant = settings::nearest(plain).map(str::to_owned).or_else(|| nearest_word(plain));
        return Err(match meant {
            Some(meant) => format!("is no setting; did you mean `{PREFIX}{meant}`?"),
            None => NO_SETTING.into(),
        });
    };
    if let Some(port) = port {
        for_port(key, port)?;
    }
    key.kind.parse(value)
}

fn for_port(key: &Key, port: &str) -> Result<(), String> {
    if key.scope == Scope::Process {
        return Err(format!("belongs to the process, not to a port: write `{PREFIX}{}`", key.name));
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if number != 0 && digits => Ok(()),
        _ => Err(format!("must name the port by its number, such as `{PREFIX}{}.8080`", key.name)),
    }
}

fn nearest_word(name: &str) -> Option<String> {
    let alike = WORDS.iter().map(|word| (strsim::jaro_winkler(word.name, name), word.name));
    let best = alike.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.85).map(|(_, name)| name.to_owned())
}

/// How much it is, for those that have more and less. No number at all is the most of all, but it is also
/// what holds when nobody says anything, so nobody is told about it.
fn measure(value: &Value) -> Option<u128> {
    match value {
        Value::Count(count) => count.map(u128::from),
        Value::Duration(duration) => duration.as_ref().map(Duration::as_nanos),
        Value::Ratio(parts) => Some(u128::from(*parts)),
        _ => None,
    }
}

type Place = fn(&mut Wishes) -> &mut Option<Quantity>;

fn quantity_of(name: &str) -> Option<Place> {
    match name {
        "sidecar-cpu-request" => Some(|wishes| &mut wishes.cpu_request),
        "sidecar-cpu-limit" => Some(|wishes| &mut wishes.cpu_limit),
        "sidecar-memory-request" => Some(|wishes| &mut wishes.memory_request),
        "sidecar-memory-limit" => Some(|wishes| &mut wishes.memory_limit),
        _ => None,
    }
}

fn wish(word: &Word, value: &str, wishes: &mut Wishes) -> Result<(), String> {
    let refused = || format!("must be {}", word.allowed);
    if let Some(of) = quantity_of(word.name) {
        *of(wishes) = Some(Quantity::parse(value).ok_or_else(refused)?);
        return Ok(());
    }
    match word.name {
        "capture" => {
            wishes.capture = Some(match value {
                "auto" => Capture::Auto,
                "redirect" => Capture::Redirect,
                "listen" => Capture::Listen,
                _ => return Err(refused()),
            });
        }
        "include-inbound-ports" => wishes.include = Some(ports(value).ok_or_else(refused)?),
        _ => wishes.exclude = Some(ports(value).ok_or_else(refused)?),
    }
    Ok(())
}

fn ports(text: &str) -> Option<Vec<PortWord>> {
    match text.trim() {
        "all" => return Some(vec![PortWord::All]),
        "none" => return Some(Vec::new()),
        _ => {}
    }
    let words: Option<Vec<_>> = text.split(',').map(|part| port_word(part.trim())).collect();
    words.filter(|words| words.len() <= 100)
}

fn port_word(text: &str) -> Option<PortWord> {
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| *port != 0 && digits)
    };
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    if numeric {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        return (first <= last).then_some(PortWord::Range(first, last));
    }
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (plain && text.len() <= 15).then(|| PortWord::Name(text.to_owned()))
}
