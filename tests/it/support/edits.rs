//! Settings edited at random, by everybody who may: the namespace's ConfigMap (`_all` and the workload's key),
//! annotations, `tidegate set`. The books of it know, by the precedence alone, what has to be in force.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tidegate::settings::{KEYS, Key, Kind, Scope, find};

use super::gateway::Gateway;
use super::{Rng, kubelet, slack, until};

/// "Applied within 1 s of being seen."
pub(crate) const APPLIED: Duration = Duration::from_secs(1);

/// Who says something, weakest first.
pub(crate) const ALL: usize = 0;
pub(crate) const WORKLOAD: usize = 1;
pub(crate) const ANNOTATIONS: usize = 2;
const LIVE: usize = 3;

/// A port as people call it who make pods, and as its gateway does.
pub(crate) type Port = (u16, u16);

/// Each setting in force, of the process or of a port. A captured port that nobody names has none.
type Force = BTreeMap<(String, Option<u16>), String>;

/// What was said, and what of it is valid, source by source.
pub(crate) struct Books {
    ports: Vec<Port>,
    said: [BTreeMap<String, String>; 4],
    good: [BTreeMap<String, String>; 4],
    /// What holds where nobody says anything.
    base: Force,
    ceilings: BTreeMap<&'static str, u64>,
}

impl Books {
    /// Of a gateway to which nobody has said anything yet. A rule that follows from other settings is nothing to
    /// fall back on: the operator has to have said `mode`, `limit`, `queue-length`, `shadow-limits` and
    /// `drain-timeout`.
    pub(crate) fn new(gateway: &Gateway, ports: &[Port]) -> Self {
        let (said, good) = Default::default();
        let base = in_force(gateway);
        Self { ports: ports.to_vec(), said, good, base, ceilings: BTreeMap::new() }
    }

    pub(crate) fn ceiling(mut self, key: &'static str, most: u64) -> Self {
        self.ceilings.insert(key, most);
        self
    }

    /// Everything the annotations say.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        let said = self.said[ANNOTATIONS].iter();
        said.map(|(name, text)| (format!("tidegate.dev/{name}"), text.clone())).collect()
    }

    /// A file of the ConfigMap.
    pub(crate) fn file(&self, source: usize) -> String {
        let lines = self.said[source].iter().map(|(name, text)| format!("{name}: \"{text}\"\n"));
        lines.collect()
    }

    /// Of a name with or without a port: the setting, and how the gateway calls the port.
    fn about(&self, name: &str) -> Option<(&'static Key, Option<u16>)> {
        let (key, port) = match name.split_once('.') {
            None => (find(name)?, None),
            Some((key, number)) => {
                let number: u16 = number.parse().ok()?;
                let mut known =
                    self.ports.iter().filter(|(theirs, ours)| *theirs == number || *ours == number);
                (find(key)?, Some(known.next()?.1))
            }
        };
        (key.scope == Scope::Port || port.is_none()).then_some((key, port))
    }

    /// What is drawn is good unless it is one of [`BAD`].
    fn is_good(&self, name: &str, text: &str) -> bool {
        self.about(name).is_some() && !BAD.contains(&text)
    }

    /// The source says this now, from end to end.
    fn hear(&mut self, source: usize) {
        let before = std::mem::take(&mut self.good[source]);
        for (name, text) in &self.said[source] {
            if self.is_good(name, text) {
                self.good[source].insert(name.clone(), text.clone());
            } else if let Some(last) = before.get(name) {
                self.good[source].insert(name.clone(), last.clone());
            }
        }
    }

    fn in_force(&self) -> Force {
        let holds = |((key, port), base): (&(String, Option<u16>), &String)| {
            let about = |wanted: Option<u16>| {
                move |good: &BTreeMap<String, String>| {
                    let mut words = good.iter();
                    let found = words.find(|(name, _)| {
                        let (of, port) = self.about(name).expect("it is good");
                        of.name == key && port == wanted
                    });
                    found.map(|(_, text)| text.clone())
                }
            };
            let said = self.good.iter().rev().find_map(|good| {
                port.and_then(|port| about(Some(port))(good)).or_else(|| about(None)(good))
            });
            let said = said.map(|text| match self.ceilings.get(key.as_str()) {
                Some(most) => text.parse::<u64>().expect("a number").min(*most).to_string(),
                None => text,
            });
            ((key.clone(), *port), said.unwrap_or_else(|| base.clone()))
        };
        self.base.iter().map(holds).collect()
    }
}

/// Of no kind of setting, and no word for "as it was".
const BAD: [&str; 4] = ["", "-1", "many!", "1 2"];

/// The settings that change while the gateway runs.
fn live() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.live)
}

/// By the gateway's own word.
pub(crate) fn in_force(gateway: &Gateway) -> Force {
    let body = gateway.call("GET", "/settings.json", "").body;
    let all: Vec<Value> = serde_json::from_str(&body).expect("a list");
    let known = |one: &Value| live().any(|key| one["key"] == key.name);
    let text = |one: &Value, of: &str| one[of].as_str().expect("a text").to_owned();
    let port = |one: &Value| one["port"].as_u64().map(|port| port as u16);
    let all = all.iter().filter(|one| known(one));
    all.map(|one| ((text(one, "key"), port(one)), text(one, "value"))).collect()
}

