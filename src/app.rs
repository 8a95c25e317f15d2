//! The composition root: build every part, wire them, run until drained.
//!
//! ```text
//!   main thread: tokio             worker threads: an engine each
//!   admin faces, signals, drain    accept → … → release
//!          │  gate handles, drain handle   ▲
//!          └───────────────────────────────┘
//! ```

mod live;
mod plane;
mod running;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use socket2::Socket;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::capture::sockets::Beside;
use crate::config::{Config, Layers};
use crate::io::listen;
use crate::lifecycle::{Cause, Lifecycle, Next, Report};
use crate::probes::Probes;
use crate::telemetry::{Telemetry, control, export};

pub use plane::DataPlane;
use running::{Running, Settings};

/// Why `run` did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Addresses that cannot be listened on, one a line.
    #[error("{0}")]
    Addresses(String),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// The process of `tidegate run`, before it knows its settings: from now on a signal waits until it can be
/// obeyed. The kernel lets process 1, as in a container, hear of none that it has not asked for.
pub struct Process {
    runtime: Runtime,
    signals: Signals,
}

/// What is heard.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// How often it is told what had no log line.
const PACE: Duration = Duration::from_secs(1);

/// How often the main thread looks whether a worker has died.
const LOOK: Duration = Duration::from_millis(200);

/// Use as many file descriptors as the operator allows: the soft limit is the default of programs
/// that may still call select(2).
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

impl Process {
    /// To be called first of all.
    pub fn new() -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the control plane")?;
        let signals = {
            let _inside = runtime.enter();
            Signals::register().context("cannot listen for signals")?
        };
        Ok(Self { runtime, signals })
    }

    /// `tidegate run`: serve until drained.
    pub fn run(
        self,
        config: Config,
        layers: Layers,
        telemetry: &Telemetry,
    ) -> Result<Report, StartError> {
        let Self { runtime, signals } = self;
        LocalSet::new().block_on(&runtime, start(config, layers, telemetry, signals))
    }
}

async fn start(
    config: Config,
    layers: Layers,
    telemetry: &Telemetry,
    signals: Signals,
) -> Result<Report, StartError> {
    let starting = control::Start::new();
    let faces = admin::Faces {
        admin: config.admin,
        probe: config.probe,
        metrics: config.metrics,
        control: config.control.clone(),
    };
    let (bound, sockets) = open(&faces, &config)?;
    let layers = layers.bound(sockets.iter().filter_map(|s| s.local_addr().ok()?.as_socket()));
    let config = match layers.in_a_pod() {
        // Of single ports it can only be told now whether they are ours.
        true => layers.resolve().map_err(|mistakes| anyhow!("{mistakes}"))?,
        false => config,
    };
    live::say(layers.remarks().iter());
    let addresses = [bound.admin(), bound.probe(), bound.metrics()];
    let [admin, probe, metrics] = addresses.map(|addr| addr.context("the address just bound"));
    let faces = [admin?, probe?, metrics?];
    let life = Lifecycle::new(config.drain.grace);
    // Last to go: what was recorded until the end has a moment to leave.
    let queue = telemetry.traces();
    let exporter = collector(&config, queue.clone())?;
    let plane = Arc::new(DataPlane::start(&config, sockets, faces.to_vec(), &life, queue)?);
    let layers = noted(layers, &plane);
    let running = Arc::new(Running {
        plane: plane.clone(),
        life: life.clone(),
        faces,
        started: Instant::now(),
        level: telemetry.level(),
        beside: Beside::default(),
        probes: Arc::new(Probes::new(&config.app_probes, plane.shared.own_ports())),
        drain_partial: config.drain_partial,
        settings: Mutex::new(Settings {
            layers,
            config,
            file_error: None,
            last_success: SystemTime::now(),
            changes: admin::Changes::default(),
        }),
        own_pod: Mutex::default(),
        demand: Mutex::default(),
    });
    let report = serve(plane, running, bound, starting, signals).await?;
    drop(exporter);
    Ok(report)
}

/// What was asked for in a pod and cannot be had here is said, and remembered.
fn noted(layers: Layers, plane: &DataPlane) -> Layers {
    let mut noted = layers.clone();
    for (setting, problem) in &plane.lacking {
        noted.note_lacking(setting, problem);
    }
    live::say_what_is_new(&layers, &noted);
    noted
}

/// The way to whoever collects traces.
fn collector(
    config: &Config,
    queue: Option<export::Queue>,
) -> anyhow::Result<Option<export::Exporter>> {
    for ignored in &config.ignored {
        tracing::warn!("ignored: {ignored}");
    }
    for flaw in config.app_probes.flaws() {
        tracing::warn!(
            "app-probes: {flaw}; it is called green, so that its container is left alone"
        );
    }
    let (Some(export), Some(queue)) = (config.export.clone(), queue) else { return Ok(None) };
    tracing::info!(endpoint = export.endpoint, protocol = ?export.protocol, "exporting traces");
    // The drain ends so long before the process is killed.
    let leave = config.drain.reserve() / 2;
    let exporter = export::start(queue, export, leave);
    exporter.map(Some).context("cannot start the thread that exports traces")
}

