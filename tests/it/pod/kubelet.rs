//! The kubelet: starts the containers of a pod in order, probes them, and ends them, as it was measured on
//! a real cluster (Kubernetes 1.36, containerd 2.1).
//!
//! ```text
//!  start   capture (init) ── ends with 0 ──→ sidecar ── startup probe ──→ applications
//!  delete  +16 ms  SIGTERM to applications without a preStop
//!          +50 ms  the preStop hooks of all others, sidecars too, at once, in no order
//!                  an application's SIGTERM when its hook has ended, a sidecar's 45 ms after the last
//!                  application is gone, or when the grace is used up; 2 s after that SIGKILL
//! ```
//!
//! Always true: nothing is known of what is in a container but what the pod says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use rustix::process::Signal;

use super::application::LISTENS;
use super::container::{Ended, Process};
use super::network::{Families, Network};
use super::probe::{Kind, Way};
use super::surroundings::{ConfigMaps, Surroundings};
use crate::support::gateway::Gateway;
use crate::support::namespace::Space;
use crate::support::{SOON, Stopwatch, until};

/// A pod that runs. Dropping it kills its containers.
pub(crate) struct LivePod {
    stage: Arc<Stage>,
    probers: Mutex<Vec<JoinHandle<()>>>,
}

struct Stage {
    network: Arc<Network>,
    space: Space,
    around: Surroundings,
    played: Mutex<BTreeMap<String, Played>>,
    terminating: AtomicBool,
    over: AtomicBool,
    changes: Mutex<Vec<Change>>,
    probed: Mutex<Vec<Probed>>,
}

/// A container, and what its probes say of it.
struct Played {
    process: Arc<Process>,
    started: bool,
    ready: bool,
    restarts: usize,
}

/// A probe that changed its mind.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) at: Instant,
    pub(crate) container: String,
    pub(crate) kind: Kind,
    pub(crate) good: bool,
    /// Why it is bad.
    pub(crate) why: String,
}

/// One probe.
#[derive(Clone, Debug)]
pub(crate) struct Probed {
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
    /// In own time.
    pub(crate) took: Duration,
    pub(crate) container: String,
    pub(crate) kind: Kind,
    pub(crate) result: Result<(), String>,
}

/// How a container went, in times since the pod's deletion.
#[derive(Clone, Debug)]
pub(crate) struct Farewell {
    /// How long its hook took, and why it failed, if it did.
    pub(crate) hook: Option<(Duration, Result<(), String>)>,
    pub(crate) told: Duration,
    pub(crate) ended: Duration,
    pub(crate) code: i32,
    pub(crate) killed: bool,
}

/// The grace that is left to whoever has used up the pod's.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// Between a container's start and its first probe.
const WARM_UP: Duration = Duration::from_millis(200);

impl LivePod {
    /// Runs the init containers to their ends and starts the rest. A pod that cannot start is a failure.
    #[track_caller]
    pub(crate) fn start(
        network: &Arc<Network>,
        families: Families,
        pod: Pod,
        config_maps: &ConfigMaps,
    ) -> Self {
        let (space, addresses) = network.pod(families);
        let around = Surroundings::new(pod, space.path(), addresses, families.node(), config_maps);
        let stage = Arc::new(Stage {
            network: network.clone(),
            space,
            around,
            played: Mutex::default(),
            terminating: AtomicBool::new(false),
            over: AtomicBool::new(false),
            changes: Mutex::default(),
            probed: Mutex::default(),
        });
        let live = Self { stage, probers: Mutex::default() };
        let spec = live.stage.around.spec().clone();
        for container in spec.init_containers.iter().flatten() {
            if is_sidecar(container) {
                live.run(container);
                until("the sidecar has started", SOON, || {
                    let played = live.stage.played();
                    let played = &played[&container.name];
                    assert!(played.process.ended().is_none(), "{}", played.process.said());
                    played.started
                });
            } else {
                let process = Process::start(container, &live.stage.around);
                until("the init container has ended", SOON, || process.ended().is_some());
                let code = process.ended().map(|ended| ended.code);
                assert_eq!(code, Some(0), "{}: {}", container.name, process.said());
            }
        }
        spec.containers.iter().for_each(|container| live.run(container));
        live
    }

    fn run(&self, container: &Container) {
        self.stage.launch(container, 0);
        let mut probers = self.probers.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in [Kind::Startup, Kind::Readiness, Kind::Liveness] {
            if let Some(probe) = kind.of(container).cloned() {
                let (stage, container) = (self.stage.clone(), container.clone());
                probers.push(std::thread::spawn(move || stage.probe(&container, kind, &probe)));
            }
        }
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.stage.around.addresses
    }

    /// The address of a pod that has one family, and the first of any other.
    pub(crate) fn address(&self) -> IpAddr {
        self.addresses()[0]
    }