/// A value that can be used, and harms nobody who is under way.
fn value(rng: &mut Rng, key: &Key) -> String {
    match key.kind {
        // Who is refused is to be told by a FIN: a RST may be somebody's loss.
        Kind::Choice { .. } if key.name == "tcp-refuse" => {
            ["close", "hold"][rng.below(2) as usize].to_owned()
        }
        Kind::Choice { words, .. } => words[rng.below(words.len() as u64) as usize].to_owned(),
        Kind::Count { min, .. } => (u64::from(min) + 1 + rng.below(100)).to_string(),
        Kind::Counts { .. } => format!("{},200", 1 + rng.below(100)),
        Kind::Ratio => format!("0.{}", 1 + rng.below(9)),
        Kind::Duration { .. } => format!("{}s", 20 + rng.below(39)),
        Kind::Filter => ["info", "debug", "info,tidegate=debug"][rng.below(3) as usize].to_owned(),
        kind => panic!("nobody draws {kind:?} for {}", key.name),
    }
}

/// Where a change that is drawn is said.
pub(crate) type Say<'a> = &'a dyn Fn(&Books, usize);

/// So many edits, one after the other: after each of them what is in force is what was last valid.
#[track_caller]
pub(crate) fn at_random(
    rng: &mut Rng,
    edits: usize,
    gateway: &Gateway,
    books: &mut Books,
    say: Say<'_>,
) {
    let mut done = 0;
    while done < edits {
        let Some(what) = edit(rng, gateway, books, say) else { continue };
        done += 1;
        let (now, right) = (in_force(gateway), books.in_force());
        let wrong = now.iter().filter(|(what, text)| right.get(what) != Some(text));
        let wrong: Vec<_> = wrong.map(|(what, text)| (what, text, right.get(what))).collect();
        assert!(wrong.is_empty() && now.len() == right.len(), "edit {done}, {what}: {wrong:?}");
    }
}

/// One edit: what it was. `None`: what was drawn would have changed nothing.
fn edit(rng: &mut Rng, gateway: &Gateway, books: &mut Books, say: Say<'_>) -> Option<String> {
    let source = rng.below(4) as usize;
    let keys: Vec<_> = live().collect();
    // Half of them about what decides who is refused.
    let key = match rng.below(4) {
        0 => find("limit").expect("a key"),
        1 => find("queue-length").expect("a key"),
        _ => keys[rng.below(keys.len() as u64) as usize],
    };
    let mut name = match rng.below(12) {
        0 => "limmit".to_owned(),
        1 => format!("{}.x", key.name),
        _ => key.name.to_owned(),
    };
    if rng.below(3) == 0 && !name.contains('.') {
        let (theirs, ours) = books.ports[rng.below(books.ports.len() as u64) as usize];
        name = format!("{name}.{}", if source == LIVE { ours } else { theirs });
    }
    let text = match rng.below(4) {
        0 => BAD[rng.below(BAD.len() as u64) as usize].to_owned(),
        _ => value(rng, key),
    };
    let remove = rng.below(5) == 0;
    if source == LIVE {
        let text = if remove { "default".to_owned() } else { text };
        say_live(gateway, books, &name, &text);
        return Some(format!("set {name}={text:?}"));
    }
    let said = &mut books.said[source];
    let changed = match remove {
        true => said.remove(&name).is_some(),
        false => said.insert(name.clone(), text.clone()) != Some(text.clone()),
    };
    if !changed {
        return None;
    }
    books.hear(source);
    let label = if source == ANNOTATIONS { "annotations" } else { "namespace" };
    let label = format!("source=\"{label}\"");
    let count = || gateway.metric("tidegate_config_changes_total", &label);
    let before = count();
    say(books, source);
    let what =
        format!("{} {name}={text:?}, remove: {remove}", ["_all", "workload", "annotation"][source]);
    until(&format!("it is heard: {what}"), slack(APPLIED), || count() > before);
    Some(what)
}

fn say_live(gateway: &Gateway, books: &mut Books, name: &str, text: &str) {
    let body = serde_json::json!({ name: text }).to_string();
    let code = gateway.call("POST", "/set", &body).code;
    let about = books.about(name);
    let good = about.is_some() && !BAD.contains(&text);
    assert_eq!(code < 300, good, "set {name}={text:?}: {code}");
    let Some((key, port)) = about.filter(|_| good) else { return };
    // What is said without a port is about all of them.
    let mut before = std::mem::take(&mut books.good[LIVE]);
    before.retain(|old, _| {
        let (of, about) = books.about(old).expect("it is good");
        of != key || port.is_some() && about != port
    });
    if text != "default" {
        before.insert(name.to_owned(), text.to_owned());
    }
    books.good[LIVE] = before;
}

/// Puts the books' ConfigMap into a volume.
pub(crate) fn files(books: &Books) -> BTreeMap<String, String> {
    [("_all", ALL), ("shop", WORKLOAD)]
        .map(|(file, source)| (file.to_owned(), books.file(source)))
        .into()
}

/// The downward API's file of the books' annotations.
pub(crate) fn annotations(books: &Books) -> String {
    kubelet::annotations(&books.annotations())
}
