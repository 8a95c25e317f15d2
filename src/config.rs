//! Flags, environment and file become every module's own configuration, or one list of all mistakes.
//!
//! ```text
//! defaults < file < environment < flags < live change        each a layer of words (config/words)
//!      └────────┴────────┴──────────┴────────┴──→ resolve ──→ Config, ready for app to wire
//! ```
//!
//! Always true: a [`Config`] that exists can be used; a change is applied as a whole or not at all;
//! nothing but this module reads the environment.

mod capture;
mod check;
mod file;
mod listen;
mod mistake;
mod otel;
mod paths;
mod resolve;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::{cli, conn, io, lifecycle, limit, telemetry};

pub use capture::{Capture, Task, capture};
pub use mistake::{Mistake, Mistakes};
pub use paths::{admin_address, control_path};
pub use words::Origin;

use listen::Listener;
use words::Word;

/// Everything the process needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ports, in the order they were given.
    pub ports: Vec<PortConfig>,
    /// Ports whose connections the kernel redirects.
    pub captured: Option<Captured>,
    /// Which engine to use.
    pub engine: io::EngineChoice,
    /// Whether io_uring gets a submitting kernel thread.
    pub uring_sqpoll: bool,
    /// Data-plane threads.
    pub workers: NonZeroUsize,
    /// Connections the gateway itself holds at once.
    pub max_connections: u32,
    /// How a drain is paced.
    pub drain: lifecycle::Config,
    /// Where the read-only status is served.
    pub admin: SocketAddr,
    /// The Unix socket for all that changes something.
    pub control: PathBuf,
    /// Where the probes are served.
    pub probe: SocketAddr,
    /// Where the metrics are served.
    pub metrics: SocketAddr,
    /// How logs look and how much is logged.
    pub log: telemetry::Config,
    /// Where traces go, if anybody collects them.
    pub export: Option<telemetry::export::Config>,
    /// What is recorded for them.
    pub sampling: conn::trace::Sampling,
    /// What OpenTelemetry's variables say that is not understood; for the log.
    pub ignored: Vec<String>,
}

/// Ports whose connections the kernel redirects to one address of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// That address.
    pub listen: SocketAddr,
    /// What holds on each of them.
    pub terms: conn::TermsByPort,
}

/// One gated port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The application as the user wrote it.
    pub app_text: String,
    /// The application's addresses, in the order they are to be tried.
    pub apps: Vec<io::App>,
    /// What clients speak there.
    pub protocol: conn::Protocol,
    /// Settings of the gate.
    pub gate: limit::Settings,
    /// Settings of everything else on the port.
    pub conn: conn::Config,
}

/// What everybody said, strongest last: kept, so that one layer can change later.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The file to read again on SIGHUP.
    path: Option<PathBuf>,
    file: Vec<Word>,
    environment: Vec<Word>,
    flags: Vec<Word>,
    live: Vec<Word>,
    /// Of the strongest layer that names any; host names are resolved once.
    listeners: Vec<Listener>,
    /// Where the listeners were named, if not in the file.
    listeners_from_file: bool,
    /// Where the control socket goes when nobody says.
    default_control: PathBuf,
    /// What OpenTelemetry's own variables say.
    otel: otel::Otel,
}

/// The environment of the process.
pub fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

impl Layers {
    /// Read every layer. The error lists the mistakes of all of them.
    pub fn from_cli(
        run: &cli::Run,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let environment: Vec<_> = environment.into_iter().collect();
        let otel = otel::Otel::of_environment(&environment);
        let environment = words::of_environment(environment, &mut mistakes);
        let flags = words::of_flags(run, &mut mistakes);
        let path = run.config.clone().or(environment.config);
        let file = path.as_deref().map(|path| file::read(path, &mut mistakes)).unwrap_or_default();

        let listeners_from_file = flags.listen.is_empty() && environment.listen.is_empty();
        let named = [flags.listen, environment.listen, file.listen];
        // A bad listener of a weaker layer is a mistake too, although it would not be used.
        let parsed = named.map(|texts| listen::parse_all(texts, &mut mistakes));
        let listeners = parsed.into_iter().find(|list| !list.is_empty()).unwrap_or_default();

        let layers = Self {
            path,
            file: file.words,
            environment: environment.words,
            flags: flags.words,
            live: Vec::new(),
            listeners,
            listeners_from_file,
            default_control: paths::default_control(environment.runtime_dir),
            otel,
        };
        if mistakes.is_empty() {
            return layers.resolve().map(|_| layers);
        }
        layers.check_addresses(&mut mistakes);
        Err(mistakes)
    }

    /// The addresses the kernel gave, in the order of the listeners: who listens on port 0 gets
    /// settings of single ports by the port it really has.
    pub fn bound(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        for (listener, address) in self.listeners.iter_mut().zip(addresses) {
            listener.listen = address;
        }
        self
    }

    /// What holds now.
    pub fn resolve(&self) -> Result<Config, Mistakes> {
        let mut mistakes = Mistakes::default();
        if self.listeners.is_empty() && self.capture().is_none() {
            mistakes.add("listen", None, "", "is missing: say where to listen and where the application is, such as `--listen 0.0.0.0:8080=127.0.0.1:3000`, or have traffic captured with `--capture [::]:15801`");
        }
        self.check_addresses(&mut mistakes);
        self.check_ports(&mut mistakes);
        self.check_modes(&mut mistakes);
        mistakes.into_result()?;
        Ok(self.build())
    }

    /// Change settings while the gateway runs: keys as in the file (`limit`, `limit.8080`), and the
    /// value `default` takes an earlier live change back.
    pub fn set_live(&self, changes: BTreeMap<String, String>) -> Result<(Self, Config), Mistakes> {
        let mut mistakes = Mistakes::default();
        let mut changed = self.clone();
        // Bare keys first: they replace what was said live about single ports before.
        let (single, all): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|(key, _)| key.contains('.'));
        for (name, text) in all.into_iter().chain(single) {
            let Some((key, port)) = words::live_key(&name, &text, &mut mistakes) else {
                continue;
            };
            changed.live.retain(|word| word.key != key || port.is_some() && word.port != port);
            if text != "default" {
                changed.live.extend(Word::parse(key, port, text, Origin::Live, &mut mistakes));
            }
        }
        mistakes.into_result()?;
        let config = changed.resolve()?;
        Ok((changed, config))
    }

    /// Read the file again; everything else stays. Settings that need a restart may not differ.
    pub fn reread_file(&self) -> Result<(Self, Config), Mistakes> {
        let mut mistakes = Mistakes::default();
        let mut changed = self.clone();
        if let Some(path) = &self.path {
            let file = file::read(path, &mut mistakes);
            changed.file = file.words;
            if self.listeners_from_file && mistakes.is_empty() {
                let same = file
                    .listen
                    .iter()
                    .map(|text| (&text.address, &text.app))
                    .eq(self.listeners.iter().map(|l| (&l.listen_text, &l.app_text)));
                if !same {
                    let origin = Origin::File { path: path.clone(), line: None };
                    mistakes.add("listen", None, origin, "has changed, and needs a restart");
                }
            }
        }
        self.refuse_restarts(&changed, &mut mistakes);
        mistakes.into_result()?;
        let config = changed.resolve()?;
        Ok((changed, config))
    }
}
