//! The data plane: ports, what they share, and the workers that serve them. Put together from the
//! settings, listening again after a drain that was taken back, and asked by the drain how much of it is
//! left.
//!
//! Always true: a port stays where it is in the list, so that others can keep theirs beside it; whatever
//! happens here, no connection waits for it.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use socket2::Socket;

use crate::admin;
use crate::capture::place;
use crate::capture::sockets::{self, Application};
use crate::config::Config;
use crate::conn::trace::Tracer;
use crate::conn::{Captured, Entrance, Port, Shared};
use crate::io::probe::{self, Selected};
use crate::io::{App, Gauges, listen};
use crate::lifecycle::{Lifecycle, Listeners, Load, Tally};
use crate::limit::Gate;
use crate::outcome::Outcome;
use crate::telemetry::export;
use crate::worker;

/// The data plane of a process: ports and the workers that serve them.
pub struct DataPlane {
    pub(super) ports: Vec<Arc<Port>>,
    pub(super) captured: Option<Arc<Captured>>,
    /// How many sockets each worker listens on.
    pub(super) listeners: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) gauges: Arc<Gauges>,
    engine: Selected,
    pub(super) reason: String,
    workers: Mutex<Vec<JoinHandle<io::Result<()>>>>,
    /// Whether fewer workers will do where so many cannot be had.
    lenient: bool,
    /// Settings that ask for what cannot be had here, and what there is instead.
    pub(super) lacking: Vec<(&'static str, String)>,
}

/// How long a worker may take to start. It has a ring to make and memory to get.
const START: Duration = Duration::from_secs(10);

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
        let mut lacking = Vec::new();
        let (engine, reason) = match probe::choose(config.engine, config.uring_sqpoll) {
            Ok(chosen) => chosen,
            // Whoever asks for it in a pod cannot see what its node allows.
            Err(unusable) if config.in_a_pod => {
                lacking.push(("engine", format!("cannot be had here, epoll serves: {unusable}")));
                (Selected::Epoll, unusable.to_string())
            }
            Err(unusable) => return Err(anyhow!("--engine uring: {unusable}")),
        };
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
        let listeners = sockets.len();
        let mut plane = Self {
            ports,
            captured,
            listeners,
            shared,
            gauges: Arc::default(),
            engine,
            reason,
            workers: Mutex::default(),
            lenient: config.in_a_pod,
            lacking,
        };
        let wanted = config.workers.get();
        plane.work(wanted, &sockets)?;
        let there = plane.worker_count();
        if there < wanted {
            let problem = format!("cannot all be started here, {there} of {wanted} serve");
            plane.lacking.push(("workers", problem));
        }
        Ok(plane)
    }

    /// Start so many workers, and wait until they accept.
    fn work(&self, count: usize, sockets: &[Socket]) -> anyhow::Result<()> {
        let (up, ups) = mpsc::channel();
        let entrances: Vec<_> = self.entrances().collect();
        let mut workers = Vec::new();
        for number in 0..count {
            let started = self.listening(&entrances, sockets).and_then(|listening| {
                worker::start(number, self.engine, listening, self.gauges.clone(), up.clone())
            });
            match started {
                Ok(worker) => workers.push((number, worker)),
                // Threads or descriptors are limited, and the next one will not be had either.
                Err(error) if self.lenient && number > 0 => {
                    tracing::warn!(number, %error, "cannot start another worker thread");
                    break;
                }
                Err(error) => return Err(error).context("cannot start a worker thread"),
            }
        }
        drop(up);
        let mut serving = Vec::new();
        for _ in &workers {
            match ups.recv_timeout(START) {
                Ok(number) => serving.push(number),
                Err(_) if self.lenient && !serving.is_empty() => break,
                Err(error) => return Err(error).context("a worker does not start; see the log"),
            }
        }
        // One that is only late will serve, too, and is waited for at the end.
        workers.retain(|(number, worker)| serving.contains(number) || !worker.is_finished());
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner) =
            workers.into_iter().map(|(_, worker)| worker).collect();
        Ok(())
    }

    /// What one worker listens on.
    fn listening(
        &self,
        entrances: &[Entrance],
        sockets: &[Socket],
    ) -> io::Result<worker::Listening> {
        let each = entrances.iter().zip(sockets).map(|(entrance, socket)| {
            Ok((entrance.clone(), socket.try_clone()?, self.shared.accepting.token()))
        });
        each.collect()
    }

    /// After a drain has ended, and everything with it: listen where we did, and begin anew. Nothing
    /// but the sockets and the threads is new.
    pub(super) fn reopen(&self, life: &Lifecycle) -> anyhow::Result<()> {
        let open = |entrance: Entrance| {
            let listen = entrance.port().listen;
            listen::open(listen).with_context(|| format!("cannot listen on {listen} again"))
        };
        let sockets: Vec<Socket> = self.entrances().map(open).collect::<anyhow::Result<_>>()?;
        for (entrance, socket) in self.entrances().zip(&sockets) {
            entrance.port().listens_on(socket.try_clone()?);
        }
        for port in &self.ports {
            port.gate.open();
        }
        if let Some(captured) = &self.captured {
            captured.open();
        }
        // The old ones have ended, or are about to: no connection and no listener is left to them.
        let count = self.worker_count();
        life.reopen();
        self.work(count, &sockets)
    }

    /// What each worker listens on, in the order of the sockets.
    fn entrances(&self) -> impl Iterator<Item = Entrance> {
        let ports = self.ports.iter().cloned().map(Entrance::Port);
        ports.chain(self.captured.clone().map(Entrance::Captured))
    }

    pub(super) fn worker_count(&self) -> usize {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).len()
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

    /// Whether it stands for all captured ports, and is none itself.
    pub(super) fn is_entrance(&self, port: &Port) -> bool {
        let own = self.captured.as_ref().map(|captured| captured.own.listen);
        port.apps.is_empty() && own == Some(port.listen)
    }

    /// Where the application of a port listens, as far as that is on this machine.
    pub(super) fn on_this_machine(&self, port: &Port) -> Vec<Application> {
        let number = port.listen.port();
        if port.apps.is_empty() {
            // Neither the capture port nor the gate that ports share has an application.
            let is_one = number != 0 && !self.is_entrance(port);
            return is_one.then_some(Application { ip: None, port: number }).into_iter().collect();
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
    pub(super) fn traces(&self) -> Option<admin::Traces> {
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
    pub(super) fn apply(&self, config: &Config) {
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

    fn listeners(&self) -> Option<Listeners> {
        let ports = self.ports();
        let applications: Vec<_> =
            ports.iter().flat_map(|port| self.on_this_machine(port)).collect();
        // Loopback is here even where one of its families is not.
        let is_here = |app: &App| matches!(app, App::Tcp(at) if at.ip().is_loopback() || place::is_local(*at));
        let elsewhere = ports.iter().flat_map(|port| &port.apps).any(|app| !is_here(app))
            || self.captured.as_ref().is_some_and(|captured| captured.is_shared());
        let mut listeners = Listeners { elsewhere, ..Listeners::default() };
        for (app, sockets) in iter::zip(&applications, sockets::listening(&applications).ok()?) {
            listeners.by_port.entry(app.port).or_default().extend(sockets);
        }
        Some(listeners)
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
