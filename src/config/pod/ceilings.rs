//! Ceilings: the operator's upper bounds. What is asked for beyond one counts as the bound, and that is said.

use crate::config::{Layers, Mistakes};
use crate::settings::{self, Key, Value, WHOLE};

use super::{Remark, Trouble};

impl Layers {
    /// No more than the ceiling, which is about words: that nobody says a limit is not beyond it.
    pub(in crate::config) fn clamp(&self, key: &Key, port: Option<u16>, value: Value) -> Value {
        match (self.ceiling(key, port), value) {
            (Some(Value::Count(Some(most))), Value::Count(n)) => {
                Value::Count(Some(n.map_or(*most, |n| n.min(*most))))
            }
            (Some(Value::Duration(Some(most))), Value::Duration(long)) => {
                Value::Duration(Some(long.map_or(*most, |long| long.min(*most))))
            }
            (Some(Value::Ratio(most)), Value::Ratio(parts)) => Value::Ratio(parts.min(*most)),
            (_, value) => value,
        }
    }

    fn ceiling(&self, key: &Key, port: Option<u16>) -> Option<&Value> {
        let ceilings = &self.pod.as_ref()?.ceilings;
        let of =
            |wanted: Option<u16>| ceilings.iter().rev().find(|c| c.key == key && c.port == wanted);
        let word = port.and_then(|port| of(Some(port))).or_else(|| of(None));
        word.map(|word| &word.value)
    }

    /// What is asked for beyond the ceilings, by words that would hold.
    pub(super) fn clamped(&self) -> Vec<Remark> {
        let mut remarks: Vec<Remark> = Vec::new();
        for key in settings::KEYS {
            for port in self.ports_of(key) {
                let Some(word) = self.word(key, port) else { continue };
                let clamped = self.clamp(key, port, word.value.clone());
                if clamped == word.value {
                    continue;
                }
                let most = written(&clamped);
                let mut mistakes = Mistakes::default();
                let problem = format!("is beyond the operator's ceiling, and counts as {most}");
                mistakes.add(word.name(), Some(&word.text), &word.origin, problem);
                let source = word.origin.source();
                let new = mistakes.into_iter().map(|mistake| Remark {
                    source,
                    trouble: Trouble::Clamped,
                    mistake,
                });
                remarks.extend(new.filter(|new| !remarks.contains(new)).collect::<Vec<_>>());
            }
        }
        remarks
    }
}

/// A value as somebody would write it.
pub(in crate::config) fn written(value: &Value) -> String {
    match value {
        Value::Count(Some(n)) => n.to_string(),
        Value::Duration(Some(long)) => {
            humantime::format_duration(*long).to_string().replace(' ', "")
        }
        Value::Ratio(parts) => (f64::from(*parts) / f64::from(WHOLE)).to_string(),
        _ => String::new(),
    }
}
