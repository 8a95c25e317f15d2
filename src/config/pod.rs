//! What a pod says about its settings, source by source, and what of it holds.
//!
//! ```text
//! operator's defaults < template < namespace (_all) < workload < annotations edited live < tidegate set
//! └ file, environment, flags ┘                                                      clamped to the ceilings
//! ```
//!
//! Always true: nothing said here ends the process or reaches beyond its own key. A value that cannot be
//! used leaves the last good one of its source in force, and one key's mistake holds up no other key: a
//! kill switch works beside a typing error. Where a value that decides who is refused was bad from the
//! beginning, so that no good one is known, the ports it is about only observe. Each of it is a
//! [`Remark`].

mod ceilings;
mod hearing;
mod said;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cluster;
use crate::io::App;
use crate::settings::{self, Key};

use super::listen::Listener;
use super::words::Word;
use super::{Config, Layers, Mistake, Mistakes, Origin};
pub(super) use ceilings::written;
use hearing::Hearing;
pub(super) use said::of_json;
pub use said::{Pair, Said, of_annotations, of_annotations_file, of_config_file};

/// Who says something about a pod's settings, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Flags, environment and file: the operator's defaults.
    Operator,
    /// The annotations of the pod template, as they were when the pod was made.
    Template,
    /// The namespace's ConfigMap, key `_all`.
    Namespace,
    /// The namespace's ConfigMap, the workload's key.
    Workload,
    /// Annotations that were edited since.
    Annotations,
    /// `tidegate set`.
    Live,
    /// What cannot be exceeded.
    Ceilings,
}

/// Something that does not hold as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Who wrote it.
    pub source: Source,
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// What, and what would be right.
    pub mistake: Mistake,
}

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// A value that cannot be used: the last good one stays.
    Invalid,
    /// A whole source that cannot be read: what it said last stays.
    Unreadable,
    /// No setting of this version.
    Unknown,
    /// It cannot change while the gateway runs.
    NeedsRestart,
    /// It has no effect here.
    Unused,
    /// More than the ceiling.
    Clamped,
}

/// Where the sources are that change while the gateway runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The downward API's file.
    pub annotations: Option<PathBuf>,
    /// The ConfigMap's files, and whose they are.
    pub config: Vec<(Source, PathBuf)>,
    /// The pod to watch.
    pub watch: Option<cluster::pod::Config>,
}

/// All that is said in a pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Pod {
    pub(super) places: Places,
    /// Of each source of [`FOLLOWED`], what holds.
    words: [Vec<Word>; FOLLOWED.len()],
    /// What each of them said last, to be judged again once the ports are known.
    said: BTreeMap<Source, Said>,
    /// What the template said, as texts: annotations that say the same were not edited.
    template: BTreeMap<String, String>,
    ceilings: Vec<Word>,
    /// The operator's list of settings that tenants may change; `None`: all.
    allowed: Option<Vec<String>>,
    remarks: BTreeMap<Source, Vec<Remark>>,
    /// What was bad from the beginning: ports that only observe because of it.
    doubts: Vec<Doubt>,
    /// What needs a restart stays as it is from now on.
    started: bool,
    /// What was asked for and cannot be had on this machine, and what there is instead.
    lacking: Vec<(&'static Key, String)>,
}

impl Pod {
    /// Let tenants change these settings, and no others; `*` is all, `none` or nothing is none.
    pub(super) fn allow(&mut self, keys: &str) {
        let keys = keys.split(',').map(|key| key.trim().to_owned());
        let keys: Vec<_> = keys.filter(|key| !key.is_empty() && key != "none").collect();
        self.allowed = (!keys.iter().any(|key| key == "*")).then_some(keys);
    }

    /// Why tenants may not change this setting, if they may not.
    fn forbids(&self, key: &Key) -> Option<String> {
        let allowed = self.allowed.as_ref()?;
        let problem = || match allowed.as_slice() {
            [] => "is not heeded: the operator allows none of the settings".into(),
            some => format!(
                "is not heeded: of the settings, the operator allows only {}",
                some.join(", ")
            ),
        };
        (!allowed.iter().any(|one| one == key.name)).then(problem)
    }
}