    /// Runs `body` in the pod's network.
    pub(crate) fn inside<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.stage.space.enter(body)
    }

    /// A program of this machine in the pod's network.
    pub(crate) fn succeed(&self, words: &[&str]) -> String {
        self.stage.space.succeed(words)
    }

    pub(crate) fn process(&self, container: &str) -> Arc<Process> {
        let played = self.stage.played();
        played.get(container).unwrap_or_else(|| panic!("no container {container}")).process.clone()
    }

    /// Where the files of a volume are on this machine.
    pub(crate) fn volume(&self, name: &str) -> std::path::PathBuf {
        self.stage.around.volume(name)
    }

    /// The pod's annotations are these from now on, as its downward API volumes say too.
    pub(crate) fn annotate(&self, all: BTreeMap<String, String>) {
        self.stage.around.annotate(all);
    }

    /// A ConfigMap of the namespace has these files from now on.
    pub(crate) fn configure(&self, name: &str, files: &BTreeMap<String, String>) {
        self.stage.around.configure(name, files);
    }

    /// The gateway, which has its control socket in `tidegate/` of the volume that it has at `/run`.
    #[track_caller]
    pub(crate) fn gateway(&self) -> Gateway {
        let process = self.process("tidegate");
        let spec = self.stage.around.spec();
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let mut gateways = containers.filter(|container| container.name == "tidegate");
        let mounts = gateways.next().and_then(|gateway| gateway.volume_mounts.as_ref());
        let run = mounts.into_iter().flatten().find(|mount| mount.mount_path == "/run");
        let volume = &run.expect("the gateway has a volume at /run").name;
        let control = self.volume(volume).join("tidegate/control.sock");
        Gateway::adopt(process.pid, control, process.log.clone())
    }

    /// Every container's startup and readiness probes are content.
    pub(crate) fn is_ready(&self) -> bool {
        let played = self.stage.played();
        let alive = |played: &Played| played.process.ended().is_none();
        played.values().all(|played| alive(played) && played.started && played.ready)
    }

    /// Ready, and applications of this test binary can be called, also those without a probe.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        let start = Stopwatch::start();
        while !self.is_ready() || !self.applications_listen() {
            let why: Vec<_> = self.changes().into_iter().map(|change| change.why).collect();
            assert!(!start.is_past(SOON * 2), "the pod is not ready: {why:?}");
            std::thread::sleep(Duration::from_millis(2)); // between two looks
        }
    }

    fn applications_listen(&self) -> bool {
        let containers = &self.stage.around.spec().containers;
        let ours = containers.iter().filter(|c| c.image.as_deref() == Some("application"));
        ours.into_iter().all(|c| self.process(&c.name).said().contains(LISTENS))
    }

    pub(crate) fn restarts(&self, container: &str) -> usize {
        self.stage.played()[container].restarts
    }

    /// What the probes said, and when.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.stage.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every probe that has ended, in that order.
    pub(crate) fn probed(&self) -> Vec<Probed> {
        self.stage.probed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Deletes the pod: how each container went. The probes go on until the last has gone.
    pub(crate) fn delete(&self) -> BTreeMap<String, Farewell> {
        self.end(true)
    }

    /// A Job's end: once the applications have ended by themselves, the sidecars are ended.
    #[track_caller]
    pub(crate) fn finish(&self) -> BTreeMap<String, Farewell> {
        let containers = &self.stage.around.spec().containers;
        until("the applications have ended", SOON, || {
            containers.iter().all(|container| self.process(&container.name).ended().is_some())
        });
        self.end(false)
    }

    /// A container that is said not to be alive is ended as at a deletion, and started again.
    pub(crate) fn restart(&self, name: &str) -> Farewell {
        let spec = self.stage.around.spec();
        let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let container = containers.find(|container| container.name == name);
        self.stage.restart(container.unwrap_or_else(|| panic!("no container {name}")))
    }

    fn end(&self, applications_too: bool) -> BTreeMap<String, Farewell> {
        let start = Instant::now();
        self.stage.terminating.store(true, Ordering::SeqCst);
        let spec = self.stage.around.spec();
        let grace = spec.termination_grace_period_seconds.unwrap_or(30);
        let end = start + Duration::from_secs(grace as u64);
        let sidecars: Vec<_> = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| is_sidecar(container))
            .collect();
        let gone = |containers: &[&Container]| {
            containers.iter().all(|container| self.process(&container.name).ended().is_some())
        };
        let applications: Vec<_> = spec.containers.iter().collect();
        let farewells = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for container in spec.containers.iter().filter(|_| applications_too) {
                let stage = &self.stage;
                threads.push(scope.spawn(move || stage.end(container, start, end, || true)));
            }
            for (at, container) in sidecars.iter().enumerate() {
                // In the opposite order of their start, after the applications.
                let later = [&applications[..], &sidecars[at + 1..]].concat();
                let stage = &self.stage;
                threads
                    .push(scope.spawn(move || stage.end(container, start, end, || gone(&later))));
            }
            let ended = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            ended.collect::<BTreeMap<_, _>>()
        });
        self.stop_probing();
        farewells
    }

    fn stop_probing(&self) {
        self.stage.over.store(true, Ordering::SeqCst);
        let mut probers = self.probers.lock().unwrap_or_else(PoisonError::into_inner);
        for prober in probers.drain(..) {
            let _ = prober.join();
        }
    }
}

