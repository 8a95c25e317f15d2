//! What `tidegate webhook` is told: by flags, else by `TIDEGATE_*`, with the same words as the settings of `run`
//! where they mean the same.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::settings::{self, Kind, Value};
use crate::{cli, telemetry, webhook};

use super::{Mistakes, Origin};

/// All of it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where it listens, and what it reads.
    pub server: webhook::Config,
    /// How logs look and how much is logged.
    pub log: telemetry::Config,
}

/// As the kubelet's own port: what lets the API server reach nodes and pods often lets this one pass.
const ADDRESS: &str = "[::]:10250";

/// A review takes milliseconds; this is for clients that are slow.
const DRAIN_TIMEOUT: &str = "10s";

struct Told<'a> {
    variables: Vec<(OsString, OsString)>,
    mistakes: &'a mut Mistakes,
}

/// Everything that is said, or every mistake in it.
pub fn webhook(
    flags: &cli::Webhook,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Webhook, Mistakes> {
    let mut mistakes = Mistakes::default();
    let mut told = Told { variables: environment.into_iter().collect(), mistakes: &mut mistakes };
    let default = |name: &str| match settings::find(name).expect("in the table").default {
        settings::Default::Text(text) => text,
        settings::Default::Rule(_) => unreachable!("{name} has a default of its own"),
    };
    let cert = told.file("tls-cert", flags.tls_cert.as_deref());
    let key = told.file("tls-key", flags.tls_key.as_deref());
    let operator = told.path("operator", flags.operator.as_deref());
    let address = told.address("address", flags.address.as_deref(), ADDRESS);
    let metrics = told.address("metrics", flags.metrics.as_deref(), default("metrics"));
    let announce =
        told.duration("drain-delay", flags.drain_delay.as_deref(), default("drain-delay"));
    let parting = told.duration("drain-timeout", flags.drain_timeout.as_deref(), DRAIN_TIMEOUT);
    let format = told.value("log-format", flags.log_format.as_deref(), default("log-format"));
    let level = told.value("log-level", flags.log_level.as_deref(), default("log-level"));
    let log = telemetry::Config {
        json: format == Some(Value::Word("json")),
        level: match level {
            Some(Value::Text(level)) => level,
            _ => String::new(),
        },
    };
    match (cert, key, address, metrics, announce, parting) {
        (Some(cert), Some(key), Some(address), Some(metrics), Some(announce), Some(parting))
            if mistakes.is_empty() =>
        {
            let server =
                webhook::Config { address, metrics, cert, key, operator, announce, parting };
            Ok(Webhook { server, log })
        }
        _ => Err(mistakes),
    }
}

impl Told<'_> {
    fn variable(&self, name: &str) -> Option<(String, OsString)> {
        let variable = format!("TIDEGATE_{}", name.replace('-', "_").to_uppercase());
        let found = self.variables.iter().find(|(other, _)| *other == *variable)?;
        Some((variable, found.1.clone()))
    }

    fn path(&self, name: &str, flag: Option<&Path>) -> Option<PathBuf> {
        let path = flag.map(Path::to_owned);
        path.or_else(|| Some(self.variable(name)?.1.into()))
            .filter(|path| !path.as_os_str().is_empty())
    }

    fn file(&mut self, name: &str, flag: Option<&Path>) -> Option<PathBuf> {
        let path = self.path(name, flag);
        if path.is_none() {
            let problem = format!("is missing: name the file with `--{name} FILE`");
            self.mistakes.add(name, None, "", problem);
        }
        path
    }

    fn address(&mut self, name: &str, flag: Option<&str>, default: &str) -> Option<SocketAddr> {
        match self.judged(name, &Kind::Address, flag, default) {
            Some(Value::Address(address)) => Some(address),
            _ => None,
        }
    }

    fn duration(&mut self, name: &str, flag: Option<&str>, default: &str) -> Option<Duration> {
        match self.value(name, flag, default) {
            Some(Value::Duration(duration)) => duration,
            _ => None,
        }
    }

    /// Of a setting that `run` has, too.
    fn value(&mut self, name: &str, flag: Option<&str>, default: &str) -> Option<Value> {
        let kind = &settings::find(name).expect("in the table").kind;
        self.judged(name, kind, flag, default)
    }

    fn judged(
        &mut self,
        name: &str,
        kind: &Kind,
        flag: Option<&str>,
        default: &str,
    ) -> Option<Value> {
        let (text, origin) = match (flag, self.variable(name)) {
            (Some(text), _) => (text.to_owned(), Origin::Flag),
            (None, Some((variable, value))) => {
                (value.to_string_lossy().into_owned(), Origin::Environment(variable))
            }
            (None, None) => (default.to_owned(), Origin::Flag),
        };
        let judged = kind.parse(&text);
        judged.map_err(|problem| self.mistakes.add(name, Some(&text), origin, problem)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(flags: &cli::Webhook, variables: &[(&str, &str)]) -> Result<Webhook, Mistakes> {
        webhook(flags, variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn pair() -> cli::Webhook {
        cli::Webhook {
            tls_cert: Some("tls.crt".into()),
            tls_key: Some("tls.key".into()),
            ..cli::Webhook::default()
        }
    }

    #[test]
    fn a_pair_of_files_is_enough_and_flags_beat_variables() {
        let webhook = told(&pair(), &[]).expect("enough");
        assert_eq!(webhook.server.address.to_string(), ADDRESS);
        assert_eq!(webhook.server.metrics.to_string(), "0.0.0.0:15822");
        assert_eq!(webhook.server.announce, Duration::from_secs(5));
        assert_eq!((webhook.log.json, webhook.log.level.as_str()), (false, "info"));
        let flags = cli::Webhook { metrics: Some("127.0.0.1:1".into()), ..cli::Webhook::default() };
        let variables = [
            ("TIDEGATE_TLS_CERT", "a"),
            ("TIDEGATE_TLS_KEY", "b"),
            ("TIDEGATE_METRICS", "127.0.0.1:2"),
            ("TIDEGATE_LOG_FORMAT", "json"),
            ("TIDEGATE_SERVICE_PORT", "443"),
        ];
        let webhook = told(&flags, &variables).expect("enough");
        assert_eq!(webhook.server.key, Path::new("b"));
        assert_eq!(webhook.server.metrics.port(), 1);
        assert!(webhook.log.json);
    }

    #[test]
    fn all_mistakes_at_once() {
        let flags = cli::Webhook {
            address: Some("10250".into()),
            drain_delay: Some("5".into()),
            ..cli::Webhook::default()
        };
        let said = told(&flags, &[("TIDEGATE_LOG_LEVEL", "=")]).expect_err("five").to_string();
        for part in [
            "tls-cert is missing",
            "tls-key is missing",
            "address \"10250\"",
            "drain-delay \"5\"",
            "TIDEGATE_LOG_LEVEL",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