/// A value nobody could use, from the beginning. Without a key: a whole source.
#[derive(Clone, Debug)]
struct Doubt {
    source: Source,
    key: Option<&'static Key>,
    port: Option<u16>,
    what: String,
}

/// The sources that have a layer of words of their own here, weakest first.
const FOLLOWED: [Source; 4] =
    [Source::Template, Source::Namespace, Source::Workload, Source::Annotations];

/// What decides who is refused.
const DECISIVE: [&str; 5] = ["mode", "limit", "queue-length", "queue-timeout", "per-client-limit"];

impl Source {
    /// For metrics and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Template => "template",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
            Self::Annotations => "annotations",
            Self::Live => "live",
            Self::Ceilings => "ceilings",
        }
    }

    fn origin(self, line: Option<u64>) -> Origin {
        match self {
            Self::Template => Origin::Template,
            Self::Namespace => Origin::ConfigMap { key: "_all", line },
            Self::Workload => Origin::ConfigMap { key: "of the workload", line },
            Self::Ceilings => Origin::Ceilings,
            _ => Origin::Annotation,
        }
    }
}

impl Trouble {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Invalid,
        Self::Unreadable,
        Self::Unknown,
        Self::NeedsRestart,
        Self::Unused,
        Self::Clamped,
    ];

    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unreadable => "unreadable",
            Self::Unknown => "unknown",
            Self::NeedsRestart => "needs_restart",
            Self::Unused => "unused",
            Self::Clamped => "clamped",
        }
    }

    /// Whether somebody's words are not obeyed because they cannot be understood. The others are: as far
    /// as this version, this pod and the operator allow.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Invalid | Self::Unreadable)
    }
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.mistake.fmt(f)
    }
}

impl Layers {
    /// Where settings come from that change while the gateway runs, if it is in a pod.
    pub fn places(&self) -> Places {
        self.pod.as_ref().map(|pod| pod.places.clone()).unwrap_or_default()
    }

    /// Whether it is told that it is in a pod.
    pub fn in_a_pod(&self) -> bool {
        self.pod.is_some()
    }

    /// A source has spoken. What it says holds as far as it can; what cannot is a remark.
    pub fn hear(&self, source: Source, said: Said) -> (Self, Config) {
        let mut changed = self.clone();
        changed.listen_to(source, said);
        let config = changed.build();
        (changed, config)
    }

