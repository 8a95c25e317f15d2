//! The application's own probes, done for the kubelet: beside the gate, so that an application that is
//! full is not taken for a dead one.
//!
//! ```text
//! kubelet ──→ /app-probe/app/liveness ──→ Probes ──→ GET /healthz, a connection, or a gRPC Check
//!             who asks while it runs,       └ what is asked is the pod's specification alone: nothing of
//!             shares its answer               the request that asked for it goes to the application
//! ```
//!
//! Always true: a probe runs once at a time, however many ask for it, as it does when the kubelet itself
//! probes; it is judged as the kubelet would; it ends within its timeout; it never dials the gateway.

mod dial;
mod grpc;
mod http;
mod location;
mod plan;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use plan::{Check, Flaw, HttpGet, Name, Plan, Spec};

/// What a probe has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The application is as it should be.
    Healthy,
    /// It answered that it is not.
    Unhealthy,
    /// No connection was to be had.
    Refused,
    /// It did not answer in time.
    Timeout,
    /// It broke off, or answered something else.
    Broken,
    /// The pod's specification could not be understood. Not the application's fault: it is left alone.
    Unusable,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was found.
    pub finding: Finding,
    /// The application's own HTTP status, if that is why it is unhealthy: the kubelet shows it.
    pub status: Option<u16>,
    /// One line for people.
    pub why: String,
}

/// The probes of all containers.
#[derive(Debug, Default)]
pub struct Probes {
    known: BTreeMap<Name, Arc<Probe>>,
    /// All of the specification is unusable: whoever asks for any is told so.
    flaw: Option<String>,
}

/// How often each [`Finding`] was made, in the order of [`Finding::ALL`].
pub type Counts = [u64; Finding::ALL.len()];

#[derive(Debug)]
struct Probe {
    name: Name,
    spec: Result<Spec, Flaw>,
    target: Target,
    counts: [AtomicU64; Finding::ALL.len()],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The answer of the one that runs.
    running: Option<watch::Receiver<Option<Verdict>>>,
    /// When the last one began.
    begun: Option<Instant>,
    /// What it found, to say so when that changes.
    found: Option<Finding>,
}

/// Where the application is.
#[derive(Clone, Debug)]
struct Target {
    /// The pod's own address, as the kubelet dials it.
    ip: IpAddr,
    /// Ports of the gateway, which are never dialled.
    ours: Arc<[u16]>,
}

/// A kubelet asks once a second at most. Whoever asks more often may not keep the application busy.
const PACE: Duration = Duration::from_millis(100);

impl Finding {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Healthy,
        Self::Unhealthy,
        Self::Refused,
        Self::Timeout,
        Self::Broken,
        Self::Unusable,
    ];

    /// The word in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Unusable => "unusable",
        }
    }
}

impl Verdict {
    fn new(finding: Finding, why: impl Into<String>) -> Self {
        Self { finding, status: None, why: why.into() }
    }

    /// The status the kubelet gets. It shows nothing else of a probe that failed, so it tells as much as
    /// it can.
    pub fn code(&self) -> u16 {
        match self.finding {
            Finding::Healthy | Finding::Unusable => 200,
            Finding::Unhealthy | Finding::Refused => self.status.unwrap_or(503),
            Finding::Broken => 502,
            Finding::Timeout => 504,
        }
    }
}

impl Probes {
    /// Those of the plan, at the pod's address; `ours`: ports that are never dialled.
    pub fn new(plan: &Plan, ours: Vec<u16>) -> Self {
        let target = Target { ip: plan.ip, ours: ours.into() };
        let probe = |(name, spec): (&Name, &Result<Spec, Flaw>)| {
            let (name, spec, target) = (name.clone(), spec.clone(), target.clone());
            let probe = Probe {
                name: name.clone(),
                spec,
                target,
                counts: Default::default(),
                state: Mutex::default(),
            };
            (name, Arc::new(probe))
        };
        Self { known: plan.probes.iter().map(probe).collect(), flaw: plan.flaw.clone() }
    }

