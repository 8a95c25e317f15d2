//! The composition root: build every part, wire them, run until drained.
//!
//! ```text
//!   main thread: tokio             worker threads: an engine each
//!   admin faces, signals, drain    accept → … → release
//!          │  gate handles, drain handle   ▲
//!          └───────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use socket2::Socket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Connection, Counts, Gateway, Setting};
use crate::config::{Config, Layers, PortConfig};
use crate::conn::trace::Tracer;
use crate::conn::{Port, Shared};
use crate::io::probe::{self, Selected};
use crate::io::{Gauges, listen};
use crate::lifecycle::{Cause, Lifecycle, Load, Report, Tally};
use crate::limit::Gate;
use crate::outcome::Outcome;
use crate::telemetry::{Telemetry, control, export};
use crate::{settings, telemetry, worker};

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

/// The data plane of a process: ports and the workers that serve them.
pub struct DataPlane {
    ports: Vec<Arc<Port>>,
    shared: Arc<Shared>,
    gauges: Arc<Gauges>,
    engine: Selected,
    reason: String,
    workers: Vec<JoinHandle<io::Result<()>>>,
}

/// What the admin faces may see and do.
struct Running {
    plane: Arc<DataPlane>,
    life: Lifecycle,
    faces: [SocketAddr; 3],
    started: Instant,
    level: telemetry::Level,
    settings: Mutex<Settings>,
}

/// The settings in force, and how the last change went.
struct Settings {
    layers: Layers,
    config: Config,
    reload: admin::Reload,
}

/// How long a process that was drained on request goes on answering, unless a signal ends it.
const LINGER: Duration = Duration::from_secs(2);

/// How long a worker may take to start. It has a ring to make and memory to get.
const START: Duration = Duration::from_secs(10);

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

/// `tidegate run`: serve until drained.
pub fn run(config: Config, layers: Layers, telemetry: &Telemetry) -> Result<Report, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control plane")?;
    LocalSet::new().block_on(&runtime, start(config, layers, telemetry))
}

async fn start(
    config: Config,
    layers: Layers,
    telemetry: &Telemetry,
) -> Result<Report, StartError> {
    let starting = control::Start::new();
    let faces = admin::Faces {
        admin: config.admin,
        probe: config.probe,
        metrics: config.metrics,
        control: config.control.clone(),
    };
    let (bound, sockets) = open(&faces, &config.ports)?;
    let layers = layers.bound(sockets.iter().filter_map(|s| s.local_addr().ok()?.as_socket()));
    let addresses = [bound.admin(), bound.probe(), bound.metrics()];
    let [admin, probe, metrics] = addresses.map(|addr| addr.context("the address just bound"));
    let faces = [admin?, probe?, metrics?];
    let life = Lifecycle::new();
    // Last to go: what was recorded until the end has a moment to leave.
    let queue = telemetry.traces();
    let exporter = collector(&config, queue.clone())?;
    let plane = Arc::new(DataPlane::start(&config, sockets, faces.to_vec(), &life, queue)?);
    let running = Arc::new(Running {
        plane: plane.clone(),
        life: life.clone(),
        faces,
        started: Instant::now(),
        level: telemetry.level(),
        settings: Mutex::new(Settings {
            layers,
            config,
            reload: admin::Reload { ok: true, error: None, last_success: SystemTime::now() },
        }),
    });
    let report = serve(plane, running, bound, life, starting).await?;
    drop(exporter);
    Ok(report)
}

/// The way to whoever collects traces.
fn collector(
    config: &Config,
    queue: Option<export::Queue>,
) -> anyhow::Result<Option<export::Exporter>> {
    for ignored in &config.ignored {
        tracing::warn!("ignored: {ignored}");
    }
    let (Some(export), Some(queue)) = (config.export.clone(), queue) else { return Ok(None) };
    tracing::info!(endpoint = export.endpoint, protocol = ?export.protocol, "exporting traces");
    // The drain ends so long before the process is killed.
    let leave = config.drain.reserve() / 2;
    let exporter = export::start(queue, export, leave);
    exporter.map(Some).context("cannot start the thread that exports traces")
}

