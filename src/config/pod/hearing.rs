//! Hearing: one source has spoken, and is judged key by key. What can be used becomes its words; what
//! cannot leaves the word that was there, and a remark.
//!
//! Always true: a pair touches no other key. While the gateway runs, a word that needs a restart is
//! neither taken up nor given up.

use crate::config::words::{Word, dotted, full_name};
use crate::config::{Layers, Mistake, Mistakes, Origin};
use crate::settings::{self, INJECTORS, Key, Kind, OPERATORS};

use super::said::Pair;
use super::{DECISIVE, Doubt, FOLLOWED, Pod, Remark, Source, Trouble};

/// Annotations of ours that are no settings.
const RECORDS: [&str; 5] = ["inject", "revision", "status", "injected-version", "original"];

/// What annotations ask of the sidecar's container.
const CONTAINER: &str = "sidecar-";

/// One source being listened to.
pub(super) struct Hearing<'a> {
    pub(super) layers: &'a Layers,
    pub(super) pod: &'a mut Pod,
    pub(super) source: Source,
    /// Values that cannot be used and have no predecessor.
    pub(super) unusable: Vec<Doubt>,
}

impl Hearing<'_> {
    pub(super) fn unreadable(&mut self, problem: String) {
        let setting = match self.source {
            Source::Template => "template-annotations",
            Source::Ceilings => "ceilings",
            Source::Annotations => "annotations",
            _ => "namespace-config",
        };
        let mistake =
            Mistake { setting: setting.into(), value: None, origin: String::new(), problem };
        let what = mistake.to_string();
        self.remark(Trouble::Unreadable, mistake);
        if self.has_said_nothing() {
            self.unusable.push(Doubt { source: self.source, key: None, port: None, what });
        }
    }

    fn has_said_nothing(&self) -> bool {
        self.layer().is_none_or(Vec::is_empty)
    }

    fn layer(&self) -> Option<&Vec<Word>> {
        match FOLLOWED.iter().position(|source| *source == self.source) {
            Some(at) => Some(&self.pod.words[at]),
            None => Some(&self.pod.ceilings),
        }
    }

    pub(super) fn pairs(&mut self, pairs: Vec<Pair>) {
        let before = self.layer().cloned().unwrap_or_default();
        if self.source == Source::Template {
            self.pod.template =
                pairs.iter().map(|pair| (pair.name.clone(), pair.text.clone())).collect();
        }
        let mut words = Vec::new();
        for pair in pairs {
            words.extend(self.pair(&pair, &before));
        }
        self.keep_what_needs_a_restart(&before, &mut words);
        match FOLLOWED.iter().position(|source| *source == self.source) {
            Some(at) => self.pod.words[at] = words,
            None => self.pod.ceilings = words,
        }
    }

    /// The word that holds after this pair: its own, or the one before.
    fn pair(&mut self, pair: &Pair, before: &[Word]) -> Option<Word> {
        let Pair { name, text, line } = pair;
        if self.is_not_for_us(name, text) {
            return None;
        }
        let origin = self.source.origin(*line);
        let mut mistakes = Mistakes::default();
        let (key, port) = match dotted(name, &origin, &mut mistakes) {
            Some(found) => found,
            None => {
                let known = settings::find(name.split('.').next().unwrap_or_default());
                let trouble = if known.is_some() { Trouble::Invalid } else { Trouble::Unknown };
                self.all(trouble, mistakes);
                return None;
            }
        };
        if OPERATORS.contains(&key.name) || INJECTORS.contains(&key.name) {
            if self.source != Source::Ceilings {
                self.note(Trouble::Unused, name, Some(text), origin, "is the operator's to set");
            }
            return None;
        }
        if let Some(problem) = self.pod.forbids(key).filter(|_| self.source != Source::Ceilings) {
            self.note(Trouble::Unused, name, Some(text), origin, problem);
            return None;
        }
        let known = port.map(|port| self.layers.served_as(port));
        if known == Some(None) {
            // The whole namespace has more ports than one pod.
            if self.source != Source::Namespace {
                let problem = "is about a port that is not served here";
                self.note(Trouble::Unused, name, Some(text), origin, problem);
            }
            return None;
        }
        let port = known.flatten();
        let word = Word::parse(key, port, text.clone(), origin.clone(), &mut mistakes)
            .filter(|word| self.may_be_a_ceiling(word, &mut mistakes));
        let old = before.iter().rev().find(|word| word.key == key && word.port == port);
        match word {
            Some(word) if key.live || !self.pod.started => return Some(word),
            // What is there already and needs a restart is put back at the end.
            Some(word) => {
                if old.is_none_or(|old| old.value != word.value) {
                    let problem = "needs a restart: it cannot change while the gateway runs";
                    self.note(Trouble::NeedsRestart, name, Some(text), origin, problem);
                }
            }
            None => {
                let what = mistakes.iter().map(ToString::to_string).collect();
                self.all(Trouble::Invalid, mistakes);
                if key.live && old.is_some() {
                    return old.cloned();
                }
                if DECISIVE.contains(&key.name) || self.source == Source::Ceilings {
                    self.unusable.push(Doubt { source: self.source, key: Some(key), port, what });
                }
            }
        }
        None
    }

    /// What a name is about, if it is about anything here.
    fn about(&self, name: &str) -> Option<(&'static Key, Option<u16>)> {
        let mut nobody = Mistakes::default();
        match dotted(name, &Origin::Annotation, &mut nobody)? {
            (key, None) => Some((key, None)),
            (key, Some(port)) => Some((key, Some(self.layers.served_as(port)?))),
        }
    }

    /// Annotations that are no settings, or were not edited.
    fn is_not_for_us(&mut self, name: &str, text: &str) -> bool {
        if !matches!(self.source, Source::Template | Source::Annotations) {
            return false;
        }
        if RECORDS.contains(&name) {
            return true;
        }
        let as_made = self.pod.template.get(name).is_some_and(|made| made == text);
        if self.source == Source::Annotations && as_made {
            return true;
        }
        if INJECTORS.contains(&name) || name.starts_with(CONTAINER) {
            if self.source == Source::Annotations {
                let problem = "is read when the pod is made: it needs a new pod";
                self.note(Trouble::NeedsRestart, name, Some(text), Origin::Annotation, problem);
            }
            return true;
        }
        false
    }

    fn may_be_a_ceiling(&self, word: &Word, mistakes: &mut Mistakes) -> bool {
        let ordered =
            matches!(word.key.kind, Kind::Count { .. } | Kind::Duration { .. } | Kind::Ratio);
        let may = self.source != Source::Ceilings || ordered;
        if !may {
            let problem = "cannot have a ceiling: only numbers and durations can";
            mistakes.add(word.name(), Some(&word.text), &word.origin, problem);
        }
        may
    }

    /// What cannot change while the gateway runs stays as it was at the start.
    fn keep_what_needs_a_restart(&mut self, before: &[Word], words: &mut Vec<Word>) {
        if !self.pod.started {
            return;
        }
        let said: Vec<_> = match self.pod.said.get(&self.source) {
            Some(Ok(pairs)) => pairs.iter().filter_map(|pair| self.about(&pair.name)).collect(),
            _ => Vec::new(),
        };
        for old in before.iter().filter(|word| !word.key.live) {
            let named = said.iter().any(|(key, port)| *key == old.key && *port == old.port);
            if !named {
                let problem = "has been taken away, which needs a restart";
                let name = full_name(old.key, old.port);
                self.note(Trouble::NeedsRestart, &name, Some(&old.text), &old.origin, problem);
            }
            words.push(old.clone());
        }
    }

    fn note(
        &mut self,
        trouble: Trouble,
        name: &str,
        text: Option<&str>,
        origin: impl ToString,
        problem: impl Into<String>,
    ) {
        let mut mistakes = Mistakes::default();
        mistakes.add(name, text, origin, problem);
        self.all(trouble, mistakes);
    }

    fn all(&mut self, trouble: Trouble, mistakes: Mistakes) {
        mistakes.into_iter().for_each(|mistake| self.remark(trouble, mistake));
    }

    fn remark(&mut self, trouble: Trouble, mistake: Mistake) {
        let source = self.source;
        self.pod.remarks.entry(source).or_default().push(Remark { source, trouble, mistake });
    }
}
