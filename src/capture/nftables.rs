//! A [`Table`] as the kernel takes it and gives it back: `linux/netfilter/nf_tables.h`, in the same
//! bytes that Debian's `nft` sends (`recorded.hex`).
//!
//! Why not a crate: of those there are (2026), one is under the GPL, one needs C libraries, one runs
//! `nft`, which the image does not have, and none of the rest knows rules.

use super::PortSet;
use super::netlink::{self, ACK, DUMP, Message, REQUEST, Received, attribute, attributes};
use super::rules::{Hook, Match, NamedSet, Plan, Rule, TABLE, Table, Verdict};

/// One step of a transaction: its message, and what to call it when the kernel refuses it.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) sequence: u32,
    pub(super) what: String,
    bytes: Vec<u8>,
}

/// What the kernel is to do, all of it or nothing.
#[derive(Debug, Default)]
pub(super) struct Batch {
    steps: Vec<Step>,
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0xa00;
const GET_TABLE: u16 = 0xa01;
const DELETE_TABLE: u16 = 0xa02;
const NEW_CHAIN: u16 = 0xa03;
const GET_CHAIN: u16 = 0xa04;
const NEW_RULE: u16 = 0xa06;
const GET_RULE: u16 = 0xa07;
const DELETE_RULE: u16 = 0xa08;
const NEW_SET: u16 = 0xa09;
const DELETE_SET: u16 = 0xa0b;
const NEW_ELEMENTS: u16 = 0xa0c;
const GET_ELEMENTS: u16 = 0xa0d;

const CREATE: u16 = 0x400;
/// What is to be created must not be there: another process may be at it.
const NOT_THERE: u16 = 0x200;
const APPEND: u16 = 0x800;

/// `struct nfgenmsg`: family, version, resource in network order.
const INET: [u8; 4] = [1, 0, 0, 0];
/// nftables is subsystem 10.
const BATCH: [u8; 4] = [0, 0, 0, 10];

const LIST_ELEMENT: u16 = 1;
const TABLE_OWNER: u32 = 2;
const SET_INTERVAL: u32 = 4;
/// `nft`'s number for the type `inet_service`; the kernel only keeps it.
const INET_SERVICE: u32 = 13;
/// What `nft` keeps beside a set: the byte order of its keys (0) is, in 4 bytes, big endian (2).
const KEYS_ARE_BIG_ENDIAN: [u8; 6] = [0, 4, 2, 0, 0, 0];
const INTERVAL_END: u32 = 1;
const ACCEPT: u32 = 1;
/// NF_IP_PRI_NAT_DST
const PRIORITY: i32 = -100;
const RETURN: i32 = -5;

/// The register everything goes through.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

/// What a rule is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    Meta(u32),
    FibType,
    TcpDestination,
    Compare { op: u32, value: Vec<u8> },
    Lookup(String),
    Load(Vec<u8>),
    Return,
    Redirect,
}

const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
/// `lo` is the first interface of every network namespace.
const LOOPBACK: u32 = 1;
/// RTN_LOCAL
const LOCAL: u32 = 2;
const TCP: u8 = 6;
const TRANSPORT: u32 = 2;
const FIB_BY_DESTINATION: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const PORT_IS_GIVEN: u32 = 2;

impl Batch {
    /// Put `table` in place of whatever has its name.
    pub(super) fn replacing(table: &Table) -> Self {
        let mut batch = Self::removing(table.name);
        batch.create(table);
        batch
    }

    /// Make of the table `old`, which is in force, the table `new` with the same chain. The chain stays, so a
    /// packet meets either all of the old rules or all of the new ones.
    pub(super) fn changing(old: &Table, new: &Table) -> Self {
        let Table { name, chain, .. } = old;
        let mut batch = Self::default();
        batch.add(format!("removing the old rules of {chain}"), |n| {
            Message::new(DELETE_RULE, REQUEST, n, &INET).text(1, name).text(2, chain)
        });
        let kept = new.kept_from(old);
        for (set, _) in old.sets.iter().filter(|set| !kept.contains(set)) {
            batch.add(format!("removing the old set {set}"), |n| {
                Message::new(DELETE_SET, REQUEST, n, &INET).text(1, name).text(2, set)
            });
        }
        batch.fill(new, kept);
        batch
    }

    /// Remove the table of that name, whether it is there or not.
    pub(super) fn removing(name: &str) -> Self {
        let mut batch = Self::default();
        // Deleting what is not there is an error, making what is there is none.
        batch.add(format!("the table {name}"), |n| new_table(n, name, 0));
        batch.add(format!("removing the old table {name}"), |n| {
            Message::new(DELETE_TABLE, REQUEST, n, &INET).text(1, name)
        });
        batch
    }

