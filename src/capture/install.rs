//! Install, check and remove our table: all of it at once, read back, and proved.
//!
//! Always true: after an error the table is as it was before; the kernel takes all rules of a transaction
//! or none. While other ports of ours take the place of those in force, which takes three transactions, a
//! port that is redirected before and after is redirected all the time. Rules that are there already are
//! left as they are.

use std::fmt;
use std::io;

use super::netlink::{NETFILTER, Netlink};
use super::nftables::{self, Batch, Found};
use super::proof::{self, Families};
use super::rules::{TABLE, Table};
use super::{Plan, place};

/// Why capture cannot be had here, whose fault it is, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Not the place for it.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// The kernel has no nftables for us.
    #[error(
        "this kernel has no nftables over netlink: {0}; gVisor and kernels without nf_tables have not: use `tidegate run --listen` instead"
    )]
    NoNftables(io::Error),
    /// No CAP_NET_ADMIN.
    #[error(
        "not permitted to change packet filters: it takes root with NET_ADMIN, in a pod an init container with `runAsUser: 0` and `capabilities: {{drop: [ALL], add: [NET_ADMIN]}}`; where that is not allowed, use `tidegate run --listen` instead"
    )]
    NotPermitted,
    /// A part of the transaction was refused.
    #[error("the kernel refuses {what}: {error}{}", Advice(.error))]
    Refused {
        /// What was to be made, and which kernel modules it needs.
        what: String,
        /// Its answer.
        error: io::Error,
    },
    /// The kernel's answer is not what we understand.
    #[error("cannot read the rules back: {0}")]
    Unreadable(io::Error),
    /// It was installed, and something else was there afterwards.
    #[error(
        "the table inet {TABLE} is not what was installed: something else on this machine changes it"
    )]
    Different,
    /// No table of ours is there.
    #[error(
        "the table inet {TABLE} is not installed: nothing is captured; run `tidegate capture install`"
    )]
    Missing,
    /// It is there, and somebody has changed it.
    #[error(
        "the table inet {TABLE} is not as `tidegate capture install` writes it; install it again"
    )]
    Foreign,
    /// It is there with other ports.
    #[error("the table inet {TABLE} redirects {found}, not {wanted}; install it again")]
    Outdated {
        /// The plan that is in force.
        found: Summary,
        /// The plan that was asked about.
        wanted: Summary,
    },
    /// The rules are there and do not do what they say.
    #[error("NAT does not work here: {0}")]
    NotProved(#[from] proof::ProofError),
}

/// The ports of a plan in one line.
#[derive(Clone, Debug)]
pub struct Summary(String);

struct Advice<'a>(&'a io::Error);

/// What `install` has done.
#[derive(Debug)]
pub struct Installed {
    /// What is in force.
    plan: Plan,
    /// It was there already, just so.
    pub unchanged: bool,
    /// Where it was proved.
    pub families: Families,
}

/// What `remove` has done.
#[derive(Debug)]
pub struct Removed {
    /// There was something to remove.
    pub was_there: bool,
}

/// What `check` has found.
#[derive(Debug)]
pub struct Checked {
    /// What is in force.
    pub plan: Plan,
    /// Where it was proved.
    pub families: Families,
}

/// Put the rules of `plan` in place of whatever table of ours is there, read them back, and prove
/// that what they do works.
pub fn install(plan: &Plan) -> Result<Installed, CaptureError> {
    let before = read()?;
    // Where NAT does not work nothing is touched.
    proof::prove()?;
    let unchanged = matches!(&before, Some(Some(there)) if there == plan);
    if !unchanged {
        put(plan, before.as_ref().and_then(Option::as_ref))?;
    }
    let proved = read().and_then(|now| match now {
        Some(Some(there)) if there == *plan => proof::prove(),
        _ => Err(CaptureError::Different),
    });
    if proved.is_err() && !unchanged {
        // Traffic that nobody could take over is worse than traffic that is not captured.
        match before {
            Some(Some(plan)) => transact(Batch::replacing(&plan.table()), true)?,
            Some(None) | None => transact(Batch::removing(TABLE), true)?,
        }
    }
    Ok(Installed { plan: plan.clone(), unchanged, families: proved? })
}

/// Whether our table is there, as `wanted` if somebody says so, and does what it says.
pub fn check(wanted: Option<&Plan>) -> Result<Checked, CaptureError> {
    let plan = installed()?;
    if let Some(wanted) = wanted.filter(|wanted| **wanted != plan) {
        let (found, wanted) = (Summary::of(&plan), Summary::of(wanted));
        return Err(CaptureError::Outdated { found, wanted });
    }
    Ok(Checked { families: proof::prove()?, plan })
}

/// The rules that are in force, if they are as we write them. Changes nothing.
pub fn installed() -> Result<Plan, CaptureError> {
    read()?.ok_or(CaptureError::Missing)?.ok_or(CaptureError::Foreign)
}

