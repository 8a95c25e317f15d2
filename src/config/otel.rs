//! OpenTelemetry's own variables: where traces go, who we are, how many are recorded. As its specification
//! has it, a value that cannot be understood is ignored, and said to be; it stops nobody.

use std::ffi::OsString;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use crate::telemetry::export::{self, Pem, Protocol, Tls};

/// What the variables say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Otel {
    /// Where traces go. `None`: nobody collects them.
    pub(super) export: Option<export::Config>,
    pub(super) sampler: Option<Sampler>,
    /// What was not understood, for the log.
    pub(super) ignored: Vec<String>,
}

/// `OTEL_TRACES_SAMPLER`
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampler {
    pub(super) ratio: f64,
    pub(super) parent_based: bool,
}

/// An export that takes longer has failed: the specification's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Spans wait this long for others. The specification says 5 s; people who look for their request do not
/// want to wait.
const DELAY: Duration = Duration::from_secs(1);

/// Variables of the pod, as its manifest sets them from the downward API, and what they tell.
const POD: [(&str, &str); 5] = [
    ("POD_NAME", "k8s.pod.name"),
    ("POD_NAMESPACE", "k8s.namespace.name"),
    ("POD_UID", "k8s.pod.uid"),
    ("NODE_NAME", "k8s.node.name"),
    ("CONTAINER_NAME", "k8s.container.name"),
];

struct Variables<'a>(&'a [(OsString, OsString)]);

impl Otel {
    pub(super) fn of_environment(environment: &[(OsString, OsString)]) -> Self {
        let variables = Variables(environment);
        let mut ignored = Vec::new();
        let sampler = variables.sampler(&mut ignored);
        let export = if variables.is_off() { None } else { variables.export(&mut ignored) };
        Self { export, sampler, ignored }
    }
}

impl Variables<'_> {
    /// An empty variable is none.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name)?;
        found.1.to_str().map(str::trim).filter(|text| !text.is_empty())
    }

    /// The variable for traces, or the one for everything; and its name.
    fn exporter(&self, what: &str) -> Option<(String, &str)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
            let name = format!("{prefix}{what}");
            self.get(&name).map(|text| (name, text))
        })
    }

    fn is_off(&self) -> bool {
        let yes = |text: &str| text.eq_ignore_ascii_case("true");
        self.get("OTEL_SDK_DISABLED").is_some_and(yes)
            || self.get("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none")
    }

    fn export(&self, ignored: &mut Vec<String>) -> Option<export::Config> {
        let (name, text) = self.exporter("ENDPOINT")?;
        let text = match text.contains("://") {
            true => text.to_owned(),
            false if self.is_secured() => format!("https://{text}"),
            false => format!("http://{text}"),
        };
        if text.contains('@') {
            // Never the text: there is a password in it, and nobody would send that as it is.
            ignored.push(format!("{name}: a name and a password are no part of the address; say them in OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20…; no traces are exported"));
            return None;
        }
        let usable = |uri: &Uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
        };
        let Some(uri) = text.parse::<Uri>().ok().filter(usable) else {
            ignored.push(format!("{name}={text}: must be the collector's http:// or https:// address, such as http://collector:4317; no traces are exported"));
            return None;
        };
        let protocol = self.protocol(&uri, ignored);
        let endpoint = match (protocol, name.contains("TRACES")) {
            (Protocol::Http, false) => format!("{}/v1/traces", text.trim_end_matches('/')),
            _ => text,
        };
        Some(export::Config {
            endpoint,
            protocol,
            tls: (uri.scheme_str() == Some("https")).then(|| self.tls(ignored)),
            headers: self.headers(ignored),
            timeout: self.millis(self.exporter("TIMEOUT"), TIMEOUT, ignored),
            delay: {
                let name = "OTEL_BSP_SCHEDULE_DELAY";
                let said = self.get(name).map(|text| (name.to_owned(), text));
                self.millis(said, DELAY, ignored)
            },
            resource: self.resource(ignored),
        })
    }

    /// Whether an address without a scheme is to be reached over TLS. Unless somebody says so it is not:
    /// a collector is an agent of the cluster or the machine.
    fn is_secured(&self) -> bool {
        self.exporter("INSECURE").is_some_and(|(_, text)| text.eq_ignore_ascii_case("false"))
    }

    /// The files are read by whoever needs them.
    fn tls(&self, ignored: &mut Vec<String>) -> Tls {
        let pem =
            |what| self.exporter(what).map(|(variable, path)| Pem { variable, path: path.into() });
        let identity = match (pem("CLIENT_CERTIFICATE"), pem("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(Pem { variable, .. }), None) | (None, Some(Pem { variable, .. })) => {
                ignored.push(format!("{variable}: a client certificate and its key go together, and one of them is not named; none is shown to the collector"));
                None
            }
        };
        Tls { authorities: pem("CERTIFICATE"), identity }
    }

    /// The port tells when nobody says.
    fn protocol(&self, uri: &Uri, ignored: &mut Vec<String>) -> Protocol {
        const GRPC: u16 = 4317;
        let usual = if uri.port_u16() == Some(GRPC) { Protocol::Grpc } else { Protocol::Http };
        match self.exporter("PROTOCOL") {
            None => usual,
            Some((_, "grpc")) => Protocol::Grpc,
            Some((_, "http/protobuf")) => Protocol::Http,
            Some((name, other)) => {
                ignored.push(format!("{name}={other}: must be `grpc` or `http/protobuf`"));
                usual
            }
        }
    }

    fn millis(
        &self,
        said: Option<(String, &str)>,
        default: Duration,
        ignored: &mut Vec<String>,
    ) -> Duration {
        let Some((name, text)) = said else { return default };
        match text.parse::<u64>() {
            Ok(millis @ 1..=600_000) => Duration::from_millis(millis),
            _ => {
                ignored.push(format!("{name}={text}: must be milliseconds from 1 to 600000"));
                default
            }
        }
    }

    fn headers(&self, ignored: &mut Vec<String>) -> Vec<(String, String)> {
        let Some((name, text)) = self.exporter("HEADERS") else { return Vec::new() };
        let (pairs, mut bad) = pairs(text);
        let (good, wrong): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(name, value)| {
            name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok()
        });
        bad += wrong.len();
        if bad > 0 {
            // Never the values: they are tokens.
            ignored.push(format!(
                "{name}: {bad} of its headers cannot be sent; write name=value,name=value"
            ));
        }
        good
    }

    /// Who we are: what is said about the service beats what the pod says.
    fn resource(&self, ignored: &mut Vec<String>) -> Vec<(String, String)> {
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let (said, bad) = pairs(self.get(name).unwrap_or_default());
        if bad > 0 {
            ignored.push(format!("{name}: {bad} of its attributes are no key=value"));
        }
        let ours = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut resource = vec![
            ours("telemetry.sdk.name", "opentelemetry"),
            ours("telemetry.sdk.language", "rust"),
            ours("service.name", "tidegate"),
        ];
        let pod = POD.into_iter().filter_map(|(name, key)| Some(ours(key, self.get(name)?)));
        let service = self.get("OTEL_SERVICE_NAME").map(|name| ours("service.name", name));
        for (key, value) in pod.chain(said).chain(service) {
            resource.retain(|(known, _)| *known != key);
            resource.push((key, value));
        }
        resource
    }

    fn sampler(&self, ignored: &mut Vec<String>) -> Option<Sampler> {
        let name = self.get("OTEL_TRACES_SAMPLER")?;
        let (parent_based, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let ratio = match kind {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let text = self.get("OTEL_TRACES_SAMPLER_ARG").unwrap_or("1");
                match text.parse() {
                    Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
                    _ => {
                        ignored.push(format!(
                            "OTEL_TRACES_SAMPLER_ARG={text}: must be a number from 0 to 1"
                        ));
                        1.0
                    }
                }
            }
            _ => {
                ignored.push(format!("OTEL_TRACES_SAMPLER={name}: must be one of always_on, always_off, traceidratio, each also with parentbased_ before it"));
                return None;
            }
        };
        Some(Sampler { ratio, parent_based })
    }
}

