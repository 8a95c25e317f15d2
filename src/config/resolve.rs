//! The layers laid over each other: who wins, and the result.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::thread::available_parallelism;
use std::time::Duration;

use ::http::{HeaderName, StatusCode};
use rustix::process::{Resource, getrlimit};

use crate::access::Wanted;
use crate::admin::Setting;
use crate::capture::PortSet;
use crate::conn::http::{self, AppHttp2, Forwarded, GrpcStatus};
use crate::conn::trace::Sampling;
use crate::conn::{self, Protocol, QueuedHalfClose, TcpRefuse, Terms, TermsByPort};
use crate::io::EngineChoice;
use crate::lifecycle::AfterDrain;
use crate::limit::{self, Mode};
use crate::settings::{self, Default, KEYS, Key, Scope, Value};
use crate::{lifecycle, telemetry};

use super::listen::Listener;
use super::words::Word;
use super::{Captured, Config, Layers, PortConfig};

/// Tried out while a port only observes and nobody names others.
const SHADOW_LIMITS: [u32; 5] = [25, 50, 100, 200, 400];

/// A queue shorter than this sheds bursts that any application would have carried.
const LEAST_DEFAULT_QUEUE: u32 = 16;

/// A request that waits has somebody waiting for it; a connection may be one of a pool.
const QUEUE_TIMEOUT_HTTP: Duration = Duration::from_secs(1);
const QUEUE_TIMEOUT_TCP: Duration = Duration::from_secs(5);

/// A request in a hundred shows how things go, and costs nobody anything.
const TRACE_SAMPLING: f64 = 0.01;
/// So many ports in a list are meant one by one, and are shown from the start.
const FEW_PORTS: usize = 64;

/// Descriptors for everything that is not a connection: listeners, rings, timers, admin, logs.
const RESERVED_FDS: u64 = 64;

impl Layers {
    /// The word that holds: the strongest layer that says anything about this port; within a layer
    /// what names the port beats what does not, and the last beats the first.
    pub(super) fn word(&self, key: &Key, port: Option<u16>) -> Option<&Word> {
        self.by_strength().find_map(|layer| {
            let about = |wanted: Option<u16>| {
                layer.iter().rev().find(|word| word.key == key && word.port == wanted)
            };
            port.and_then(|port| about(Some(port))).or_else(|| about(None))
        })
    }

    /// Every layer, strongest first.
    fn by_strength(&self) -> impl Iterator<Item = &Vec<Word>> {
        let ours = [&self.flags, &self.environment, &self.file];
        std::iter::once(&self.live).chain(self.pod_layers()).chain(ours)
    }

    /// The value that holds, unless it follows from a rule.
    pub(super) fn value(&self, name: &str, port: Option<u16>) -> Option<Value> {
        let key = settings::find(name).expect("only keys of the table are asked for");
        match (self.word(key, port), key.default) {
            (Some(word), _) => Some(self.clamp(key, port, word.value.clone())),
            (None, Default::Text(text)) => {
                Some(key.kind.parse(text).expect("a test parses every default"))
            }
            (None, Default::Rule(_)) => None,
        }
    }