/// Open every address, or say of each that cannot be opened why.
fn open(
    faces: &admin::Faces,
    ports: &[PortConfig],
) -> Result<(admin::Bound, Vec<Socket>), StartError> {
    let mut problems = Vec::new();
    let mut sockets = Vec::new();
    for port in ports {
        match listen::open(port.listen) {
            Ok(socket) => sockets.push(socket),
            Err(e) => problems.push(format!("cannot listen on {} (--listen): {e}", port.listen)),
        }
    }
    match admin::bind(faces) {
        Ok(bound) if problems.is_empty() => return Ok((bound, sockets)),
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
    life: Lifecycle,
    starting: control::Start,
) -> anyhow::Result<Report> {
    let stop = CancellationToken::new();
    let admin = spawn_local(faces.serve(running.clone(), stop.clone()));
    let signals = spawn_local(signals(running.clone())?);
    let health = spawn_local(watch_workers(plane.clone(), life.clone()));
    for port in &plane.ports {
        tracing::info!(listen = %port.listen, app = %port.app_text, engine = plane.engine_name(), reason = plane.reason, "listening");
    }
    life.serving();
    starting.serving(plane.engine_name(), &plane.reason);

    let report = life.run_drain(|| running.lock().config.drain.clone(), &*plane).await;
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
    if report.cause == Cause::Request {
        // Others may ask for the report too: every container's hook, a person.
        tokio::select! { () = tokio::time::sleep(LINGER) => {} () = life.hurried() => {} }
    }
    stop.cancel();
    if let Ok(Err(error)) = admin.await {
        tracing::warn!(%error, "the admin faces ended with an error");
    }
    signals.abort();
    health.abort();
    if report.cause == Cause::Failure {
        bail!("a worker failed; see the log");
    }
    Ok(report)
}

/// SIGTERM and SIGINT drain, the second of them now; SIGHUP reads the file again.
fn signals(running: Arc<Running>) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let next = async |terminate: &mut Signal, interrupt: &mut Signal| {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    };
    Ok(async move {
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
    })
}

/// A worker that stops accepting before the drain has failed: say so, and let what is left finish.
async fn watch_workers(plane: Arc<DataPlane>, life: Lifecycle) {
    loop {
        tokio::time::sleep(LOOK).await;
        let expected = plane.workers.len() * plane.ports.len();
        let accepting = plane.shared.accepting.len();
        if accepting < expected && !plane.shared.closing.is_raised() {
            tracing::error!(accepting, expected, "a worker no longer accepts; draining");
            life.drain(Cause::Failure);
            return;
        }
    }
}

impl DataPlane {
    /// Choose the engine and start the workers on sockets that already listen. `listening`: what
    /// else this process listens on and must never dial. `traces`: where they go, if anywhere.
    pub fn start(
        config: &Config,
        sockets: Vec<Socket>,
        mut listening: Vec<SocketAddr>,
        life: &Lifecycle,
        traces: Option<export::Queue>,
    ) -> anyhow::Result<Self> {
        let (engine, reason) = probe::choose(config.engine, config.uring_sqpoll)
            .map_err(|unusable| anyhow!("--engine uring: {unusable}"))?;
        for socket in &sockets {
            listening.extend(socket.local_addr()?.as_socket());
        }
        let most = config.max_connections;
        let tracer = traces.map(|queue| Arc::new(Tracer::new(config.sampling, queue)));
        let shared = Arc::new(Shared::new(most, listening, life.closing(), life.cut(), tracer));
        let mut ports = Vec::new();
        for (port, socket) in config.ports.iter().zip(&sockets) {
            let listen = socket.local_addr()?.as_socket().context("not an IP socket")?;
            ports.push(Arc::new(Port::new(
                listen,
                port.app_text.clone(),
                port.apps.clone(),
                port.protocol,
                Gate::new(&port.gate),
                port.conn.clone(),
                shared.clone(),
            )));
        }
        let gauges = Arc::<Gauges>::default();
        let (up, ups) = mpsc::channel();
        let workers: Vec<_> = (0..config.workers.get())
            .map(|number| {
                let mut listening = worker::Listening::new();
                for (port, socket) in ports.iter().zip(&sockets) {
                    listening.push((port.clone(), socket.try_clone()?, shared.accepting.token()));
                }
                worker::start(number, engine, listening, gauges.clone(), up.clone())
            })
            .collect::<io::Result<_>>()
            .context("cannot start a worker thread")?;
        drop(up);
        for _ in &workers {
            ups.recv_timeout(START).context("a worker does not start; see the log")?;
        }
        Ok(Self { ports, shared, gauges, engine, reason, workers })
    }

