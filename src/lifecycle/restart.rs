//! Whether the application is still there, and whether it is another one than before: from its listening
//! sockets, so that nobody has to call it.

use std::collections::{BTreeMap, BTreeSet};

/// The listening sockets (inodes) of the application, by its ports, as far as they are on this machine.
/// Empty: it cannot be seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners(pub BTreeMap<u16, BTreeSet<u64>>);

impl Listeners {
    /// Nobody listens on any of its ports any more.
    pub fn are_gone(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(BTreeSet::is_empty)
    }

    /// On one of its ports none listens of those that did `before`, but another does. A worker that is
    /// replaced beside others is no restart.
    pub fn replace(&self, before: &Self) -> bool {
        let none = BTreeSet::new();
        self.0.iter().any(|(port, now)| {
            !now.is_empty() && now.is_disjoint(before.0.get(port).unwrap_or(&none))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners<const N: usize>(ports: [(u16, &[u64]); N]) -> Listeners {
        Listeners(ports.map(|(port, inodes)| (port, inodes.iter().copied().collect())).into())
    }

    #[test]
    fn an_application_is_gone_when_it_listens_nowhere() {
        assert!(!Listeners::default().are_gone(), "nothing is known");
        assert!(listeners([(80, &[]), (81, &[])]).are_gone());
        assert!(!listeners([(80, &[]), (81, &[7])]).are_gone());
    }

    #[test]
    fn it_has_started_anew_when_none_of_its_sockets_is_left() {
        let before = listeners([(80, &[1, 2]), (81, &[3])]);
        assert!(!before.replace(&before));
        assert!(!listeners([(80, &[]), (81, &[3])]).replace(&before), "one has only ended");
        assert!(!listeners([(80, &[2, 9]), (81, &[3])]).replace(&before), "one of its workers");
        assert!(listeners([(80, &[9]), (81, &[3])]).replace(&before));
        assert!(listeners([(80, &[9])]).replace(&Listeners::default()), "it had not started yet");
    }
}
