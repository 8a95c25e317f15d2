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
use crate::capture::place;
use crate::capture::sockets::{Application, Beside};
use crate::config::{Config, Layers};
use crate::conn::trace::Tracer;
use crate::conn::{Captured, Entrance, Port, Shared};
use crate::io::probe::{self, Selected};
use crate::io::{App, Gauges, listen};
use crate::journal::Journal;
use crate::lifecycle::{Cause, Lifecycle, Load, Report, Tally};
use crate::limit::Gate;
use crate::metrics::Demand;
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
    captured: Option<Arc<Captured>>,
    /// How many sockets each worker listens on.
    listeners: usize,
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
    beside: Beside,
    settings: Mutex<Settings>,
    /// In the order of the ports.
    demand: Mutex<Vec<Demand>>,
}

/// The settings in force, and how the last change went.
struct Settings {
    layers: Layers,
    config: Config,
    reload: admin::Reload,
    changes: admin::Changes,
}

/// How long a process that was drained on request goes on answering, unless a signal ends it.
const LINGER: Duration = Duration::from_secs(2);

/// How long a worker may take to start. It has a ring to make and memory to get.
const START: Duration = Duration::from_secs(10);

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
    let (bound, sockets) = open(&faces, &config)?;
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
        beside: Beside::default(),
        settings: Mutex::new(Settings {
            layers,
            config,
            reload: admin::Reload { ok: true, error: None, last_success: SystemTime::now() },
            changes: admin::Changes::default(),
        }),
        demand: Mutex::default(),
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
fn open(faces: &admin::Faces, config: &Config) -> Result<(admin::Bound, Vec<Socket>), StartError> {
    let mut problems = Vec::new();
    let mut sockets = Vec::new();
    let ports = config.ports.iter().map(|port| ("listen", port.listen, listen::open(port.listen)));
    let capture = config.captured.iter().map(|captured| captured.listen);
    let capture = capture.map(|listen| ("capture", listen, listen::open_for_both(listen)));
    for (flag, address, opened) in ports.chain(capture) {
        match opened {
            Ok(socket) => sockets.push(socket),
            Err(e) => problems.push(format!("cannot listen on {address} (--{flag}): {e}")),
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
    let pace = spawn_local(say_what_was_not_said(plane.clone()));
    let demand = spawn_local(watch_demand(running.clone()));
    if let Some(captured) = &plane.captured {
        tracing::info!(listen = %captured.own.listen, engine = plane.engine_name(), reason = plane.reason, "listening for captured connections");
    }
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
    demand.abort();
    pace.abort();
    plane.shared.access.flush();
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
        let expected = plane.workers.len() * plane.listeners;
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

impl DataPlane {
    /// Choose the engine and start the workers on sockets that already listen: those of the ports in
    /// their order, then that of captured traffic. `listening`: what else this process listens on and
    /// must never dial. `traces`: where they go, if anywhere.
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
            let port = Port::new(
                listen,
                port.app_text.clone(),
                port.apps.clone(),
                port.protocol,
                Gate::new(&port.gate),
                port.conn.clone(),
                shared.clone(),
            );
            port.listens_on(socket.try_clone()?);
            ports.push(Arc::new(port));
        }
        let captured = match (&config.captured, sockets.get(ports.len())) {
            (Some(captured), Some(socket)) => {
                let listen = socket.local_addr()?.as_socket().context("not an IP socket")?;
                let captured = Captured::new(listen, captured.terms.clone(), shared.clone());
                captured.own.listens_on(socket.try_clone()?);
                Some(Arc::new(captured))
            }
            _ => None,
        };
        let entrances = ports.iter().cloned().map(Entrance::Port);
        let entrances: Vec<_> = entrances.chain(captured.clone().map(Entrance::Captured)).collect();
        let gauges = Arc::<Gauges>::default();
        let (up, ups) = mpsc::channel();
        let workers: Vec<_> = (0..config.workers.get())
            .map(|number| {
                let mut listening = worker::Listening::new();
                for (entrance, socket) in entrances.iter().zip(&sockets) {
                    let token = shared.accepting.token();
                    listening.push((entrance.clone(), socket.try_clone()?, token));
                }
                worker::start(number, engine, listening, gauges.clone(), up.clone())
            })
            .collect::<io::Result<_>>()
            .context("cannot start a worker thread")?;
        drop(up);
        for _ in &workers {
            ups.recv_timeout(START).context("a worker does not start; see the log")?;
        }
        let listeners = entrances.len();
        Ok(Self { ports, captured, listeners, shared, gauges, engine, reason, workers })
    }

    /// The ports, in the order they were configured, then the captured ones as they were seen first.
    /// A port stays where it is.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        let mut ports = self.ports.clone();
        if let Some(captured) = &self.captured {
            ports.push(captured.own.clone());
            ports.extend(captured.ports());
        }
        ports
    }

    /// Where the application of a port listens, as far as that is on this machine.
    fn on_this_machine(&self, port: &Port) -> Vec<Application> {
        let number = port.listen.port();
        if let Some(captured) = &self.captured
            && port.apps.is_empty()
        {
            let own = number == captured.own.listen.port();
            return if own { Vec::new() } else { vec![Application { ip: None, port: number }] };
        }
        let tcp = port.apps.iter().filter_map(|app| match app {
            App::Tcp(address) if place::is_local(*address) => Some(address),
            _ => None,
        });
        // Whoever calls it by another address passes us, too; unless that address is ours.
        tcp.map(|app| Application {
            ip: self.shared.listens_on(app.port()).then_some(app.ip().to_canonical()),
            port: app.port(),
        })
        .collect()
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
        if let (Some(captured), Some(new)) = (&self.captured, &config.captured) {
            captured.apply(new.terms.clone());
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
        for port in self.ports() {
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
        for port in self.ports() {
            port.gate.close();
        }
        if let Some(captured) = &self.captured {
            captured.close();
        }
    }
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample_demand(&self, now: Instant) {
        let mut demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = self.plane.ports();
        demand.resize_with(ports.len(), Demand::default);
        for (demand, port) in demand.iter_mut().zip(&ports) {
            demand.sample(&port.metrics, now);
        }
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
                settings.changes.file[0] += 1;
                let before = settings.layers.describe();
                self.take_over(&mut settings, changed);
                tracing::info!("settings read again");
                change.applied(&differing(&before, &settings.layers.describe()));
            }
            Err(mistakes) => {
                settings.changes.file[1] += 1;
                change.refused(&[]);
                let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
                let all = all.join("; ");
                tracing::warn!("settings not changed, the last good ones stay: {all}");
                settings.reload.ok = false;
                settings.reload.error = Some(mistakes.to_string());
            }
        }
    }

    /// Every port, and what it is doing.
    fn port_statuses(&self) -> Vec<admin::PortStatus> {
        let ports = self.plane.ports();
        let beside =
            self.beside.count(ports.iter().map(|port| self.plane.on_this_machine(port)).collect());
        ports.iter().zip(beside).map(|(port, bypass)| Self::port_status(port, bypass)).collect()
    }

    fn port_status(port: &Port, bypass: Option<u64>) -> admin::PortStatus {
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
            bypass,
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
            ports: self.port_statuses(),
            connections: plane.shared.registry.open(),
            max_connections: plane.shared.max_connections(),
            pools: admin::Pools { in_use: plane.gauges.buffers.load(Ordering::Relaxed) },
            dropped_lines: admin::DroppedLines {
                log: self.level.dropped(),
                access: plane.shared.access.dropped(),
            },
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
        self.plane.ports().iter().map(|port| port.metrics.clone()).collect()
    }

    fn vitals(&self) -> admin::Vitals {
        let now = Instant::now();
        let demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = self.plane.ports();
        let ports = ports.iter().enumerate().map(|(at, port)| admin::PortVitals {
            backlog: port.backlog().map(|backlog| [backlog.waiting, backlog.capacity]),
            app_connections: port.app_connections(),
            turned_away: demand.get(at).map_or(0.0, |d| d.turned_away(&port.metrics, now)),
        });
        admin::Vitals { ports: ports.collect(), changes: self.lock().changes }
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

    fn journal(&self) -> Arc<Journal> {
        self.plane.shared.journal.clone()
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
                settings.changes.live[0] += 1;
                self.take_over(&mut settings, changed);
                tracing::info!(?applied, "settings changed");
                change.applied(&keys);
                Ok(applied)
            }
            Err(mistakes) => {
                settings.changes.live[1] += 1;
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
