//! What is to be probed: the specification of the pod's containers, as the injector wrote it down.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

/// Every probe there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The pod's own address.
    pub ip: IpAddr,
    /// By name; one that was not understood is known all the same.
    pub probes: BTreeMap<Name, Result<Spec, Flaw>>,
    /// Nothing could be understood.
    pub flaw: Option<String>,
}

/// `container/kind`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The container.
    pub container: String,
    /// `liveness`, `readiness` or `startup`.
    pub kind: &'static str,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What is asked.
    pub check: Check,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A request, and a status from 200 to 399.
    Http(HttpGet),
    /// A connection to this port.
    Tcp(u16),
    /// `grpc.health.v1.Health/Check`, and `SERVING`.
    Grpc {
        /// Where.
        port: u16,
        /// What it is asked about; empty: all of it.
        service: String,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// Where.
    pub port: u16,
    /// Path and query, as written.
    pub path: String,
    /// Over TLS, whose certificate nobody looks at.
    pub https: bool,
    /// Host among them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why a probe cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    http_get: Option<WrittenGet>,
    tcp_socket: Option<WrittenPort>,
    grpc: Option<WrittenGrpc>,
    timeout_seconds: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenGet {
    path: Option<String>,
    port: u16,
    scheme: Option<String>,
    #[serde(default)]
    http_headers: Vec<WrittenHeader>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPort {
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGrpc {
    port: u16,
    service: Option<String>,
}

const KINDS: [&str; 3] = ["liveness", "readiness", "startup"];

/// Kubernetes' own default.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Nobody waits longer for a probe; a day is a typing error.
const LONGEST: i64 = 24 * 3600;

impl Default for Plan {
    fn default() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), probes: BTreeMap::new(), flaw: None }
    }
}

impl Plan {
    /// `{"app/liveness": {"httpGet": {"path": "/healthz", "port": 8080}, "timeoutSeconds": 1}, …}`
    pub fn parse(ip: IpAddr, text: &str) -> Self {
        let mut plan = Self { ip, ..Self::default() };
        match serde_json::from_str::<BTreeMap<String, Value>>(text) {
            Err(error) => plan.flaw = Some(format!("is no JSON object of probes: {error}")),
            Ok(entries) => {
                for (name, entry) in entries {
                    match Name::parse(&name) {
                        Ok(name) => drop(plan.probes.insert(name, Spec::parse(entry))),
                        Err(flaw) => plan.flaw = Some(format!("{name:?} {flaw}")),
                    }
                }
            }
        }
        plan
    }

    /// Everything that is wrong with it.
    pub fn flaws(&self) -> impl Iterator<Item = String> {
        let of_one = |(name, spec): (&Name, &Result<Spec, Flaw>)| {
            spec.as_ref().err().map(|flaw| format!("{name} {flaw}"))
        };
        self.flaw.clone().into_iter().chain(self.probes.iter().filter_map(of_one))
    }
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self, Flaw> {
        let (container, kind) = text.split_once('/').unwrap_or((text, ""));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let named = !container.is_empty() && container.len() <= 63 && container.chars().all(plain);
        match KINDS.into_iter().find(|known| *known == kind) {
            Some(kind) if named => Ok(Self { container: container.to_owned(), kind }),
            _ => {
                let kinds = KINDS.join("|");
                Err(Flaw(format!("names no probe: it has to be CONTAINER/{kinds}")))
            }
        }
    }
}

impl Spec {
    fn parse(entry: Value) -> Result<Self, Flaw> {
        let written: Written = serde_json::from_value(entry)
            .map_err(|error| Flaw(format!("is not understood: {error}")))?;
        let timeout = match written.timeout_seconds {
            None => TIMEOUT,
            // Out of range of no kubelet: 0 and less mean the default there, too.
            Some(seconds) if seconds <= 0 => TIMEOUT,
            Some(seconds) if seconds > LONGEST => {
                return Err(Flaw(format!("has a timeout of {seconds} s, longer than a day")));
            }
            Some(seconds) => Duration::from_secs(seconds.unsigned_abs()),
        };
        let check = match (written.http_get, written.tcp_socket, written.grpc) {
            (Some(get), None, None) => Check::Http(HttpGet::parse(get)?),
            (None, Some(tcp), None) => Check::Tcp(port(tcp.port)?),
            (None, None, Some(grpc)) => {
                let service = grpc.service.unwrap_or_default();
                Check::Grpc { port: port(grpc.port)?, service }
            }
            _ => return Err(Flaw("needs one of httpGet, tcpSocket and grpc".into())),
        };
        Ok(Self { check, timeout })
    }
}