/// Open every address, or say of each that cannot be opened why.
fn open(faces: &admin::Faces, config: &Config) -> Result<(admin::Bound, Vec<Socket>), StartError> {
    let mut problems = Vec::new();
    let mut sockets = Vec::new();
    let ports = config.ports.iter().map(|port| ("listen", port.listen, listen::open(port.listen)));
    let capture = config.captured.iter().map(|captured| captured.listen);
    let capture = capture.map(|listen| ("capture", listen, listen::open(listen)));
    let mut without_ipv6 = false;
    for (flag, address, opened) in ports.chain(capture) {
        match opened {
            Ok(socket) => {
                without_ipv6 |= listen::fell_back(address, &socket);
                sockets.push(socket);
            }
            Err(e) => problems.push(format!("cannot listen on {address} (--{flag}): {e}")),
        }
    }
    match admin::bind(faces) {
        Ok(bound) if problems.is_empty() => {
            if without_ipv6 || bound.without_ipv6() {
                tracing::info!(
                    "there is no IPv6 here: what is to listen on [::] listens on 0.0.0.0"
                );
            }
            return Ok((bound, sockets));
        }
        Ok(_) => {}
        Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
    }
    Err(StartError::Addresses(problems.join("\n")))
}

/// Everything on the main thread, from the first connection to the report.
async fn serve(
    plane: Arc<DataPlane>,
    running: Arc<Running>,
    faces: admin::Bound,
    starting: control::Start,
    signals: Signals,
) -> anyhow::Result<Report> {
    let life = running.life.clone();
    let stop = CancellationToken::new();
    let admin = spawn_local(faces.serve(running.clone(), stop.clone()));
    let signals = spawn_local(signals.obey(running.clone()));
    let health = spawn_local(watch_workers(plane.clone(), life.clone()));
    let pace = spawn_local(say_what_was_not_said(plane.clone()));
    let demand = spawn_local(watch_demand(running.clone()));
    let followed = running.lock().layers.in_a_pod();
    let follow = followed.then(|| spawn_local(live::follow(running.clone())));
    if let Some(captured) = &plane.captured {
        tracing::info!(listen = %captured.own.listen, engine = plane.engine_name(), reason = plane.reason, "listening for captured connections");
    }
    for port in &plane.ports {
        tracing::info!(listen = %port.listen, app = %port.app_text, engine = plane.engine_name(), reason = plane.reason, "listening");
    }
    life.serving();
    starting.serving(plane.engine_name(), &plane.reason);

    let report = drain(&plane, &running, &life).await;
    stop.cancel();
    if let Ok(Err(error)) = admin.await {
        tracing::warn!(%error, "the admin faces ended with an error");
    }
    signals.abort();
    health.abort();
    demand.abort();
    if let Some(follow) = follow {
        follow.abort();
    }
    pace.abort();
    plane.shared.access.flush();
    if report.cause == Cause::Failure {
        bail!("a worker failed; see the log");
    }
    Ok(report)
}

/// Serve until a drain is over after which nothing comes.
async fn drain(plane: &DataPlane, running: &Running, life: &Lifecycle) -> Report {
    loop {
        let over = life.next_drain(|| running.lock().config.drain.clone(), plane).await;
        let report = over.report.clone();
        tracing::info!(
            cause = ?report.cause,
            in_flight_at_start = report.in_flight_at_start,
            queued_at_start = report.queued_at_start,
            finished = report.finished,
            cut = report.cut,
            late_arrivals = report.late_arrivals,
            refused = report.refused,
            seconds = report.seconds,
            "drained"
        );
        if over.next().await == Next::Leave {
            return report;
        }
        if let Err(error) = plane.reopen(life) {
            tracing::error!(%error, "cannot serve again after a drain; leaving, to be started anew");
            return report;
        }
        life.served_again();
        tracing::info!("serving again: the application has started anew, and nobody ends us");
    }
}

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM and SIGINT drain, the second of them now; SIGHUP reads the file again.
    async fn obey(self, running: Arc<Running>) {
        let Self { mut terminate, mut interrupt, mut hangup } = self;
        let next = async |terminate: &mut Signal, interrupt: &mut Signal| {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        };
        let mut draining = false;
        loop {
            tokio::select! {
                () = next(&mut terminate, &mut interrupt) => {
                    let drained = running.life.report().is_some();
                    if draining && !drained {
                        tracing::warn!("second signal: cutting what is left");
                    }
                    if draining || drained {
                        running.life.hurry();
                    }
                    draining = true;
                    running.life.drain(Cause::Signal);
                }
                _ = hangup.recv() => running.reread(),
            }
        }
    }
}

/// A worker that stops accepting before the drain has failed: say so, and let what is left finish.
async fn watch_workers(plane: Arc<DataPlane>, life: Lifecycle) {
    loop {
        tokio::time::sleep(LOOK).await;
        let expected = plane.worker_count() * plane.listeners;
        let accepting = plane.shared.accepting.len();
        if accepting < expected && !plane.shared.closing.is_raised() {
            tracing::error!(accepting, expected, "a worker no longer accepts; draining");
            life.drain(Cause::Failure);
            return;
        }
    }
}

/// Of each class of refusals and failures one line a second is logged, and says how many before it
/// had none. If none comes after those, they are told here.
async fn say_what_was_not_said(plane: Arc<DataPlane>) {
    loop {
        tokio::time::sleep(PACE).await;
        if tracing::enabled!(tracing::Level::DEBUG) {
            for (class, suppressed) in plane.shared.journal.unsaid(Instant::now()) {
                let (outcome, reason) = (class.label(), class.class());
                tracing::debug!(outcome, reason, suppressed, "more ended so, without a line each");
            }
        }
    }
}

/// Have it remembered, once a second, what the ports are asked for.
async fn watch_demand(running: Arc<Running>) {
    loop {
        running.sample_demand(Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