    /// Make a table that is not there.
    pub(super) fn create(&mut self, table: &Table) {
        let Table { name, owned, chain, hook, .. } = table;
        let flags = if *owned { TABLE_OWNER } else { 0 };
        self.add(format!("the table {name}"), |n| new_table(n, name, flags));
        self.add(format!("the NAT chain {chain} (nft_chain_nat, nf_nat, nf_conntrack)"), |n| {
            new_chain(n, name, chain, *hook)
        });
        self.fill(table, &[]);
    }

    /// Make the sets, but those that are there, and the rules of a table whose chain is there.
    fn fill(&mut self, table: &Table, there: &[NamedSet]) {
        let Table { name, sets, rules, .. } = table;
        for (set, id) in sets.iter().zip(1..).filter(|(set, _)| !there.contains(set)) {
            self.add(format!("the set {} (nft_set_rbtree)", set.0), |n| {
                new_set(n, name, set.0, id)
            });
            if !set.1.is_empty() {
                self.add(format!("the ports of the set {}", set.0), |n| {
                    new_elements(n, name, set.0, id, &set.1)
                });
            }
        }
        for rule in rules {
            let needs = match rule {
                Rule { when: [Match::NotForHere], .. } => " (nft_fib_inet)",
                Rule { then: Verdict::Redirect(_), .. } => " (nft_redir)",
                _ => "",
            };
            self.add(format!("the rule `{rule}`{needs}"), |n| new_rule(n, table, rule));
        }
    }

    fn add(&mut self, what: String, message: impl FnOnce(u32) -> Message) {
        let sequence = u32::try_from(self.steps.len()).expect("batches are short") + 1;
        self.steps.push(Step { sequence, what, bytes: message(sequence).into_bytes() });
    }

    /// What the message `sequence` was about.
    pub(super) fn what(&self, sequence: u32) -> &str {
        let step = self.steps.iter().find(|step| step.sequence == sequence);
        step.map_or("the transaction", |step| &step.what)
    }

    /// The number of the last message, which is acknowledged.
    pub(super) fn last(&self) -> u32 {
        self.steps.last().map_or(0, |step| step.sequence)
    }

    /// All messages. Without `commit` the kernel judges them and does nothing.
    pub(super) fn into_bytes(self, commit: bool) -> (Vec<u8>, Self) {
        let mut bytes = Message::new(BATCH_BEGIN, REQUEST, 0, &BATCH).into_bytes();
        for step in &self.steps {
            let at = bytes.len();
            bytes.extend(&step.bytes);
            if step.sequence == self.last() {
                let flags = u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]) | ACK;
                bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
            }
        }
        if commit {
            bytes.extend(Message::new(BATCH_END, REQUEST, self.last() + 1, &BATCH).into_bytes());
        }
        (bytes, self)
    }
}

fn new_table(sequence: u32, name: &str, flags: u32) -> Message {
    Message::new(NEW_TABLE, REQUEST, sequence, &INET).text(1, name).number(2, flags)
}

fn new_chain(sequence: u32, table: &str, name: &str, hook: Hook) -> Message {
    Message::new(NEW_CHAIN, REQUEST | CREATE, sequence, &INET)
        .text(1, table)
        .text(3, name)
        .text(7, "nat")
        .number(5, ACCEPT)
        .nest(4, |inner| inner.number(1, hook.number()).put(2, &PRIORITY.to_be_bytes()))
}

fn new_set(sequence: u32, table: &str, name: &str, id: u32) -> Message {
    Message::new(NEW_SET, REQUEST | CREATE | NOT_THERE, sequence, &INET)
        .text(1, table)
        .text(2, name)
        .number(3, SET_INTERVAL)
        .number(4, INET_SERVICE)
        .number(5, 2)
        .number(10, id)
        .put(13, &KEYS_ARE_BIG_ENDIAN)
}

/// An interval is its first key, and an end one beyond the last unless that is the end of all.
fn new_elements(sequence: u32, table: &str, set: &str, id: u32, ports: &PortSet) -> Message {
    let element = |list: Message, key: u16, flags: u32| {
        list.nest(LIST_ELEMENT, |one| {
            let one = if flags == 0 { one } else { one.number(3, flags) };
            one.nest(1, |data| data.put(1, &key.to_be_bytes()))
        })
    };
    Message::new(NEW_ELEMENTS, REQUEST | CREATE, sequence, &INET)
        .text(1, table)
        .text(2, set)
        .number(4, id)
        .nest(3, |list| {
            let list = element(list, 0, INTERVAL_END);
            ports.intervals().iter().fold(list, |list, [first, last]| {
                let list = element(list, *first, 0);
                match last.checked_add(1) {
                    Some(end) => element(list, end, INTERVAL_END),
                    None => list,
                }
            })
        })
}

