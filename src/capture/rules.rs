//! The rules as they are meant, and as a person reads them.
//!
//! Always true: the text of a [`Plan`] is what `nft list table inet tidegate` shows once it is
//! installed. The kernel is never sent that text, only the rules themselves (`nftables.rs`).

use std::fmt;

use super::{OWN_PORTS, PortSet};

/// What to redirect, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    included: PortSet,
    excluded: PortSet,
    redirect: u16,
}

/// A set of ports that rules name.
pub(super) type NamedSet = (&'static str, PortSet);

/// A table with one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// It belongs to the socket that made it, and goes with it.
    pub(super) owned: bool,
    pub(super) sets: Vec<NamedSet>,
    pub(super) chain: &'static str,
    pub(super) hook: Hook,
    pub(super) rules: Vec<Rule>,
}

/// Where a NAT chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// What comes from outside.
    Prerouting,
    /// What this machine sends.
    Output,
}

/// If all of it holds, then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) when: &'static [Match],
    pub(super) then: Verdict,
}

/// What a packet may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// It came in by loopback.
    FromLoopback,
    /// It goes out by loopback.
    ToLoopback,
    /// It is for another machine.
    NotForHere,
    /// TCP, to a port of this set.
    TcpPortIn(&'static str),
    /// TCP, to this port.
    TcpPort(u16),
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes where it was going.
    Return,
    /// It goes to this port of ours.
    Redirect(u16),
}

/// The name of our table.
pub(super) const TABLE: &str = "tidegate";

const INCLUDED: &str = "included";
const EXCLUDED: &str = "excluded";
/// While ports change.
const NEXT_INCLUDED: &str = "included-next";
const NEXT_EXCLUDED: &str = "excluded-next";

impl Plan {
    /// Redirect connections to `included` but not to `excluded`, and never those to our own ports.
    pub fn new(included: PortSet, excluded: &PortSet, redirect: u16) -> Self {
        let own = [[redirect; 2], [*OWN_PORTS.start(), *OWN_PORTS.end()]];
        Self { included, excluded: excluded.with(own), redirect }
    }

    /// What was read back: sets and port as they are.
    pub(super) fn found(included: PortSet, excluded: PortSet, redirect: u16) -> Self {
        Self { included, excluded, redirect }
    }

    /// The ports whose connections are redirected.
    pub fn redirected(&self) -> PortSet {
        self.included.minus(&self.excluded)
    }

    /// Where to.
    pub fn redirect_port(&self) -> u16 {
        self.redirect
    }

    /// The rules, in the order in which they are asked.
    pub(super) fn table(&self) -> Table {
        table(self.sets(), [self.rules()])
    }

    /// The tables on the way from `old`, which is in force, to these rules. A kernel puts a transaction's
    /// new rules in force a moment before the ports of its new sets: in every step there are rules whose sets
    /// were there before it, so that a port that is redirected before and after is redirected all the time.
    ///
    /// ```text
    ///   old → old, next → next, new → new        next: the new ports under other names
    /// ```
    pub(super) fn steps_from(&self, old: &Self) -> [Table; 3] {
        let [next, new] = [self.next_sets(), self.sets()];
        [
            table([old.sets(), next.clone()].concat(), [old.rules(), self.next_rules()]),
            table([next, new].concat(), [self.next_rules(), self.rules()]),
            self.table(),
        ]
    }

    fn sets(&self) -> Vec<NamedSet> {
        vec![(INCLUDED, self.included.clone()), (EXCLUDED, self.excluded.clone())]
    }

    fn next_sets(&self) -> Vec<NamedSet> {
        vec![(NEXT_INCLUDED, self.included.clone()), (NEXT_EXCLUDED, self.excluded.clone())]
    }

    fn rules(&self) -> [Rule; 2] {
        let redirect = Verdict::Redirect(self.redirect);
        [
            rule(&[Match::TcpPortIn(EXCLUDED)], Verdict::Return),
            rule(&[Match::TcpPortIn(INCLUDED)], redirect),
        ]
    }