/// Remove our table.
pub fn remove() -> Result<Removed, CaptureError> {
    let was_there = read()?.is_some();
    if was_there {
        transact(Batch::removing(TABLE), true)?;
    }
    Ok(Removed { was_there })
}

/// Have the kernel judge the rules without putting them in force.
pub fn try_rules(plan: &Plan) -> Result<(), CaptureError> {
    transact(Batch::replacing(&plan.table()), false)
}

/// Put `plan` in force, in place of the `old` one or of whatever has the table's name.
fn put(plan: &Plan, old: Option<&Plan>) -> Result<(), CaptureError> {
    let Some(old) = old else { return transact(Batch::replacing(&plan.table()), true) };
    let mut now = old.table();
    for next in plan.steps_from(old) {
        if let Err(error) = transact(Batch::changing(&now, &next), true) {
            if now != old.table() {
                transact(Batch::replacing(&old.table()), true)?;
            }
            return Err(error);
        }
        now = next;
    }
    Ok(())
}

fn open() -> Result<Netlink, CaptureError> {
    Netlink::open(NETFILTER).map_err(CaptureError::NoNftables)
}

fn transact(batch: Batch, commit: bool) -> Result<(), CaptureError> {
    transact_on(&open()?, batch, commit)
}

/// One transaction: all of it is in force at once, or nothing of it.
pub(super) fn transact_on(
    netlink: &Netlink,
    batch: Batch,
    commit: bool,
) -> Result<(), CaptureError> {
    let (bytes, batch) = batch.into_bytes(commit);
    netlink.send(&bytes).map_err(CaptureError::NoNftables)?;
    let last = batch.last();
    netlink.receive(|message| message.acknowledges(last)).map_err(|(sequence, error)| {
        match error.raw_os_error() {
            Some(libc::EPERM) => CaptureError::NotPermitted,
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => CaptureError::NoNftables(error),
            _ => CaptureError::Refused { what: batch.what(sequence).to_owned(), error },
        }
    })
}

/// Our table: `None` there is none, `Some(None)` it is not as we write it.
fn read() -> Result<Option<Option<Plan>>, CaptureError> {
    let netlink = open()?;
    let ask = |question: Vec<u8>, each: &mut dyn FnMut(super::netlink::Received<'_>) -> bool| {
        netlink.send(&question).map_err(|error| (0, error))?;
        netlink.receive(each)
    };
    let unreadable = |(_, error): (u32, io::Error)| match error.raw_os_error() {
        Some(libc::EPERM) => CaptureError::NotPermitted,
        _ => CaptureError::Unreadable(error),
    };
    match ask(nftables::ask_table(TABLE), &mut |message| message.acknowledges(1)) {
        Ok(()) => {}
        Err((_, error)) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(other) => return Err(unreadable(other)),
    }
    let mut found = Found::default();
    ask(nftables::ask_chains(), &mut |message| {
        found.chain(message);
        false
    })
    .map_err(unreadable)?;
    ask(nftables::ask_rules(TABLE), &mut |message| {
        found.rule(message);
        false
    })
    .map_err(unreadable)?;
    for set in ["included", "excluded"] {
        let mut keys = Vec::new();
        let asked = ask(nftables::ask_elements(TABLE, set), &mut |message| {
            keys.extend(nftables::keys(message));
            false
        });
        match asked {
            Ok(()) => found.set(set, &keys),
            Err((_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(other) => return Err(unreadable(other)),
        }
    }
    Ok(Some(found.plan()))
}

/// Put a table in force that goes with `netlink`: when that is closed, at the latest when the process
/// ends, the kernel removes it.
pub(super) fn lend(netlink: &Netlink, table: &Table) -> Result<(), CaptureError> {
    let mut batch = Batch::default();
    batch.create(table);
    transact_on(netlink, batch, true)
}

impl Summary {
    fn of(plan: &Plan) -> Self {
        Self(format!("the ports {} to {}", plan.redirected(), plan.redirect_port()))
    }
}

impl fmt::Display for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, unchanged, families } = self;
        let done = if *unchanged { "was installed already" } else { "installed" };
        let what = Summary::of(plan);
        write!(f, "table inet {TABLE}: {done}; redirects {what}; NAT proved over {families}")
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = Summary::of(&self.plan);
        let families = self.families;
        write!(f, "table inet {TABLE}: redirects {what}; NAT proved over {families}")
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.was_there { "removed" } else { "was not installed" };
        write!(f, "table inet {TABLE}: {done}")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::ENOENT | libc::EOPNOTSUPP) => f.write_str(
                "; is the kernel module there? Load it on the node (modprobe), or use `tidegate run --listen`",
            ),
            Some(libc::EBUSY | libc::EEXIST) => {
                f.write_str("; another process is changing it at this moment: try again")
            }
            _ => Ok(()),
        }
    }
}