    /// Run the probe of that name, `container/kind`, or share the answer of the one that runs. `None`:
    /// there is none of that name.
    pub async fn run(&self, name: &str) -> Option<Verdict> {
        let name = Name::parse(name).ok();
        match name.and_then(|name| self.known.get(&name)) {
            Some(probe) => Some(probe.answer().await),
            None => self.flaw.as_ref().map(|flaw| Verdict::new(Finding::Unusable, flaw)),
        }
    }

    /// What each has found so far.
    pub fn counts(&self) -> impl Iterator<Item = (&Name, Counts)> {
        self.known.values().map(|probe| {
            let counts = probe.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            (&probe.name, counts)
        })
    }
}

impl Probe {
    async fn answer(self: &Arc<Self>) -> Verdict {
        let mut answer = self.join();
        let answer = answer.wait_for(Option::is_some).await;
        let verdict = answer.ok().and_then(|verdict| verdict.clone());
        verdict.unwrap_or_else(|| Verdict::new(Finding::Broken, "the probe broke off"))
    }

    /// The answer of the one that runs, or of one that begins. It goes on when whoever asked for it
    /// leaves: others may wait for it.
    fn join(self: &Arc<Self>) -> watch::Receiver<Option<Verdict>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose task is gone answers nobody.
        if let Some(running) = state.running.as_ref().filter(|r| r.has_changed().is_ok()) {
            return running.clone();
        }
        let begins = state.begun.map_or_else(Instant::now, |last| Instant::now().max(last + PACE));
        state.begun = Some(begins);
        let (answer, answers) = watch::channel(None);
        state.running = Some(answers.clone());
        let probe = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(begins).await;
            let verdict = probe.check().await;
            probe.note(&verdict);
            answer.send_replace(Some(verdict));
        });
        answers
    }

    async fn check(&self) -> Verdict {
        let spec = match &self.spec {
            Ok(spec) => spec,
            Err(flaw) => return Verdict::new(Finding::Unusable, flaw.to_string()),
        };
        let check = async {
            match &spec.check {
                Check::Http(get) => http::get(get, &self.target).await,
                Check::Tcp(port) => dial::connect(&self.target, *port).await.map(|_| {
                    Verdict::new(Finding::Healthy, format!("port {port} takes connections"))
                }),
                Check::Grpc { port, service } => {
                    grpc::check(&self.target, *port, service, spec.timeout).await
                }
            }
        };
        match tokio::time::timeout(spec.timeout, check).await {
            Ok(Ok(verdict) | Err(verdict)) => verdict,
            Err(_) => {
                let why = format!("the application did not answer within {:?}", spec.timeout);
                Verdict::new(Finding::Timeout, why)
            }
        }
    }

    /// Count it, let the next one begin, and say so if it is news.
    fn note(&self, verdict: &Verdict) {
        let at = Finding::ALL.iter().position(|finding| *finding == verdict.finding);
        self.counts[at.expect("in the list of all")].fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = None;
        let before = state.found.replace(verdict.finding);
        drop(state);
        let (probe, found, why) = (self.name.to_string(), verdict.finding.label(), &verdict.why);
        match (before, verdict.finding) {
            (before, now) if before == Some(now) => {
                tracing::debug!(probe, found, why, "an application's probe");
            }
            (None, Finding::Healthy) => {
                tracing::debug!(probe, found, why, "an application's probe")
            }
            (_, Finding::Healthy) => {
                tracing::info!(probe, "the application's probe is green again")
            }
            (_, Finding::Unusable) => {
                tracing::warn!(
                    probe,
                    why,
                    "the application's probe cannot be done, and is called green"
                );
            }
            _ => tracing::info!(probe, found, why, "the application's probe is red"),
        }
    }
}