/// `key=value,key=value`, values percent-encoded; and how many are none.
fn pairs(text: &str) -> (Vec<(String, String)>, usize) {
    let mut bad = 0;
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pairs = items.filter_map(|item| {
        let pair = item.split_once('=').and_then(|(key, value)| {
            let key = key.trim();
            (!key.is_empty()).then_some((key.to_owned(), decode(value.trim())?))
        });
        bad += usize::from(pair.is_none());
        pair
    });
    let pairs = pairs.collect();
    (pairs, bad)
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = after.split_first_chunk::<2>()?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn otel(variables: &[(&str, &str)]) -> Otel {
        let variables: Vec<_> = variables.iter().map(|(n, v)| (n.into(), v.into())).collect();
        Otel::of_environment(&variables)
    }

    fn export(variables: &[(&str, &str)]) -> export::Config {
        let otel = otel(variables);
        assert_eq!(otel.ignored, [""; 0]);
        otel.export.expect("an endpoint is named")
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        assert_eq!(otel(&[]), Otel::default());
        assert_eq!(otel(&[("OTEL_SERVICE_NAME", "a"), ("POD_NAME", "b")]), Otel::default());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(otel(&[endpoint, off]).export, None);
        }
        assert!(otel(&[endpoint, ("OTEL_SDK_DISABLED", "no")]).export.is_some());
    }

    #[test]
    fn the_endpoint_and_how_it_is_spoken_to() {
        let all = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let protocol = "OTEL_EXPORTER_OTLP_PROTOCOL";
        for (variables, endpoint, how) in [
            (&[(all, "http://c:4318/")][..], "http://c:4318/v1/traces", Protocol::Http),
            (&[(all, "http://c:4318/otlp")], "http://c:4318/otlp/v1/traces", Protocol::Http),
            (&[(all, "http://c:4317")], "http://c:4317", Protocol::Grpc),
            (&[(all, "c:4317")], "http://c:4317", Protocol::Grpc),
            (
                &[(all, "http://c:4317"), (protocol, "http/protobuf")],
                "http://c:4317/v1/traces",
                Protocol::Http,
            ),
            (&[(all, "http://c:9"), (protocol, "grpc")], "http://c:9", Protocol::Grpc),
            (&[(all, "http://c:9"), (traces, "http://t:1/in")], "http://t:1/in", Protocol::Http),
            (
                &[
                    (traces, "http://t:1"),
                    (protocol, "http/protobuf"),
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
                ],
                "http://t:1",
                Protocol::Grpc,
            ),
        ] {
            let config = export(variables);
            assert_eq!(
                (config.endpoint.as_str(), config.protocol),
                (endpoint, how),
                "{variables:?}"
            );
        }
    }

    #[test]
    fn tls_is_for_https_only_and_a_certificate_needs_its_key() {
        let (all, traces) = ("OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_");
        let name = |prefix: &str, what: &str| format!("{prefix}{what}");
        let [ca, certificate, key] = ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"];
        let files = [(name(all, ca), "/all"), (name(traces, ca), "/ca")];
        let mine = [(name(all, certificate), "/mine"), (name(all, key), "/key")];
        let of = |address: &str, more: &[(String, &str)]| {
            let mut variables = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", address)];
            variables.extend(more.iter().map(|(name, value)| (name.as_str(), *value)));
            otel(&variables)
        };
        let tls = |otel: Otel| otel.export.and_then(|export| export.tls);
        assert_eq!(tls(of("http://c:4317", &files)), None);
        assert_eq!(tls(of("https://c:4317", &[])), Some(Tls::default()));
        let pem = |variable: &str, path: &str| Pem { variable: variable.into(), path: path.into() };
        let both = tls(of("https://c:4317", &[&files[..], &mine[..]].concat()));
        let expected = Tls {
            authorities: Some(pem("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/ca")),
            identity: Some((pem(&mine[0].0, "/mine"), pem(&mine[1].0, "/key"))),
        };
        assert_eq!(both, Some(expected));
        let half = of("https://c:4317", &mine[..1]);
        assert!(half.ignored[0].contains("CLIENT_CERTIFICATE"), "{:?}", half.ignored);
        assert_eq!(tls(half), Some(Tls::default()));
        let secured = of("c:4317", &[(name(all, "INSECURE"), "false")]);
        assert_eq!(secured.export.map(|e| e.endpoint).as_deref(), Some("https://c:4317"));
    }

    #[test]
    fn headers_timeouts_and_who_we_are() {
        let config = export(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, a=b=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=prod,service.name=no,k8s.pod.name=mine",
            ),
            ("OTEL_SERVICE_NAME", "shop"),
            ("POD_NAME", "shop-1"),
            ("NODE_NAME", "n1"),
        ]);
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(config.headers, pairs(&[("authorization", "Bearer x"), ("a", "b=c")]));
        assert_eq!(config.timeout, Duration::from_millis(250));
        for pair in pairs(&[
            ("service.name", "shop"),
            ("k8s.pod.name", "mine"),
            ("k8s.node.name", "n1"),
            ("deployment.environment.name", "prod"),
        ]) {
            assert!(config.resource.contains(&pair), "{pair:?} of {:?}", config.resource);
        }
        let names = config.resource.iter().filter(|(key, _)| key == "service.name");
        assert_eq!(names.count(), 1);
    }

    #[test]
    fn samplers() {
        let sampler = |name, arg| {
            otel(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]).sampler
        };
        let is = |ratio, parent_based| Some(Sampler { ratio, parent_based });
        assert_eq!(sampler("always_on", ""), is(1.0, false));
        assert_eq!(sampler("parentbased_always_off", "1"), is(0.0, true));
        assert_eq!(sampler("traceidratio", "0.25"), is(0.25, false));
        assert_eq!(sampler("parentbased_traceidratio", ""), is(1.0, true));
        assert_eq!(sampler("jaeger_remote", ""), None);
    }

    #[test]
    fn what_is_not_understood_is_said_and_stops_nobody() {
        let otel = otel(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret token, a b=c"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_RESOURCE_ATTRIBUTES", "alone"),
        ]);
        assert_eq!(otel.ignored.len(), 5, "{:?}", otel.ignored);
        assert!(!otel.ignored.concat().contains("token"), "a token is not for the log");
        assert!(otel.export.is_some());
        let secret = super::tests::otel(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://me:s3cret@c")]);
        assert!(secret.export.is_none() && secret.ignored.len() == 1, "{:?}", secret.ignored);
        assert!(!secret.ignored.concat().contains("s3cret"), "{:?}", secret.ignored);
        for bad in ["ftp://c", "http://", "::"] {
            let otel = super::tests::otel(&[("OTEL_EXPORTER_OTLP_ENDPOINT", bad)]);
            assert_eq!((otel.export, otel.ignored.len()), (None, 1), "{bad}");
        }
    }
}