    /// The ports, in the order they were configured.
    pub fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    /// What became of traces, if anybody collects them.
    fn traces(&self) -> Option<admin::Traces> {
        let tracer = self.shared.tracer.as_ref()?;
        let export::Counts { exported, queue_full, failed, too_many } = tracer.counts();
        let capped = tracer.capped();
        Some(admin::Traces { exported, queue_full, export_failed: failed, too_many, capped })
    }

    /// `uring` or `epoll`.
    pub fn engine_name(&self) -> &'static str {
        match self.engine {
            Selected::Epoll => "epoll",
            Selected::Uring { .. } => "uring",
        }
    }

    /// Why this engine.
    pub fn engine_reason(&self) -> &str {
        &self.reason
    }

    /// New settings for ports that go on listening where they do.
    fn apply(&self, config: &Config) {
        for (port, new) in self.ports.iter().zip(&config.ports) {
            port.gate.apply(&new.gate);
            port.configure(new.conn.clone());
        }
        self.shared.set_max_connections(config.max_connections);
        if let Some(tracer) = &self.shared.tracer {
            tracer.apply(config.sampling);
        }
    }
}

impl Load for DataPlane {
    fn tally(&self) -> Tally {
        // The accept loops first: what one of them accepted before it ended is listed by then.
        let accepting = self.shared.accepting.len() as u64;
        let open = self.shared.registry.open();
        let mut tally = Tally { accepting, open, ..Tally::default() };
        for port in &self.ports {
            let gate = port.gate.snapshot();
            tally.active += u64::from(gate.active);
            tally.queued += u64::from(gate.queued);
            tally.accepted += port.metrics.accepted();
            tally.refused += port.metrics.refused().map(|(_, n)| n).sum::<u64>();
            for (outcome, n) in port.metrics.carried() {
                match outcome {
                    Outcome::Cut => tally.cut += n,
                    _ => tally.finished += n,
                }
            }
        }
        tally
    }

    fn close_gates(&self) {
        for port in &self.ports {
            port.gate.close();
        }
    }
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Put changed settings in force.
    fn take_over(&self, settings: &mut Settings, (layers, config): (Layers, Config)) {
        self.plane.apply(&config);
        if let Err(error) = self.level.set(&config.log.level) {
            tracing::warn!(error, "the log level stays as it is");
        }
        settings.layers = layers;
        settings.config = config;
        settings.reload = admin::Reload { ok: true, error: None, last_success: SystemTime::now() };
    }

    fn reread(&self) {
        let change = control::Change::by("SIGHUP");
        let mut settings = self.lock();
        match settings.layers.reread_file() {
            Ok(changed) => {
                let before = settings.layers.describe();
                self.take_over(&mut settings, changed);
                tracing::info!("settings read again");
                change.applied(&differing(&before, &settings.layers.describe()));
            }
            Err(mistakes) => {
                change.refused(&[]);
                tracing::warn!("settings not changed, the last good ones stay: {mistakes}");
                settings.reload.ok = false;
                settings.reload.error = Some(mistakes.to_string());
            }
        }
    }

