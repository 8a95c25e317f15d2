//! What runs, as the admin faces see and change it: the status put together from all parts, and the
//! settings in force.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crate::admin::{self, Connection, Counts, Gateway, Setting};
use crate::capture::sockets::{Beside, Question};
use crate::config::{Config, Layers, Remark, Source};
use crate::conn::Port;
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::metrics::Demand;
use crate::probes::Probes;
use crate::telemetry::control;
use crate::{settings, telemetry};

use super::live;
use super::plane::DataPlane;

/// What the admin faces may see and do.
pub(super) struct Running {
    pub(super) plane: Arc<DataPlane>,
    pub(super) life: Lifecycle,
    pub(super) faces: [SocketAddr; 3],
    pub(super) started: Instant,
    pub(super) level: telemetry::Level,
    pub(super) beside: Beside,
    pub(super) probes: Arc<Probes>,
    pub(super) drain_partial: bool,
    pub(super) settings: Mutex<Settings>,
    /// The watch of the own pod, if there is one.
    pub(super) own_pod: Mutex<Option<admin::OwnPod>>,
    /// In the order of the ports.
    pub(super) demand: Mutex<Vec<Demand>>,
}

/// The settings in force, and how the last change went.
pub(super) struct Settings {
    pub(super) layers: Layers,
    pub(super) config: Config,
    /// Why the file could not be read again.
    pub(super) file_error: Option<String>,
    /// When settings were last put in force.
    pub(super) last_success: SystemTime,
    pub(super) changes: admin::Changes,
}

impl Running {
    pub(super) fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sample_demand(&self, now: Instant) {
        let mut demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = self.plane.ports();
        demand.resize_with(ports.len(), Demand::default);
        for (demand, port) in demand.iter_mut().zip(&ports) {
            demand.sample(&port.metrics, now);
        }
    }

    pub(super) fn own_pod(&self) -> MutexGuard<'_, Option<admin::OwnPod>> {
        self.own_pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_in_force(&self, config: &Config) {
        self.plane.apply(config);
        if let Err(error) = self.level.set(&config.log.level) {
            tracing::warn!(error, "the log level stays as it is");
        }
    }

    /// Put changed settings in force.
    pub(super) fn take_over(&self, settings: &mut Settings, (layers, config): (Layers, Config)) {
        self.put_in_force(&config);
        live::say_what_is_new(&settings.layers, &layers);
        settings.layers = layers;
        settings.config = config;
        settings.file_error = None;
        settings.last_success = SystemTime::now();
    }

    pub(super) fn reread(&self) {
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
                settings.file_error = Some(mistakes.to_string());
            }
        }
    }

    /// Every port, and what it is doing.
    fn port_statuses(&self) -> Vec<admin::PortStatus> {
        let ports = self.plane.ports();
        let beside = self.beside.count(Question {
            ports: ports.iter().map(|port| self.plane.on_this_machine(port)).collect(),
            uncalled: self.plane.captured.as_ref().map(|c| c.uncalled()).unwrap_or_default(),
        });
        let each = ports.iter().zip(beside.ports).map(|(port, bypass)| {
            let bypass = if self.plane.is_entrance(port) { beside.uncalled } else { bypass };
            self.port_status(port, bypass)
        });
        each.collect()
    }

    fn port_status(&self, port: &Port, bypass: Option<u64>) -> admin::PortStatus {
        let counts = Counts::read(&port.metrics);
        let gate = port.gate.snapshot();
        admin::PortStatus {
            listen: port.listen,
            app: port.app_text.clone(),
            entrance: self.plane.is_entrance(port),
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
            workers: plane.worker_count(),
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
            last_reload: settings.reload(),
            remarks: settings.layers.remarks().iter().map(shown).collect(),
            own_pod: self.own_pod().clone(),
            drain: self.life.report(),
            drain_partial: self.drain_partial,
            drains_taken_back: self.life.taken_back(),
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

    fn probes(&self) -> Arc<Probes> {
        self.probes.clone()
    }

    fn lifecycle(&self) -> Lifecycle {
        self.life.clone()
    }

    fn set(&self, changes: BTreeMap<String, String>) -> Result<Vec<String>, Vec<String>> {
        let mut applied: Vec<_> =
            changes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let change = control::Change::by("tidegate set");
        let keys = known(&changes);
        let mut settings = self.lock();
        match settings.layers.set_live(changes) {
            Ok(changed) => {
                settings.changes.live[0] += 1;
                self.take_over(&mut settings, changed);
                let remarks = settings.layers.remarks().into_iter();
                let ours = remarks.filter(|remark| remark.source == Source::Live);
                applied.extend(ours.map(|remark| remark.to_string()));
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

impl Settings {
    /// Whether all that was said last could be used.
    fn reload(&self) -> admin::Reload {
        let remarks = self.layers.remarks().into_iter();
        let failed = remarks.filter(|remark| remark.trouble.is_failure());
        let all: Vec<_> =
            self.file_error.iter().cloned().chain(failed.map(|r| r.to_string())).collect();
        let error = (!all.is_empty()).then(|| all.join("\n"));
        admin::Reload { ok: error.is_none(), error, last_success: self.last_success }
    }
}

fn shown(remark: &Remark) -> admin::Remark {
    admin::Remark {
        source: remark.source.label(),
        reason: remark.trouble.label(),
        text: remark.to_string(),
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
pub(super) fn differing(before: &[Setting], after: &[Setting]) -> Vec<&'static str> {
    let mut keys: Vec<_> = changed(before, after).chain(changed(after, before)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The settings that have another value here than there. A captured port has a row of its own only while it
/// is named; without, it has what the others have.
fn changed<'a>(here: &'a [Setting], there: &'a [Setting]) -> impl Iterator<Item = &'static str> {
    let of = |key: &str, port: Option<u16>| {
        there.iter().find(|row| row.key == key && row.port == port).map(|row| &row.value)
    };
    let differs = move |row: &&Setting| {
        of(row.key, row.port).or_else(|| of(row.key, None)) != Some(&row.value)
    };
    here.iter().filter(differs).map(|row| row.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &'static str, port: Option<u16>, value: &str) -> Setting {
        Setting { key, port, value: value.into(), origin: "default".into() }
    }

    #[test]
    fn a_port_that_is_named_later_changes_only_what_is_said_about_it() {
        let before = [
            row("limit", Some(80), "1"),
            row("limit", None, "2"),
            row("mode", Some(80), "enforce"),
            row("mode", None, "observe"),
            row("engine", None, "auto"),
        ];
        let after = [
            row("limit", Some(80), "1"),
            row("limit", Some(90), "7"),
            row("limit", None, "2"),
            row("mode", Some(80), "enforce"),
            row("mode", Some(90), "observe"),
            row("mode", None, "observe"),
            row("engine", None, "auto"),
        ];
        assert_eq!(differing(&before, &after), ["limit"]);
        assert_eq!(differing(&before, &before), [""; 0]);
        // And when it is no longer named, it has what the others have.
        assert_eq!(differing(&after, &before), ["limit"]);
    }
}
