//! Whether the application is still there, and whether it is another one than before: from its listening
//! sockets, so that nobody has to call it.

use std::collections::{BTreeMap, BTreeSet};

/// The listening sockets of the application, as far as they are on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The sockets (inodes) by its ports.
    pub by_port: BTreeMap<u16, BTreeSet<u64>>,
    /// Some of it is where nobody can see it from here.
    pub elsewhere: bool,
}

impl Listeners {
    /// Nobody listens on any of its ports any more.
    pub fn are_gone(&self) -> bool {
        !self.elsewhere && !self.by_port.is_empty() && self.by_port.values().all(BTreeSet::is_empty)
    }

    /// On one of its ports none listens of those that did `before`, but another does. A worker that is
    /// replaced beside others is no restart, nor is a port that is opened beside others, nor one that
    /// nobody had looked at: whoever calls it for the first time has not started it.
    pub fn replace(&self, before: &Self) -> bool {
        let had_not_started = before.by_port.values().all(BTreeSet::is_empty);
        self.by_port.iter().any(|(port, now)| match before.by_port.get(port) {
            Some(then) if then.is_empty() => had_not_started && !now.is_empty(),
            Some(then) => !now.is_empty() && now.is_disjoint(then),
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners<const N: usize>(ports: [(u16, &[u64]); N]) -> Listeners {
        let by_port = ports.map(|(port, inodes)| (port, inodes.iter().copied().collect())).into();
        Listeners { by_port, elsewhere: false }
    }

    #[test]
    fn an_application_is_gone_when_it_listens_nowhere() {
        assert!(!Listeners::default().are_gone(), "nothing is known");
        assert!(listeners([(80, &[]), (81, &[])]).are_gone());
        assert!(!listeners([(80, &[]), (81, &[7])]).are_gone());
        let beyond = Listeners { elsewhere: true, ..listeners([(80, &[])]) };
        assert!(!beyond.are_gone(), "the rest of it may be there");
    }

    #[test]
    fn it_has_started_anew_when_none_of_its_sockets_is_left() {
        let before = listeners([(80, &[1, 2]), (81, &[3])]);
        assert!(!before.replace(&before));
        assert!(!listeners([(80, &[]), (81, &[3])]).replace(&before), "one has only ended");
        assert!(!listeners([(80, &[2, 9]), (81, &[3])]).replace(&before), "one of its workers");
        assert!(listeners([(80, &[9]), (81, &[3])]).replace(&before));
        let none = listeners([(80, &[]), (81, &[])]);
        assert!(listeners([(80, &[9]), (81, &[])]).replace(&none), "it had not started yet");
    }

    #[test]
    fn a_port_that_was_not_listened_on_before_says_nothing_about_the_rest() {
        let before = listeners([(80, &[1])]);
        assert!(!listeners([(80, &[1]), (81, &[9])]).replace(&before), "called for the first time");
        assert!(!listeners([(80, &[]), (81, &[9])]).replace(&before), "even while it stops");
        assert!(!listeners([(80, &[9])]).replace(&Listeners::default()), "nothing was known");
        let before = listeners([(80, &[1]), (81, &[])]);
        assert!(!listeners([(80, &[1]), (81, &[9])]).replace(&before), "opened again");
    }
}
