//! The certificate, its key and the operator's file: read at the start, and again whenever they change.
//!
//! Always true: what cannot be used leaves in force what was before, is logged, and is in the metrics until
//! there is something that can; certificate and key are only ever taken together.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::cluster::files::{Files, Look, look};
use crate::inject::Operator;

use super::identity::Identity;
use super::metrics::Source;
use super::{Config, Injector};

/// The files, in this order everywhere.
const CERT: usize = 0;
const KEY: usize = 1;
const OPERATOR: usize = 2;

/// What was read at the start, to be compared with what is there later.
pub(super) struct Seen(Vec<(PathBuf, Look)>);

/// Read all of them, or note of each what is wrong with it.
pub(super) fn read(
    config: &Config,
    mistakes: &mut Vec<String>,
) -> Option<(Identity, Operator, Seen)> {
    let paths = [&config.cert, &config.key].into_iter().chain(&config.operator);
    let seen: Vec<_> = paths.map(|path| (path.clone(), look(path))).collect();
    let identity = identity(&seen).map_err(|why| mistakes.push(why)).ok();
    let operator = operator(&seen).map_err(|why| mistakes.push(why)).ok();
    Some((identity?, operator?, Seen(seen)))
}

/// Take over what changes, for ever.
pub(super) async fn keep(injector: Arc<Injector>, config: Config, Seen(mut seen): Seen) {
    let mut files = Files::new(seen.clone());
    loop {
        let changes = files.changed().await;
        let [mut pair_changed, mut operator_changed] = [false; 2];
        for (at, look) in changes {
            seen[at].1 = look;
            pair_changed |= at == CERT || at == KEY;
            operator_changed |= at == OPERATOR;
        }
        if pair_changed {
            let changed = identity(&seen);
            injector.metrics.reloaded(Source::Certificate, changed.is_ok());
            match changed {
                Ok(identity) => {
                    tracing::info!(cert = %config.cert.display(), "another certificate");
                    identity.describe();
                    *injector.identity.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(identity);
                }
                Err(why) => tracing::error!("the certificate stays as it was: {why}"),
            }
        }
        if operator_changed {
            let changed = operator(&seen);
            injector.metrics.reloaded(Source::Operator, changed.is_ok());
            match changed {
                Ok(operator) => {
                    tracing::info!("the operator's decisions were read again");
                    *injector.operator.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(operator);
                }
                Err(why) => tracing::error!("the operator's decisions stay as they were: {why}"),
            }
        }
    }
}

fn identity(seen: &[(PathBuf, Look)]) -> Result<Identity, String> {
    let (cert, key) = match (text(&seen[CERT], "tls-cert"), text(&seen[KEY], "tls-key")) {
        (Ok(cert), Ok(key)) => (cert, key),
        (cert, key) => {
            let problems: Vec<_> = [cert.err(), key.err()].into_iter().flatten().collect();
            return Err(problems.join("\n"));
        }
    };
    let [cert_path, key_path] = [CERT, KEY].map(|at| seen[at].0.display());
    Identity::of_pem(cert, key).map_err(|why| format!("{cert_path} with {key_path}: {why}"))
}

fn operator(seen: &[(PathBuf, Look)]) -> Result<Operator, String> {
    let Some(file) = seen.get(OPERATOR) else { return Ok(Operator::default()) };
    let text = text(file, "operator")?;
    Operator::from_yaml(text).map_err(|why| format!("{}: {why}", file.0.display()))
}

fn text<'a>((path, look): &'a (PathBuf, Look), flag: &str) -> Result<&'a str, String> {
    let unusable = |path: &Path, why: &str| Err(format!("{} (--{flag}) {why}", path.display()));
    match look {
        Look::Text(text) => Ok(text),
        Look::Absent => unusable(path, "does not exist"),
        Look::Unusable(why) => unusable(path, why),
    }
}