    pub(super) fn choice(&self, name: &str, port: Option<u16>) -> Option<&'static str> {
        match self.value(name, port) {
            Some(Value::Word(word)) => Some(word),
            _ => None,
        }
    }

    pub(super) fn count(&self, name: &str, port: Option<u16>) -> Option<u32> {
        match self.value(name, port) {
            Some(Value::Count(count)) => count,
            _ => None,
        }
    }

    fn duration(&self, name: &str, port: Option<u16>) -> Option<Duration> {
        match self.value(name, port) {
            Some(Value::Duration(duration)) => duration,
            _ => None,
        }
    }

    /// A duration that has a default and no word for "none".
    fn timeout(&self, name: &str, port: Option<u16>) -> Duration {
        self.duration(name, port).expect("the table gives it a default, and no word for none")
    }

    fn switch(&self, name: &str, port: Option<u16>) -> bool {
        self.value(name, port) == Some(Value::Switch(true))
    }

    pub(super) fn address(&self, name: &str) -> SocketAddr {
        match self.value(name, None) {
            Some(Value::Address(address)) => address,
            _ => unreachable!("the table gives every address a default"),
        }
    }

    pub(super) fn ports_of(&self, key: &Key) -> Vec<Option<u16>> {
        match key.scope {
            Scope::Process => vec![None],
            Scope::Port => {
                let listeners = self.listeners.iter().map(|l| Some(l.listen.port()));
                let captured = self.captured_by_name().into_iter().map(Some);
                // Captured ports that nobody has named yet have what is said without a port.
                let others = self.capture().map(|_| None);
                listeners.chain(captured).chain(others).collect()
            }
        }
    }

    /// Where captured connections come in.
    pub(super) fn capture(&self) -> Option<SocketAddr> {
        match self.value("capture", None) {
            Some(Value::MaybeAddress(address)) => address,
            _ => None,
        }
    }

    fn ports_named(&self, key: &str) -> Option<PortSet> {
        match self.value(key, None) {
            Some(Value::Ports(ports)) => Some(ports),
            _ => None,
        }
    }

    /// The captured ports that are gated.
    pub(super) fn included(&self) -> PortSet {
        let included = self.ports_named("include-inbound-ports").unwrap_or_else(PortSet::all);
        included.minus(&self.ports_named("exclude-inbound-ports").unwrap_or_default())
    }

    /// The captured ports that are known beforehand: short lists, and those that have settings.
    pub(super) fn captured_by_name(&self) -> BTreeSet<u16> {
        if self.capture().is_none() {
            return BTreeSet::new();
        }
        let listed = Some(self.included()).filter(|ports| ports.len() <= FEW_PORTS);
        let spoken_of = self.by_strength().flatten().filter_map(|word| word.port);
        let ours: Vec<u16> = self.listeners.iter().map(|l| l.listen.port()).collect();
        let named = listed.iter().flat_map(PortSet::iter).chain(spoken_of);
        named.filter(|port| !ours.contains(port)).collect()
    }

    pub(super) fn control(&self) -> std::path::PathBuf {
        match self.value("control", None) {
            Some(Value::Path(path)) => path,
            _ => self.default_control.clone(),
        }
    }

    /// The result. Only called when nothing is wrong.
    pub(super) fn build(&self) -> Config {
        Config {
            ports: self.listeners.iter().map(|listener| self.port(listener)).collect(),
            captured: self.capture().map(|listen| Captured { listen, terms: self.terms_by_port() }),
            engine: match self.choice("engine", None) {
                Some("uring") => EngineChoice::Uring,
                Some("epoll") => EngineChoice::Epoll,
                _ => EngineChoice::Auto,
            },
            uring_sqpoll: self.switch("uring-sqpoll", None),
            workers: workers(self.count("workers", None)),
            max_connections: self.count("max-connections", None).unwrap_or_else(max_connections),
            drain: lifecycle::Config {
                drain_delay: self.timeout("drain-delay", None),
                drain_timeout: self.duration("drain-timeout", None),
                grace: self.timeout("grace", None),
                after_drain: if self.injected.is_one { AfterDrain::Stay } else { AfterDrain::Exit },
            },
            admin: self.address("admin"),
            control: self.control(),
            probe: self.address("probe"),
            metrics: self.address("metrics"),
            log: telemetry::Config {
                json: self.choice("log-format", None) == Some("json"),
                level: match self.value("log-level", None) {
                    Some(Value::Text(level)) => level,
                    _ => unreachable!("the table gives the level a default"),
                },
            },
            export: self.otel.export.clone(),
            sampling: self.sampling(),
            app_probes: self.injected.app_probes.clone(),
            drain_partial: self.injected.drain_partial,
            ignored: self.otel.ignored.clone(),
            in_a_pod: self.in_a_pod(),
        }
    }

    /// What is recorded for traces: our own word, OpenTelemetry's, the default.
    fn sampling(&self) -> Sampling {
        let otel = self.otel.sampler;
        Sampling {
            share: Sampling::share(self.trace_ratio()),
            parent_based: otel.is_none_or(|sampler| sampler.parent_based),
            most: self.count("trace-max-spans", None).unwrap_or(u32::MAX),
        }
    }

    fn trace_ratio(&self) -> f64 {
        match self.value("trace-sampling", None) {
            Some(Value::Ratio(parts)) => f64::from(parts) / f64::from(settings::WHOLE),
            _ => self.otel.sampler.map_or(TRACE_SAMPLING, |sampler| sampler.ratio),
        }
    }

    fn port(&self, listener: &Listener) -> PortConfig {
        let Terms { protocol, gate, conn } = self.terms(Some(listener.listen.port()));
        PortConfig {
            listen: listener.listen,
            app_text: listener.app_text.clone(),
            apps: listener.apps.clone(),
            protocol,
            gate,
            conn,
        }
    }

    fn terms_by_port(&self) -> TermsByPort {
        let named = self.captured_by_name().into_iter();
        TermsByPort {
            usual: self.terms(None),
            named: named.map(|port| (port, self.terms(Some(port)))).collect(),
            gated: self.included(),
            expected: self.ports_named("include-inbound-ports").map(|_| self.included()),
        }
    }

    fn terms(&self, port: Option<u16>) -> Terms {
        Terms {
            protocol: self.protocol(port),
            gate: self.gate(port),
            conn: conn::Config {
                http: self.http(port),
                connect_timeout: self.timeout("connect-timeout", port),
                idle_timeout: self.duration("idle-timeout", port),
                write_stall_timeout: self.timeout("write-stall-timeout", port),
                abandon_timeout: self.timeout("abandon-timeout", port),
                tcp_refuse: match self.choice("tcp-refuse", port) {
                    Some("reset") => TcpRefuse::Reset,
                    Some("hold") => TcpRefuse::Hold,
                    _ => TcpRefuse::Close,
                },
                queued_half_close: match self.choice("queued-half-close", port) {
                    Some("keep") => QueuedHalfClose::Keep,
                    _ => QueuedHalfClose::Gone,
                },
                send_proxy_protocol: self.switch("send-proxy-protocol", port),
                access_log: match self.choice("access-log", port) {
                    Some("on") => Wanted::On,
                    Some("with-query") => Wanted::WithQuery,
                    _ => Wanted::Off,
                },
            },
        }
    }

    fn protocol(&self, port: Option<u16>) -> Protocol {
        match self.choice("protocol", port) {
            Some("http") => Protocol::Http,
            Some("tcp") => Protocol::Tcp,
            _ => Protocol::Auto,
        }
    }

    fn http(&self, port: Option<u16>) -> http::Config {
        http::Config {
            header_timeout: self.timeout("header-timeout", port),
            body_timeout: self.timeout("body-timeout", port),
            max_head: self.count("max-header-bytes", port).map_or(usize::MAX, |n| n as usize),
            max_streams: self.count("http2-max-streams", port).unwrap_or(u32::MAX),
            app_keepalive: self.timeout("app-keepalive", port),
            statuses: http::Statuses {
                no_room: match self.choice("refuse-status", port) {
                    Some("429") => StatusCode::TOO_MANY_REQUESTS,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                },
                deadline: match self.choice("deadline-status", port) {
                    Some("504") => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                },
                grpc_no_room: match self.choice("grpc-refuse-status", port) {
                    Some("resource-exhausted") => GrpcStatus::ResourceExhausted,
                    _ => GrpcStatus::Unavailable,
                },
                resets: self.choice("http2-refuse", port) == Some("reset"),
            },
            per_client_header: self.header("per-client-header", port),
            deadline_header: self.header("deadline-header", port),
            app_http2: match self.choice("app-http2", port) {
                Some("always") => AppHttp2::Always,
                Some("never") => AppHttp2::Never,
                _ => AppHttp2::Auto,
            },
            forwarded: match self.choice("forwarded", port) {
                Some("forwarded") => Forwarded::Forwarded,
                Some("both") => Forwarded::Both,
                Some("none") => Forwarded::Nothing,
                _ => Forwarded::XForwarded,
            },
            via: self.switch("via", port),
        }
    }

    fn header(&self, key: &str, port: Option<u16>) -> Option<HeaderName> {
        match self.value(key, port) {
            Some(Value::Text(name)) if name != "none" => name.parse().ok(),
            _ => None,
        }
    }

    fn queue_timeout(&self, port: Option<u16>) -> Duration {
        let default = match self.protocol(port) {
            Protocol::Tcp => QUEUE_TIMEOUT_TCP,
            Protocol::Auto | Protocol::Http => QUEUE_TIMEOUT_HTTP,
        };
        self.duration("queue-timeout", port).unwrap_or_else(|| {
            match self.at_most("queue-timeout", port, Value::Duration(Some(default))) {
                Value::Duration(Some(timeout)) => timeout,
                _ => default,
            }
        })
    }

    /// What follows from a rule has the same ceilings as what is said.
    fn at_most(&self, name: &str, port: Option<u16>, value: Value) -> Value {
        let key = settings::find(name).expect("only keys of the table are asked for");
        self.clamp(key, port, value)
    }

    fn gate(&self, port: Option<u16>) -> limit::Settings {
        let limit = self.count("limit", port).and_then(NonZeroU32::new);
        let per_client_limit = self.count("per-client-limit", port).and_then(NonZeroU32::new);
        let mode = match (self.choice("mode", port), limit) {
            (Some("enforce"), _) | (None, Some(_)) => Mode::Enforce,
            (Some("off"), _) => Mode::Off,
            _ => Mode::Observe,
        };
        let nothing = limit.is_none() && per_client_limit.is_none();
        let mode = match mode {
            // By hand that is a mistake; in a pod, where nobody is there to correct it, it is safe.
            Mode::Enforce if nothing || self.distrusted(port).is_some() => Mode::Observe,
            mode => mode,
        };
        let default_queue = limit.map_or(0, NonZeroU32::get).max(LEAST_DEFAULT_QUEUE);
        let shadows = match self.value("shadow-limits", port) {
            Some(Value::Counts(list)) => list,
            _ if mode == Mode::Observe => SHADOW_LIMITS.to_vec(),
            _ => Vec::new(),
        };
        limit::Settings {
            mode,
            limit,
            queue_length: self.count("queue-length", port).unwrap_or_else(|| {
                match self.at_most("queue-length", port, Value::Count(Some(default_queue))) {
                    Value::Count(Some(length)) => length,
                    _ => default_queue,
                }
            }),
            queue_timeout: self.queue_timeout(port),
            per_client_limit,
            shadow_limits: shadows.into_iter().filter_map(NonZeroU32::new).collect(),
        }
    }

    /// Every setting in force and who said so, for people.
    pub fn describe(&self) -> Vec<Setting> {
        let mut list: Vec<_> = self
            .listeners
            .iter()
            .map(|l| Setting {
                key: "listen",
                port: Some(l.listen.port()),
                value: format!("{}={}", l.listen_text, l.app_text),
                origin: l.origin.to_string(),
            })
            .collect();
        for key in KEYS {
            list.extend(self.ports_of(key).into_iter().map(|port| self.setting(key, port)));
        }
        list
    }

    fn setting(&self, key: &'static Key, port: Option<u16>) -> Setting {
        let (value, origin) = match (self.word(key, port), key.default) {
            (Some(word), _) if key.name == "mode" => self.mode_of(word, port),
            (Some(word), _) => match self.clamp(key, port, word.value.clone()) {
                same if same == word.value => (word.text.clone(), word.origin.to_string()),
                less => {
                    let origin = format!("ceiling; {} asks for {}", word.origin, word.text);
                    (super::pod::written(&less), origin)
                }
            },
            (None, _) if key.name == "mode" && self.distrusted(port).is_some() => {
                let why = self.distrusted(port).unwrap_or_default();
                ("observe".into(), format!("not trusted: {why}"))
            }
            (None, Default::Text(text)) => (text.to_owned(), "default".to_owned()),
            (None, Default::Rule(rule)) => {
                (self.follows(key.name, port), format!("default: {rule}"))
            }
        };
        Setting { key: key.name, port, value, origin }
    }

    /// What a word about the mode comes to.
    fn mode_of(&self, word: &Word, port: Option<u16>) -> (String, String) {
        let said = (word.text.clone(), word.origin.to_string());
        match self.gate(port).mode {
            Mode::Observe if word.text == "enforce" => {
                let why = match self.distrusted(port) {
                    Some(why) => format!("not trusted: {why}"),
                    None => format!("nothing to enforce, though {} asks for it", said.1),
                };
                ("observe".into(), why)
            }
            _ => said,
        }
    }

    /// What the rule behind a default comes to.
    fn follows(&self, name: &str, port: Option<u16>) -> String {
        match name {
            "max-connections" => max_connections().to_string(),
            "control" => self.default_control.display().to_string(),
            "drain-timeout" => {
                let drain = self.build().drain;
                let left = drain.grace.saturating_sub(drain.drain_delay + drain.reserve());
                humantime::format_duration(left).to_string().replace(' ', "")
            }
            "mode" => match self.gate(port).mode {
                Mode::Enforce => "enforce".into(),
                Mode::Observe => "observe".into(),
                Mode::Off => "off".into(),
            },
            "queue-timeout" => {
                humantime::format_duration(self.queue_timeout(port)).to_string().replace(' ', "")
            }
            "trace-sampling" => self.trace_ratio().to_string(),
            "queue-length" => self.gate(port).queue_length.to_string(),
            "shadow-limits" => match self.gate(port).shadow_limits.as_slice() {
                [] => "none".into(),
                list => list.iter().map(NonZeroU32::to_string).collect::<Vec<_>>().join(","),
            },
            "include-inbound-ports" => self.included().to_string().replace(' ', ""),
            _ => String::new(),
        }
    }
}

/// `auto` is what the cgroup grants, and never more than a sidecar should take.
fn workers(count: Option<u32>) -> NonZeroUsize {
    let granted = || available_parallelism().map_or(1, NonZeroUsize::get).min(4);
    let workers = count.map_or_else(granted, |count| count as usize);
    NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN)
}

/// A connection takes two descriptors, the client's and the application's; those beyond, as long as they are
/// told so, one.
fn max_connections() -> u32 {
    let fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let pairs = fds.saturating_sub(RESERVED_FDS) / 2;
    let pairs = pairs - (pairs / 17 + 1).min(32).min(pairs);
    u32::try_from(pairs).unwrap_or(u32::MAX).clamp(1, settings::MAX_COUNT)
}