    fn next_rules(&self) -> [Rule; 2] {
        let redirect = Verdict::Redirect(self.redirect);
        [
            rule(&[Match::TcpPortIn(NEXT_EXCLUDED)], Verdict::Return),
            rule(&[Match::TcpPortIn(NEXT_INCLUDED)], redirect),
        ]
    }
}

const fn rule(when: &'static [Match], then: Verdict) -> Rule {
    Rule { when, then }
}

fn table<const N: usize>(sets: Vec<NamedSet>, rules: [[Rule; 2]; N]) -> Table {
    let guards = [
        // What is dialled inside the pod does not come by here anew; were it to, it would be our own
        // dial to the application.
        rule(&[Match::FromLoopback], Verdict::Return),
        // A pod that forwards for others does not have their traffic captured.
        rule(&[Match::NotForHere], Verdict::Return),
    ];
    Table {
        name: TABLE,
        owned: false,
        sets,
        chain: "prerouting",
        hook: Hook::Prerouting,
        rules: guards.into_iter().chain(rules.into_iter().flatten()).collect(),
    }
}

impl Table {
    /// The sets that stay as they are when this table is made of `old`. One that comes after a new one does
    /// not: they are listed in the order in which they were made.
    pub(super) fn kept_from(&self, old: &Self) -> &[NamedSet] {
        let kept = self.sets.iter().take_while(|set| old.sets.contains(set));
        &self.sets[..kept.count()]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table().fmt(f)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for (name, ports) in &self.sets {
            writeln!(f, "\tset {name} {{\n\t\ttype inet_service\n\t\tflags interval")?;
            if !ports.is_empty() {
                writeln!(f, "\t\telements = {{ {ports} }}")?;
            }
            writeln!(f, "\t}}\n")?;
        }
        writeln!(f, "\tchain {} {{", self.chain)?;
        let hook = self.hook.word();
        writeln!(f, "\t\ttype nat hook {hook} priority dstnat; policy accept;")?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}\n}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in self.when {
            match condition {
                Match::FromLoopback => f.write_str("iif \"lo\" ")?,
                Match::ToLoopback => f.write_str("oif \"lo\" ")?,
                Match::NotForHere => f.write_str("fib daddr type != local ")?,
                Match::TcpPortIn(set) => write!(f, "tcp dport @{set} ")?,
                Match::TcpPort(port) => write!(f, "tcp dport {port} ")?,
            }
        }
        match self.then {
            Verdict::Return => f.write_str("return"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

impl Hook {
    /// As `nft` says it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `table` redirects what comes from elsewhere to `port`, when of its sets only those are filled
    /// that `filled` says.
    fn redirects(table: &Table, port: u16, filled: impl Fn(&NamedSet) -> bool) -> bool {
        let holds = |condition: &Match| match condition {
            Match::TcpPortIn(name) => {
                let set = table.sets.iter().find(|(known, _)| known == name).expect("its own set");
                filled(set) && set.1.contains(port)
            }
            _ => false,
        };
        let met = table.rules.iter().find(|rule| rule.when.iter().all(holds));
        met.is_some_and(|rule| matches!(rule.then, Verdict::Redirect(_)))
    }

    #[test]
    fn a_port_that_stays_is_redirected_in_every_step_even_before_its_new_sets_are_filled() {
        let ports = |text| PortSet::parse(text).expect("ports");
        let plans =
            [("8080", "none"), ("8000-9000", "8500"), ("all", "22,8500-9000"), ("80,8080", "80")];
        let plans = plans.map(|(in_, out)| Plan::new(ports(in_), &ports(out), 15801));
        for (old, new) in plans.iter().flat_map(|old| plans.iter().map(move |new| (old, new))) {
            let mut now = old.table();
            for next in new.steps_from(old) {
                for port in [80, 443, 8080, 8081, 8500] {
                    let [before, after] = [old, new].map(|plan| plan.redirected().contains(port));
                    let filled = redirects(&next, port, |_| true);
                    let early = redirects(&next, port, |set| next.kept_from(&now).contains(set));
                    if before && after {
                        assert!(filled && early, "{port}: {old} to {new}: {next}");
                    }
                    assert!(before || after || !filled && !early, "{port}: {old} to {new}: {next}");
                }
                now = next;
            }
            assert_eq!(now, new.table());
        }
    }
}
