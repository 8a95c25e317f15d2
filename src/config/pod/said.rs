//! What a source says, before anybody judges it: names and values, read from a file of annotations, a
//! file of the ConfigMap, or the injector's JSON. What is none of ours is left out.

use std::collections::BTreeMap;

use crate::cluster::{self, downward, files};
use crate::config::file;

/// What a source says: names without our prefix, values, and where. `Err`: it cannot be read, and why.
pub type Said = Result<Vec<Pair>, String>;

/// One setting, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Such as `limit.8080`.
    pub name: String,
    /// What was written.
    pub text: String,
    /// Where, in a file that people write.
    pub line: Option<u64>,
}

/// Our annotations, and those that may still change their meaning; of those there are none yet.
const PREFIX: &str = "tidegate.dev/";
const ALPHA: &str = "alpha.tidegate.dev/";

/// A JSON object of names and values, as the injector writes them.
pub(in crate::config) fn of_json(text: &str) -> Said {
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(text)
        .map_err(|error| format!("must be JSON such as {{\"limit\":\"5\"}}: {error}"))?;
    let pairs = object.into_iter().map(|(name, value)| {
        let text = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let name = name.strip_prefix(PREFIX).map(str::to_owned).unwrap_or(name);
        Pair { name, text, line: None }
    });
    Ok(pairs.collect())
}

/// What a file of the ConfigMap says.
pub fn of_config_file(look: &files::Look) -> Said {
    match look {
        files::Look::Absent => Ok(Vec::new()),
        files::Look::Unusable(problem) => Err(problem.clone()),
        files::Look::Text(text) => file::pairs(text),
    }
}

/// The annotations a file of the downward API has; `None`: there is no such file.
pub fn of_annotations_file(look: &files::Look) -> Result<Option<cluster::Annotations>, String> {
    match look {
        files::Look::Absent => Ok(None),
        files::Look::Unusable(problem) => Err(problem.clone()),
        files::Look::Text(text) => match downward::parse(text) {
            Ok(annotations) => Ok(Some(annotations)),
            Err(error) => Err(format!("is no file of annotations: {error}")),
        },
    }
}

/// The settings among a pod's annotations.
pub fn of_annotations(annotations: &cluster::Annotations) -> Vec<Pair> {
    let ours = annotations.iter().filter_map(|(name, text)| {
        let name = match name.strip_prefix(PREFIX) {
            Some(name) => name,
            None => name.strip_prefix(ALPHA).map(|_| name.as_str())?,
        };
        Some(Pair { name: name.to_owned(), text: text.clone(), line: None })
    });
    ours.collect()
}