impl Drop for LivePod {
    fn drop(&mut self) {
        self.stop_probing();
        self.stage.played().clear();
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

impl Stage {
    fn played(&self) -> MutexGuard<'_, BTreeMap<String, Played>> {
        self.played.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self, container: &Container, restarts: usize) {
        let process = Arc::new(Process::start(container, &self.around));
        let (started, ready) =
            (container.startup_probe.is_none(), container.readiness_probe.is_none());
        let played = Played { process, started, ready, restarts };
        self.played().insert(container.name.clone(), played);
    }

    fn process(&self, container: &Container) -> Arc<Process> {
        self.played()[&container.name].process.clone()
    }

    fn way<'a>(&'a self, container: &'a Container, process: &'a Process) -> Way<'a> {
        Way { node: &self.network.node, address: self.around.addresses[0], container, process }
    }

    /// Probes until the pod is over, soon and then once in each period.
    fn probe(&self, container: &Container, kind: Kind, probe: &Probe) {
        let period = Duration::from_secs(probe.period_seconds.unwrap_or(10) as u64);
        let delay = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0) as u64);
        let (mut good, mut bad, mut life) = (0, 0, 0);
        let mut next = Instant::now() + delay + WARM_UP;
        while !self.over.load(Ordering::SeqCst) {
            let (started, restarts) = {
                let played = self.played();
                (played[&container.name].started, played[&container.name].restarts)
            };
            if restarts > life {
                (good, bad, life) = (0, 0, restarts); // nothing is known of the new one
            }
            if started == (kind == Kind::Startup) || Instant::now() < next {
                std::thread::sleep(Duration::from_millis(5)); // between two looks
                continue;
            }
            next = Instant::now() + period;
            let process = self.process(container);
            let (begun, watch) = (Instant::now(), Stopwatch::start());
            let result = match process.ended() {
                None => self.way(container, &process).probe(probe),
                Some(_) => Err("it has ended".into()),
            };
            self.probed.lock().unwrap_or_else(PoisonError::into_inner).push(Probed {
                begun,
                ended: Instant::now(),
                took: watch.own(),
                container: container.name.clone(),
                kind,
                result: result.clone(),
            });
            (good, bad) = if result.is_ok() { (good + 1, 0) } else { (0, bad + 1) };
            if good == probe.success_threshold.unwrap_or(1) {
                self.note(container, kind, Ok(()));
            }
            if bad == probe.failure_threshold.unwrap_or(3) {
                self.note(container, kind, result);
                let dying = self.terminating.load(Ordering::SeqCst);
                if kind != Kind::Readiness && !dying {
                    self.restart(container);
                }
            }
        }
    }

    fn note(&self, container: &Container, kind: Kind, result: Result<(), String>) {
        let good = result.is_ok();
        if let Some(played) = self.played().get_mut(&container.name) {
            match kind {
                Kind::Startup => played.started |= good,
                Kind::Readiness => played.ready = good,
                Kind::Liveness => {}
            }
        }
        let why = result.err().unwrap_or_default();
        let change =
            Change { at: Instant::now(), container: container.name.clone(), kind, good, why };
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }

    /// A container that is not alive is ended as at a deletion, and started again.
    fn restart(&self, container: &Container) -> Farewell {
        let start = Instant::now();
        let grace = self.around.spec().termination_grace_period_seconds.unwrap_or(30);
        let end = start + Duration::from_secs(grace as u64);
        let (_, farewell) = self.end(container, start, end, || true);
        let restarts = self.played()[&container.name].restarts + 1;
        self.launch(container, restarts);
        farewell
    }

    /// Ends a container whose turn to be told has come once its hook has ended and `may` says so.
    fn end(
        &self,
        container: &Container,
        start: Instant,
        end: Instant,
        may: impl Fn() -> bool,
    ) -> (String, Farewell) {
        let process = self.process(container);
        let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let hooked = hook.map(|hook| {
            pause(start, 40 + u64::from(process.pid % 20)); // in no order
            let since = Instant::now();
            let patience = end.saturating_duration_since(since);
            let result = self.way(container, &process).hook(hook, patience);
            (since.elapsed(), result)
        });
        if !may() {
            while !may() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2)); // between two looks
            }
            std::thread::sleep(Duration::from_millis(45)); // as it was measured
        } else if hooked.is_none() {
            pause(start, 16);
        }
        let told = Instant::now();
        process.signal(Signal::TERM);
        let last = end.max(told + LAST_GRACE);
        while !process.has_left() && Instant::now() < last {
            std::thread::sleep(Duration::from_millis(2)); // between two looks
        }
        let killed = !process.has_left();
        process.signal(Signal::KILL);
        until("a container that was killed has gone", SOON, || process.ended().is_some());
        let Ended { at, code } = process.ended().expect("just seen");
        let (told, ended) = (told - start, at.saturating_duration_since(start));
        (container.name.clone(), Farewell { hook: hooked, told, ended, code, killed })
    }
}

/// Until so many milliseconds after `start`.
fn pause(start: Instant, ms: u64) {
    let left = Duration::from_millis(ms).saturating_sub(start.elapsed());
    std::thread::sleep(left); // the kubelet's own time, as it was measured
}
