//! The table of every setting: the one place that knows a setting's name, what may be written, its
//! default, and whether it can change while the gateway runs. Flags, environment, file, `tidegate
//! set`, error texts and the README's table all come from it.
//!
//! Always true: a value accepted by [`Kind::parse`] needs no further check on its own; what remains
//! for `config` is how settings fit together.

mod kind;

use std::fmt;

pub use kind::{Kind, Value, WHOLE};

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

/// No application carries more at once; beyond it somebody has mistyped.
pub const MAX_COUNT: u32 = 1_000_000;

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

impl fmt::Display for Default {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Text(text) | Rule(text)) = self;
        f.write_str(text)
    }
}

/// Every setting, in the order it is documented.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("mode", choice(&["enforce", "observe", "off"]), Port, LIVE, Rule("enforce with a limit, else observe"),
        "obey the limits, only count what they would do, or pass everything"),
    key("capture", Kind::AddressOr("none"), Process, RESTART, Text("none"),
        "listen here for connections that `tidegate capture install` redirects; each is carried to the address it called"),
    key("include-inbound-ports", Kind::Ports, Process, RESTART, Rule("all that are captured; `capture install` wants to be told"),
        "captured ports that are gated; what comes to others is passed"),
    key("exclude-inbound-ports", Kind::Ports, Process, RESTART, Text("none"),
        "ports that are never gated"),
    key("protocol", choice(&["auto", "http", "tcp"]), Port, RESTART, Text("auto"),
        "what the port carries; auto: the client's first bytes tell. Slots are requests of HTTP, connections of TCP"),
    key("limit", count(1, MAX_COUNT, Some("none")), Port, LIVE, Text("none"),
        "requests (TCP: connections) the application has at once"),
    key("shadow-limits", Kind::Counts { max: MAX_COUNT, most: crate::limit::MAX_SHADOW_LIMITS }, Port, LIVE,
        Rule("25,50,100,200,400 while observing"), "limits that are only tried out, on live traffic"),
    key("queue-length", count(0, MAX_COUNT, None), Port, LIVE, Rule("max(limit, 16)"),
        "requests (TCP: connections) that may wait for a slot; 0: none waits"),
    key("queue-timeout", TIMEOUT, Port, LIVE, Rule("1s, on a port that is tcp 5s"),
        "the longest anybody waits before being refused"),
    key("per-client-limit", count(1, MAX_COUNT, Some("none")), Port, LIVE, Text("none"),
        "requests (TCP: connections) one source address may have, active and waiting"),
    key("per-client-header", Kind::Header, Port, RESTART, Text("none"),
        "request header whose value is the client of per-client-limit, such as a tenant's name set by something you trust; without it, the address"),
    key("max-connections", count(1, MAX_COUNT, None), Process, RESTART, Rule("from RLIMIT_NOFILE"),
        "connections the gateway itself holds, in whatever stage"),
    key("refuse-status", choice(&["503", "429"]), Port, LIVE, Text("503"),
        "what a request is told for which there is no room"),
    key("deadline-status", choice(&["503", "504"]), Port, LIVE, Text("503"),
        "what a request is told that cannot be served before its deadline; gRPC is always told DEADLINE_EXCEEDED"),
    key("grpc-refuse-status", choice(&["unavailable", "resource-exhausted"]), Port, LIVE, Text("unavailable"),
        "what a call of gRPC is told for which there is no room"),
    key("http2-refuse", choice(&["answer", "reset"]), Port, LIVE, Text("answer"),
        "what a request of HTTP/2 sees that may come again: the answer, or REFUSED_STREAM, at which clients repeat it at once"),
    key("tcp-refuse", choice(&["close", "reset", "hold"]), Port, LIVE, Text("close"),
        "what a refused client sees: FIN, RST, or nothing (it waits in the kernel's backlog)"),
    key("connect-timeout", TIMEOUT, Port, LIVE, Text("1s"),
        "how long the application may take to accept a connection"),
    key("idle-timeout", Kind::Duration { zero: false, word: Some("none") }, Port, LIVE, Text("none"),
        "how long nothing may move before a connection is closed; of HTTP also a request: 504 if it has no answer yet, else it is broken off"),
    key("write-stall-timeout", TIMEOUT, Port, LIVE, Text("30s"),
        "how long a side may leave bytes untaken before the connection is reset, or the stream where it carries several"),
    key("header-timeout", TIMEOUT, Port, LIVE, Text("10s"),
        "how long the head of a request may take, from its first byte; and the first byte of a new connection"),
    key("body-timeout", TIMEOUT, Port, LIVE, Text("10s"),
        "how long a request may keep the application waiting for its body, and a second more for every 500 bytes of it; no bound for gRPC, nor while the answer is on its way"),
    key("abandon-timeout", TIMEOUT, Port, LIVE, Text("30s"),
        "how long the application may take to end once its client has left"),
    key("queued-half-close", choice(&["gone", "keep"]), Port, RESTART, Text("gone"),
        "what a client's FIN means while it waits: it has left, or it waits for the answer"),
    key("app-http2", choice(&["auto", "always", "never"]), Port, RESTART, Text("auto"),
        "speak HTTP/2 to the application; auto: to those that understand it, for clients that speak it"),
    key("app-keepalive", TIMEOUT, Port, LIVE, Text("1500ms"),
        "how long an idle connection to the application is kept, of HTTP/2 up to twice as long; less than it keeps its own, so that we close first"),
    key("max-header-bytes", count(8192, 1 << 20, None), Port, LIVE, Text("32768"),
        "the longest head of a request; a longer one is answered 431"),
    key("http2-max-streams", count(1, 10_000, None), Port, LIVE, Text("100"),
        "requests under way on one HTTP/2 connection, waiting ones too"),
    key("deadline-header", Kind::Header, Port, RESTART, Text("none"),
        "request header that says how long the client waits, as 1500 (ms) or 2s; grpc-timeout always does"),
    key("forwarded", choice(&["x-forwarded", "forwarded", "both", "none"]), Port, RESTART, Text("x-forwarded"),
        "request headers that tell the application who the client is"),
    key("via", Kind::Switch, Port, RESTART, Text("false"),
        "add Via to requests; nginx does not compress answers to requests that have it"),
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
        "address of /livez, /readyz, /startupz, /app-probe/… and /drain/wait"),
    key("metrics", Kind::Address, Process, RESTART, Text("0.0.0.0:15822"),
        "address of /metrics"),
    key("access-log", choice(&["off", "on", "with-query"]), Port, LIVE, Text("off"),
        "a JSON line on stdout for each request (TCP: connection), for open connections too; queries only if said, as they hold secrets"),
    key("trace-sampling", Kind::Ratio, Process, LIVE, Rule("0.01, or what OTEL_TRACES_SAMPLER says"),
        "how much of what begins a trace is recorded; who continues one is recorded if its caller is"),
    key("trace-max-spans", count(1, MAX_COUNT, None), Process, LIVE, Text("1000"),
        "spans recorded a second at most, whoever asks for them; one refusal a second and reason goes beyond"),
    key("log-format", choice(&["text", "json"]), Process, RESTART, Text("text"),
        "what a log line looks like"),
    key("log-level", Kind::Filter, Process, LIVE, Text("info"),
        "how much is logged: off, error, warn, info, debug, trace, or a filter such as info,tidegate=debug"),
];

/// Settings that only the operator makes: where the gateway listens, and what it costs the node. No
/// annotation and no ConfigMap of a namespace changes them.
pub const OPERATORS: &[&str] =
    &["uring-sqpoll", "admin", "control", "probe", "metrics", "log-format", "grace"];

/// Annotations under our prefix that are read when the pod is made, not by the gateway.
pub const INJECTORS: &[&str] = &["capture", "include-inbound-ports", "exclude-inbound-ports"];

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The setting a typing error was probably meant for.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.replace(['_', '.'], "-").to_lowercase();
    let alike = KEYS.iter().map(|key| (strsim::jaro_winkler(key.name, &name), key.name));
    let best = alike.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.85).map(|(_, name)| name)
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_tenants_may_not_set_is_in_the_table() {
        for name in OPERATORS.iter().chain(INJECTORS) {
            let key = find(name).expect("in the table");
            assert!(!key.live, "{name} could change at any time");
        }
    }

    #[test]
    fn near_misses_are_recognised() {
        assert_eq!(nearest("queue_length"), Some("queue-length"));
        assert_eq!(nearest("limits"), Some("limit"));
        assert_eq!(nearest("queue-lenght"), Some("queue-length"));
        assert_eq!(nearest("frobnicate"), None);
    }
}