    /// Whether it would be nothing new.
    pub fn has_said(&self, source: Source, said: &Said) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.said.get(&source) == Some(said))
    }

    /// Everything in a pod that does not hold as it was written.
    pub fn remarks(&self) -> Vec<Remark> {
        let Some(pod) = &self.pod else { return Vec::new() };
        let mut remarks: Vec<_> = pod.remarks.values().flatten().cloned().collect();
        remarks.extend(self.clamped());
        remarks.extend(self.nothing_to_enforce());
        remarks.extend(pod.lacking.iter().filter_map(|(key, problem)| self.lacks(key, problem)));
        remarks
    }

    /// Settings are read once more, now that the ports are known, and are held against them from now on.
    pub(super) fn start_to_follow(&mut self) {
        let Some(pod) = &self.pod else { return };
        for (source, said) in pod.said.clone() {
            self.listen_to(source, said);
        }
        if let Some(pod) = &mut self.pod {
            pod.started = true;
        }
    }

    /// The operator's own mistakes, in a pod: they stop nothing.
    pub(super) fn note_operators(&mut self, mistakes: Mistakes) {
        let Some(pod) = &mut self.pod else { return };
        for mistake in mistakes {
            let mut parts = mistake.setting.splitn(2, '.');
            let key = parts.next().and_then(settings::find);
            let port = parts.next().and_then(|port| port.parse().ok());
            let trouble = if key.is_some() { Trouble::Invalid } else { Trouble::Unknown };
            if key.is_some_and(|key| DECISIVE.contains(&key.name)) {
                let what = mistake.to_string();
                pod.doubts.push(Doubt { source: Source::Operator, key, port, what });
            }
            let remark = Remark { source: Source::Operator, trouble, mistake };
            pod.remarks.entry(Source::Operator).or_default().push(remark);
        }
    }

    /// The pod cannot be watched; that is no reason not to serve.
    pub(super) fn note_no_watch(&mut self, problem: String) {
        let Some(pod) = &mut self.pod else { return };
        let setting = "watch-own-pod".to_owned();
        let mistake = Mistake { setting, value: None, origin: String::new(), problem };
        let remark = Remark { source: Source::Operator, trouble: Trouble::Invalid, mistake };
        pod.remarks.entry(Source::Operator).or_default().push(remark);
    }

    /// What a setting asks for cannot be had on this machine, and the gateway serves without.
    pub fn note_lacking(&mut self, setting: &str, problem: &str) {
        let key = settings::find(setting).expect("only keys of the table are lacked");
        if let Some(pod) = &mut self.pod {
            pod.lacking.push((key, problem.to_owned()));
        }
    }

    fn lacks(&self, key: &Key, problem: &str) -> Option<Remark> {
        let word = self.word(key, None)?;
        let mistake = Mistake {
            setting: word.name(),
            value: Some(word.text.clone()),
            origin: word.origin.to_string(),
            problem: problem.to_owned(),
        };
        Some(Remark { source: word.origin.source(), trouble: Trouble::Unused, mistake })
    }

    pub(super) fn listen_to(&mut self, source: Source, said: Said) {
        let Some(mut pod) = self.pod.take() else { return };
        pod.said.insert(source, said.clone());
        pod.remarks.remove(&source);
        let mut hearing = Hearing { layers: self, pod: &mut pod, source, unusable: Vec::new() };
        match said {
            Ok(pairs) => hearing.pairs(pairs),
            Err(problem) => hearing.unreadable(problem),
        }
        let unusable = hearing.unusable;
        let known = |doubt: &Doubt| {
            unusable.iter().any(|new| new.key == doubt.key && new.port == doubt.port)
        };
        pod.doubts.retain(|doubt| doubt.source != source || pod.started && known(doubt));
        if !pod.started {
            pod.doubts.extend(unusable);
        }
        self.pod = Some(pod);
    }

    /// The port clients come in by, of which a pod speaks by this number: its own, or that of the application
    /// behind it, because the pod's author knows no other. Before the kernel has chosen ports, nobody knows.
    fn served_as(&self, port: u16) -> Option<u16> {
        let listens = |listener: &&Listener| listener.listen.port() == port;
        let leads = |listener: &&Listener| {
            listener.apps.iter().any(|app| matches!(app, App::Tcp(to) if to.port() == port))
        };
        let captured = self.capture().is_some() && self.included().contains(port);
        if captured || self.listeners.iter().any(|listener| listens(&listener)) {
            return Some(port);
        }
        self.listeners.iter().find(leads).map(|listener| listener.listen.port())
    }

    /// The layers a pod adds, strongest first.
    pub(super) fn pod_layers(&self) -> impl Iterator<Item = &Vec<Word>> {
        self.pod.iter().flat_map(|pod| pod.words.iter().rev())
    }

    /// Enforcing without anything to enforce is observing.
    fn nothing_to_enforce(&self) -> Vec<Remark> {
        let mut mistakes = Mistakes::default();
        self.check_modes(&mut mistakes);
        let mode = settings::find("mode").expect("in the table");
        let source = |mistake: &Mistake| {
            let port = mistake.setting.split_once('.').and_then(|(_, port)| port.parse().ok());
            self.word(mode, port).map_or(Source::Operator, |word| word.origin.source())
        };
        let remarks = mistakes.into_iter().map(|mistake| Remark {
            source: source(&mistake),
            trouble: Trouble::Unused,
            mistake,
        });
        remarks.collect()
    }

    /// Why a port only observes although somebody says it should enforce.
    pub(super) fn distrusted(&self, port: Option<u16>) -> Option<&str> {
        let doubts = &self.pod.as_ref()?.doubts;
        let mode = settings::find("mode").expect("in the table");
        let said_live = self.word(mode, port).is_some_and(|word| word.origin == Origin::Live);
        let holds = |doubt: &&Doubt| {
            let about = doubt.port.is_none() || doubt.port == port;
            // Somebody stronger has said what was meant.
            let said = doubt.key.and_then(|key| self.word(key, port));
            about && said.is_none_or(|word| word.origin.source() <= doubt.source)
        };
        doubts.iter().find(holds).filter(|_| !said_live).map(|doubt| doubt.what.as_str())
    }
}
