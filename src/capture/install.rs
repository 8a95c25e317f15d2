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

/// What installing asks of the kernel.
trait Kernel {
    /// Our table: `None` there is none, `Some(None)` it is not as we write it.
    fn read(&mut self) -> Result<Option<Option<Plan>>, CaptureError>;
    /// One transaction: all of it is in force at once, or nothing of it.
    fn transact(&mut self, batch: Batch) -> Result<(), CaptureError>;
    /// Whether redirecting works here.
    fn prove(&mut self) -> Result<Families, CaptureError>;
}

/// The one we run on.
struct Here;

/// Put the rules of `plan` in place of whatever table of ours is there, read them back, and prove
/// that what they do works.
pub fn install(plan: &Plan) -> Result<Installed, CaptureError> {
    install_on(&mut Here, plan)
}

fn install_on(kernel: &mut impl Kernel, plan: &Plan) -> Result<Installed, CaptureError> {
    let before = kernel.read()?;
    // Where NAT does not work nothing is touched.
    kernel.prove()?;
    let unchanged = matches!(&before, Some(Some(there)) if there == plan);
    if !unchanged {
        put(kernel, plan, before.as_ref().and_then(Option::as_ref))?;
    }
    let proved = kernel.read().and_then(|now| match now {
        Some(Some(there)) if there == *plan => kernel.prove(),
        _ => Err(CaptureError::Different),
    });
    if proved.is_err() && !unchanged {
        // Traffic that nobody could take over is worse than traffic that is not captured.
        match before {
            Some(Some(plan)) => kernel.transact(Batch::replacing(&plan.table()))?,
            Some(None) | None => kernel.transact(Batch::removing(TABLE))?,
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
fn put(kernel: &mut impl Kernel, plan: &Plan, old: Option<&Plan>) -> Result<(), CaptureError> {
    let Some(old) = old else { return kernel.transact(Batch::replacing(&plan.table())) };
    let mut now = old.table();
    for next in plan.steps_from(old) {
        if let Err(error) = kernel.transact(Batch::changing(&now, &next)) {
            if now != old.table() {
                kernel.transact(Batch::replacing(&old.table()))?;
            }
            return Err(error);
        }
        now = next;
    }
    Ok(())
}

impl Kernel for Here {
    fn read(&mut self) -> Result<Option<Option<Plan>>, CaptureError> {
        read()
    }

    fn transact(&mut self, batch: Batch) -> Result<(), CaptureError> {
        transact(batch, true)
    }

    fn prove(&mut self) -> Result<Families, CaptureError> {
        proof::prove()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::PortSet;

    /// A kernel that does as it is told.
    struct Told {
        /// What is there before, and what is found afterwards.
        there: [Option<Option<Plan>>; 2],
        /// The transaction that is refused, and those that it took.
        refuses: Option<usize>,
        taken: Vec<Vec<u8>>,
        proves: Vec<bool>,
        asked: [usize; 3],
    }

    impl Kernel for Told {
        fn read(&mut self) -> Result<Option<Option<Plan>>, CaptureError> {
            self.asked[0] += 1;
            Ok(self.there[self.asked[0] - 1].clone())
        }

        fn transact(&mut self, batch: Batch) -> Result<(), CaptureError> {
            self.asked[1] += 1;
            if self.refuses == Some(self.asked[1]) {
                let error = io::ErrorKind::OutOfMemory.into();
                return Err(CaptureError::Refused { what: "a rule".into(), error });
            }
            self.taken.push(bytes(batch));
            Ok(())
        }

        fn prove(&mut self) -> Result<Families, CaptureError> {
            self.asked[2] += 1;
            match self.proves[self.asked[2] - 1] {
                true => Ok(Families { v4: true, v6: true }),
                false => Err(proof::ProofError::NoLoopback.into()),
            }
        }
    }

    fn bytes(batch: Batch) -> Vec<u8> {
        batch.into_bytes(true).0
    }

    fn plan(port: u16) -> Plan {
        Plan::new(PortSet::of([[port; 2]]), &PortSet::default(), 15801)
    }

    fn kernel(before: Option<Option<Plan>>, after: Option<Option<Plan>>) -> Told {
        let (there, proves) = ([before, after], vec![true, true]);
        Told { there, refuses: None, taken: Vec::new(), proves, asked: [0; 3] }
    }

    #[test]
    fn a_step_that_is_refused_leaves_the_rules_of_before() {
        let (old, new) = (plan(80), plan(8080));
        let restored = bytes(Batch::replacing(&old.table()));
        for refuses in 1..=3 {
            let mut kernel = kernel(Some(Some(old.clone())), None);
            kernel.refuses = Some(refuses);
            let error = install_on(&mut kernel, &new).expect_err("it was refused");
            assert!(matches!(error, CaptureError::Refused { .. }), "{error}");
            // The first step that is refused has changed nothing.
            assert_eq!(kernel.taken.len(), if refuses == 1 { 0 } else { refuses });
            assert!(refuses == 1 || kernel.taken.last() == Some(&restored), "step {refuses}");
        }
    }

    #[test]
    fn what_is_not_there_afterwards_or_not_proved_is_taken_back() {
        let (old, new) = (plan(80), plan(8080));
        let befores = [None, Some(None), Some(Some(old.clone()))];
        for before in befores {
            let undone = match &before {
                Some(Some(old)) => bytes(Batch::replacing(&old.table())),
                _ => bytes(Batch::removing(TABLE)),
            };
            let mut other = kernel(before.clone(), Some(None));
            let error = install_on(&mut other, &new).expect_err("something else is there");
            assert!(matches!(error, CaptureError::Different), "{error}");
            assert_eq!(other.taken.last(), Some(&undone), "{before:?}");
            let mut useless = kernel(before.clone(), Some(Some(new.clone())));
            useless.proves[1] = false;
            let error = install_on(&mut useless, &new).expect_err("it does not work");
            assert!(matches!(error, CaptureError::NotProved(_)), "{error}");
            assert_eq!(useless.taken.last(), Some(&undone), "{before:?}");
        }
    }

    #[test]
    fn where_redirecting_does_not_work_nothing_is_touched() {
        for before in [None, Some(None), Some(Some(plan(80)))] {
            let mut kernel = kernel(before, None);
            kernel.proves[0] = false;
            install_on(&mut kernel, &plan(8080)).expect_err("it does not work");
            assert!(kernel.taken.is_empty());
        }
    }

    #[test]
    fn rules_that_were_there_already_stay_when_they_are_not_proved() {
        let same = || Some(Some(plan(80)));
        let mut kernel = kernel(same(), same());
        kernel.proves[1] = false;
        install_on(&mut kernel, &plan(80)).expect_err("it does not work");
        assert!(kernel.taken.is_empty());
    }
}