fn new_rule(sequence: u32, table: &Table, rule: &Rule) -> Message {
    let set_id = |wanted: &str| {
        let at = table.sets.iter().position(|(name, _)| *name == wanted);
        u32::try_from(at.expect("a rule names sets of its table")).expect("few sets") + 1
    };
    Message::new(NEW_RULE, REQUEST | CREATE | APPEND, sequence, &INET)
        .text(1, table.name)
        .text(2, table.chain)
        .nest(4, |list| {
            rule.expressions().iter().fold(list, |list, expr| {
                list.nest(LIST_ELEMENT, |one| {
                    one.text(1, expr.name()).nest(2, |data| expr.write(data, &set_id))
                })
            })
        })
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
        }
    }
}

impl Rule {
    pub(super) fn expressions(&self) -> Vec<Expr> {
        let equal = |value: &[u8]| Expr::Compare { op: EQUAL, value: value.to_vec() };
        let mut list = Vec::new();
        for condition in self.when {
            match condition {
                Match::FromLoopback => {
                    list.extend([Expr::Meta(META_IIF), equal(&LOOPBACK.to_ne_bytes())]);
                }
                Match::ToLoopback => {
                    list.extend([Expr::Meta(META_OIF), equal(&LOOPBACK.to_ne_bytes())]);
                }
                Match::NotForHere => list.extend([
                    Expr::FibType,
                    Expr::Compare { op: UNEQUAL, value: LOCAL.to_ne_bytes().to_vec() },
                ]),
                Match::TcpPortIn(_) | Match::TcpPort(_) => {
                    list.extend([Expr::Meta(META_L4PROTO), equal(&[TCP]), Expr::TcpDestination]);
                    list.push(match condition {
                        Match::TcpPort(port) => equal(&port.to_be_bytes()),
                        Match::TcpPortIn(set) => Expr::Lookup((*set).to_owned()),
                        _ => unreachable!("one of the two"),
                    });
                }
            }
        }
        match self.then {
            Verdict::Return => list.push(Expr::Return),
            Verdict::Redirect(port) => {
                list.extend([Expr::Load(port.to_be_bytes().to_vec()), Expr::Redirect]);
            }
        }
        list
    }
}

impl Expr {
    const fn name(&self) -> &'static str {
        match self {
            Self::Meta(_) => "meta",
            Self::FibType => "fib",
            Self::TcpDestination => "payload",
            Self::Compare { .. } => "cmp",
            Self::Lookup(_) => "lookup",
            Self::Load(_) | Self::Return => "immediate",
            Self::Redirect => "redir",
        }
    }

    fn write(&self, data: Message, set_id: &impl Fn(&str) -> u32) -> Message {
        match self {
            Self::Meta(key) => data.number(2, *key).number(1, REGISTER),
            Self::FibType => {
                data.number(3, FIB_BY_DESTINATION).number(2, FIB_ADDRESS_TYPE).number(1, REGISTER)
            }
            Self::TcpDestination => {
                data.number(1, REGISTER).number(2, TRANSPORT).number(3, 2).number(4, 2)
            }
            Self::Compare { op, value } => {
                data.number(1, REGISTER).number(2, *op).nest(3, |d| d.put(1, value))
            }
            Self::Lookup(set) => data.number(2, REGISTER).text(1, set).number(4, set_id(set)),
            Self::Load(value) => data.number(1, REGISTER).nest(2, |d| d.put(1, value)),
            Self::Return => data
                .number(1, VERDICT)
                .nest(2, |d| d.nest(2, |verdict| verdict.put(1, &RETURN.to_be_bytes()))),
            Self::Redirect => data.number(1, REGISTER).number(3, PORT_IS_GIVEN),
        }
    }

    /// An expression of ours, or `None`: whatever this is, we did not write it.
    fn read(element: &[u8]) -> Option<Self> {
        let data = attribute(element, 2)?;
        let number = |kind| netlink::be_number(data, kind);
        let value = |kind| attribute(attribute(data, kind)?, 1).map(<[u8]>::to_vec);
        match netlink::text(element, 1)? {
            "meta" if number(1) == Some(REGISTER) => Some(Self::Meta(number(2)?)),
            "fib"
                if [1, 2, 3].map(number) == [1, FIB_ADDRESS_TYPE, FIB_BY_DESTINATION].map(Some) =>
            {
                Some(Self::FibType)
            }
            "payload" if [1, 2, 3, 4].map(number) == [REGISTER, TRANSPORT, 2, 2].map(Some) => {
                Some(Self::TcpDestination)
            }
            "cmp" if number(1) == Some(REGISTER) => {
                Some(Self::Compare { op: number(2)?, value: value(3)? })
            }
            "lookup" if number(2) == Some(REGISTER) && number(5).unwrap_or(0) == 0 => {
                Some(Self::Lookup(netlink::text(data, 1)?.to_owned()))
            }
            "immediate" if number(1) == Some(REGISTER) => Some(Self::Load(value(2)?)),
            "immediate" if number(1) == Some(VERDICT) => {
                let verdict = attribute(attribute(data, 2)?, 2)?;
                let code = netlink::be_number(verdict, 1)?;
                (code == RETURN.cast_unsigned()).then_some(Self::Return)
            }
            "redir" if number(1) == Some(REGISTER) && number(2).is_none_or(|r| r == REGISTER) => {
                Some(Self::Redirect)
            }
            _ => None,
        }
    }
}