impl HttpGet {
    fn parse(written: WrittenGet) -> Result<Self, Flaw> {
        let https = match written.scheme.as_deref() {
            None => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(other) => {
                return Err(Flaw(format!(
                    "has the scheme {other:?}, which is neither HTTP nor HTTPS"
                )));
            }
        };
        let header = |written: WrittenHeader| {
            let name = HeaderName::from_bytes(written.name.as_bytes()).ok();
            let value = HeaderValue::from_str(&written.value).ok();
            name.zip(value)
                .ok_or_else(|| Flaw(format!("has a header {:?} that cannot be sent", written.name)))
        };
        let headers = written.http_headers.into_iter().map(header).collect::<Result<_, _>>()?;
        let path = written.path.unwrap_or_default();
        Ok(Self { port: port(written.port)?, path, https, headers })
    }
}

fn port(number: u16) -> Result<u16, Flaw> {
    match number {
        0 => Err(Flaw("has the port 0; a port is a number from 1 to 65535".into())),
        number => Ok(number),
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.kind)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Plan {
        Plan::parse(Ipv4Addr::LOCALHOST.into(), text)
    }

    #[test]
    fn what_kubernetes_lets_people_write_is_understood() {
        let plan = parse(
            r#"{"app/liveness": {"httpGet": {"path": "/healthz?full", "port": 8080, "scheme": "HTTPS",
                   "httpHeaders": [{"name": "Host", "value": "shop"}]}, "timeoutSeconds": 3},
                "app/readiness": {"tcpSocket": {"port": 5432}},
                "side-car/startup": {"grpc": {"port": 9000, "service": "shop.v1"}, "timeoutSeconds": 0}}"#,
        );
        assert_eq!(plan.flaws().count(), 0);
        let specs: Vec<_> = plan.probes.values().map(|spec| spec.clone().expect("good")).collect();
        let get = HttpGet {
            port: 8080,
            path: "/healthz?full".into(),
            https: true,
            headers: vec![(HeaderName::from_static("host"), HeaderValue::from_static("shop"))],
        };
        assert_eq!(specs[0], Spec { check: Check::Http(get), timeout: Duration::from_secs(3) });
        assert_eq!(specs[1], Spec { check: Check::Tcp(5432), timeout: TIMEOUT });
        let grpc = Check::Grpc { port: 9000, service: "shop.v1".into() };
        assert_eq!(specs[2], Spec { check: grpc, timeout: TIMEOUT });
    }

    #[test]
    fn each_mistake_is_named_and_the_others_are_good() {
        let plan = parse(
            r#"{"app/liveness": {"httpGet": {"port": 0}}, "app/startup": {"tcpSocket": {"port": 70000}},
                "app/readiness": {"tcpSocket": {"port": 80}}, "b/liveness": {}, "c/liveness": {"exec": {}},
                "d/liveness": {"httpGet": {"port": 1, "scheme": "ftp"}},
                "e/liveness": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}},
                "f/liveness": {"tcpSocket": {"port": 1}, "timeoutSeconds": 100000},
                "App/health": {}}"#,
        );
        let flaws: Vec<_> = plan.flaws().collect();
        assert_eq!(flaws.len(), 8, "{flaws:#?}");
        for named in ["App/health", "app/liveness", "app/startup", "b/", "c/", "d/", "e/", "f/"] {
            assert!(flaws.iter().any(|flaw| flaw.contains(named)), "{named}: {flaws:#?}");
        }
        let good = Name { container: "app".into(), kind: "readiness" };
        plan.probes[&good].clone().expect("good");
        assert_eq!(parse("{").flaws().count(), 1);
        assert_eq!(parse("[]").flaws().count(), 1);
    }
}