    fn port_status(port: &Port) -> admin::PortStatus {
        let counts = Counts::read(&port.metrics);
        let gate = port.gate.snapshot();
        admin::PortStatus {
            listen: port.listen,
            app: port.app_text.clone(),
            protocol: port.protocol.label(),
            mode: gate.settings.mode.label(),
            limit: gate.settings.limit.map(Into::into),
            active: gate.active.into(),
            queued: gate.queued.into(),
            queue_length: gate.settings.queue_length,
            peak_active: gate.peak_active.into(),
            counts,
            would_refuse: gate.would_refuse,
            shadow: gate.shadow.into_iter().collect(),
        }
    }
}

impl Gateway for Running {
    fn status(&self) -> admin::Status {
        let settings = self.lock();
        let [admin, probe, metrics] = self.faces;
        let plane = &self.plane;
        admin::Status {
            version: env!("CARGO_PKG_VERSION"),
            engine: admin::Engine { name: plane.engine_name(), reason: plane.reason.clone() },
            phase: self.life.phase(),
            workers: plane.workers.len(),
            ports: plane.ports.iter().map(|port| Self::port_status(port)).collect(),
            connections: plane.shared.registry.open(),
            max_connections: plane.shared.max_connections(),
            pools: admin::Pools { in_use: plane.gauges.buffers.load(Ordering::Relaxed) },
            ring_ops: plane.gauges.ring_ops.load(Ordering::Relaxed),
            admin,
            probe,
            metrics,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            last_reload: settings.reload.clone(),
            drain: self.life.report(),
            traces: plane.traces(),
        }
    }

    fn ports(&self) -> Vec<Arc<crate::metrics::PortMetrics>> {
        self.plane.ports.iter().map(|port| port.metrics.clone()).collect()
    }

    fn settings(&self) -> Vec<Setting> {
        self.lock().layers.describe()
    }

    fn connections(&self) -> Vec<Connection> {
        let rows = self.plane.shared.registry.list();
        rows.iter()
            .map(|row| Connection {
                id: row.id,
                port: row.port.to_string(),
                client: row.client.map_or_else(String::new, |client| client.to_string()),
                stage: row.stage().label(),
                seconds: row.since.elapsed().as_secs_f64(),
                bytes_in: row.traffic.from(crate::io::Side::Client),
                bytes_out: row.traffic.from(crate::io::Side::App),
            })
            .collect()
    }

    fn lifecycle(&self) -> Lifecycle {
        self.life.clone()
    }

    fn set(&self, changes: BTreeMap<String, String>) -> Result<Vec<String>, Vec<String>> {
        let applied = changes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let change = control::Change::by("tidegate set");
        let keys = known(&changes);
        let mut settings = self.lock();
        match settings.layers.set_live(changes) {
            Ok(changed) => {
                self.take_over(&mut settings, changed);
                tracing::info!(?applied, "settings changed");
                change.applied(&keys);
                Ok(applied)
            }
            Err(mistakes) => {
                change.refused(&keys);
                Err(mistakes.iter().map(ToString::to_string).collect())
            }
        }
    }

    fn set_log_level(&self, directive: &str) -> Result<(), String> {
        let change = BTreeMap::from([("log-level".to_owned(), directive.to_owned())]);
        self.set(change).map(drop).map_err(|mistakes| mistakes.join("\n"))
    }
}

/// The settings that are asked for, without ports and what is none: nobody writes texts of theirs into a
/// span.
fn known(changes: &BTreeMap<String, String>) -> Vec<&'static str> {
    let names = changes.keys().map(|key| key.split('.').next().unwrap_or_default());
    let mut keys: Vec<_> = names.filter_map(|name| Some(settings::find(name)?.name)).collect();
    keys.dedup();
    keys
}

/// The settings that are not what they were.
fn differing(before: &[Setting], after: &[Setting]) -> Vec<&'static str> {
    let changed = before.iter().zip(after).filter(|(before, after)| before.value != after.value);
    let mut keys: Vec<_> = changed.map(|(_, after)| after.key).collect();
    keys.dedup();
    keys
}