/// What has been read of a table so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    sets: Vec<(String, PortSet)>,
    chains: Vec<Option<FoundChain>>,
    rules: Vec<Option<Vec<Expr>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FoundChain {
    name: String,
    kind: String,
    hook: u32,
    priority: u32,
    policy: u32,
}

/// The questions whose answers are a [`Found`], in the order they are to be asked.
pub(super) fn ask_table(name: &str) -> Vec<u8> {
    Message::new(GET_TABLE, REQUEST | ACK, 1, &INET).text(1, name).into_bytes()
}

pub(super) fn ask_chains() -> Vec<u8> {
    Message::new(GET_CHAIN, REQUEST | DUMP, 1, &INET).into_bytes()
}

pub(super) fn ask_rules(table: &str) -> Vec<u8> {
    Message::new(GET_RULE, REQUEST | DUMP, 1, &INET).text(1, table).into_bytes()
}

pub(super) fn ask_elements(table: &str, set: &str) -> Vec<u8> {
    let message = Message::new(GET_ELEMENTS, REQUEST | DUMP, 1, &INET);
    message.text(1, table).text(2, set).into_bytes()
}

impl Found {
    pub(super) fn chain(&mut self, message: Received<'_>) {
        let Some(attrs) = message.body.get(4..) else { return };
        if message.kind != NEW_CHAIN || netlink::text(attrs, 1) != Some(TABLE) {
            return;
        }
        let read = || {
            let hook = attribute(attrs, 4)?;
            Some(FoundChain {
                name: netlink::text(attrs, 3)?.to_owned(),
                kind: netlink::text(attrs, 7)?.to_owned(),
                hook: netlink::be_number(hook, 1)?,
                priority: netlink::be_number(hook, 2)?,
                policy: netlink::be_number(attrs, 5)?,
            })
        };
        self.chains.push(read());
    }

    pub(super) fn rule(&mut self, message: Received<'_>) {
        let Some(attrs) = message.body.get(4..) else { return };
        if message.kind != NEW_RULE || netlink::text(attrs, 1) != Some(TABLE) {
            return;
        }
        let list = attribute(attrs, 4).unwrap_or_default();
        self.rules.push(attributes(list).map(|(_, element)| Expr::read(element)).collect());
    }

    /// The ports of a set, from all messages of its dump.
    pub(super) fn set(&mut self, name: &str, keys: &[(u16, bool)]) {
        let mut sorted = keys.to_vec();
        // An end and the next beginning may be at one key: the end first.
        sorted.sort_unstable_by_key(|(key, end)| (*key, !*end));
        let mut intervals = Vec::new();
        let mut open = None;
        for (key, end) in sorted {
            match (open, end) {
                (Some(first), true) => {
                    intervals.push([first, key.saturating_sub(1)]);
                    open = None;
                }
                (_, false) => open = Some(key),
                (None, true) => {}
            }
        }
        intervals.extend(open.map(|first| [first, u16::MAX]));
        self.sets.push((name.to_owned(), PortSet::of(intervals)));
    }

