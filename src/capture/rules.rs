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

/// A table with one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// It belongs to the socket that made it, and goes with it.
    pub(super) owned: bool,
    pub(super) sets: Vec<(&'static str, PortSet)>,
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
        let rule = |when, then| Rule { when, then };
        Table {
            name: TABLE,
            owned: false,
            sets: vec![(INCLUDED, self.included.clone()), (EXCLUDED, self.excluded.clone())],
            chain: "prerouting",
            hook: Hook::Prerouting,
            rules: vec![
                // What is dialled inside the pod does not come by here anew; were it to, it would
                // be our own dial to the application.
                rule(&[Match::FromLoopback], Verdict::Return),
                // A pod that forwards for others does not have their traffic captured.
                rule(&[Match::NotForHere], Verdict::Return),
                rule(&[Match::TcpPortIn(EXCLUDED)], Verdict::Return),
                rule(&[Match::TcpPortIn(INCLUDED)], Verdict::Redirect(self.redirect)),
            ],
        }
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