    /// The plan these rules carry out; `None`: they are not rules of ours.
    pub(super) fn plan(&self) -> Option<Plan> {
        let [Some(chain)] = self.chains.as_slice() else { return None };
        let ports = |wanted: &str| {
            self.sets.iter().find(|(name, _)| name == wanted).map(|(_, ports)| ports.clone())
        };
        let port = self.rules.last()?.as_ref()?.iter().find_map(|expr| match expr {
            Expr::Load(value) => Some(u16::from_be_bytes(value.as_slice().try_into().ok()?)),
            _ => None,
        })?;
        let plan = Plan::found(ports("included")?, ports("excluded")?, port);
        let table = plan.table();
        let wanted = FoundChain {
            name: table.chain.to_owned(),
            kind: "nat".to_owned(),
            hook: table.hook.number(),
            priority: PRIORITY.cast_unsigned(),
            policy: ACCEPT,
        };
        let rules: Vec<_> = table.rules.iter().map(|rule| Some(rule.expressions())).collect();
        (*chain == wanted && self.rules == rules).then_some(plan)
    }
}

/// The keys in one message of a dump of elements, each with whether it ends an interval.
pub(super) fn keys(message: Received<'_>) -> Vec<(u16, bool)> {
    let attrs = message.body.get(4..).unwrap_or_default();
    if message.kind != NEW_ELEMENTS {
        return Vec::new();
    }
    let list = attribute(attrs, 3).unwrap_or_default();
    let key = |(_, element)| {
        let value = attribute(attribute(element, 1)?, 1)?;
        let end = netlink::be_number(element, 3).unwrap_or(0) & INTERVAL_END != 0;
        Some((u16::from_be_bytes(value.get(..2)?.try_into().ok()?), end))
    };
    attributes(list).filter_map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `nft` 1.0.6 sent for the very same table, seen by strace.
    fn recorded() -> Vec<u8> {
        let digits: Vec<u8> = include_bytes!("recorded.hex")
            .iter()
            .filter(|byte| !byte.is_ascii_whitespace())
            .map(|digit| char::from(*digit).to_digit(16).expect("hex") as u8)
            .collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn plan() -> Plan {
        let ports = |text| PortSet::parse(text).expect("ports");
        Plan::new(ports("8080,9000-9100"), &ports("none"), 15801)
    }

    /// The body of each message, by type; `nft` numbers the elements of a list, which the kernel
    /// does not look at.
    fn bodies(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let elements = |kind: u16, body: &[u8]| {
            let mut body = body.to_vec();
            if kind == NEW_ELEMENTS {
                let at = body.len() - attribute(&body[4..], 3).expect("elements").len();
                let mut at = at;
                while at < body.len() {
                    body[at + 2] = 1;
                    at += usize::from(u16::from_ne_bytes([body[at], body[at + 1]]));
                }
            }
            body
        };
        netlink::received(bytes).map(|m| (m.kind, elements(m.kind, m.body))).collect()
    }

    #[test]
    fn the_messages_are_those_of_nft() {
        let mut batch = Batch::default();
        batch.create(&plan().table());
        let (ours, _) = batch.into_bytes(true);
        let (ours, theirs) = (bodies(&ours), bodies(&recorded()));
        assert_eq!(ours.len(), theirs.len());
        for (at, (mine, nft)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(mine, nft, "message {at}");
        }
    }

    #[test]
    fn what_is_sent_is_understood_when_it_is_read() {
        let read = |bytes: &[u8]| {
            let mut found = Found::default();
            let mut sets = Vec::new();
            for message in netlink::received(bytes) {
                found.chain(message);
                found.rule(message);
                if message.kind == NEW_ELEMENTS {
                    let name = message.body.get(4..).and_then(|attrs| netlink::text(attrs, 2));
                    sets.push((name.unwrap_or_default().to_owned(), keys(message)));
                }
            }
            sets.iter().for_each(|(name, keys)| found.set(name, keys));
            found
        };
        let found = read(&recorded());
        assert_eq!(found.plan(), Some(plan()));
        for at in (0..recorded().len()).step_by(7) {
            let mut damaged = recorded();
            damaged[at] ^= 0x55;
            read(&damaged).plan(); // whatever it is, it is no panic
        }
        let mut other = found.clone();
        other.rules.swap(0, 3);
        assert_eq!(other.plan(), None, "rules in another order are not ours");
        let mut other = found;
        other.rules[1] = None;
        assert_eq!(other.plan(), None, "an expression we do not know");
    }

    #[test]
    fn an_interval_that_ends_at_the_last_port_has_no_end() {
        let ports = PortSet::parse("80,65000-65535").expect("ports");
        let message = new_elements(1, "t", "s", 1, &ports).into_bytes();
        let found = keys(netlink::received(&message).next().expect("one"));
        assert_eq!(found, [(0, true), (80, false), (81, true), (65000, false)]);
        let mut read = Found::default();
        read.set("s", &found);
        assert_eq!(read.sets[0].1, ports);
    }
}
