//! Flags, environment and file become every module's own configuration, or one list of all mistakes.
//!
//! ```text
//! defaults < file < environment < flags < live change        each a layer of words (config/words)
//!      └────────┴────────┴──────────┴────────┴──→ resolve ──→ Config, ready for app to wire
//! ```
//!
//! In a pod more layers come between flags and live changes, and follow rules of their own (config/pod).
//!
//! Always true: a [`Config`] that exists can be used; a change is applied as a whole or not at all;
//! nothing but this module reads the environment.

mod capture;
mod check;
mod file;
mod injected;
mod listen;
mod mistake;
mod otel;
mod own;
mod paths;
mod pod;
mod resolve;
mod webhook;
mod words;

#[cfg(test)]
mod pod_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::cluster::{self, files};
use crate::{cli, conn, io, lifecycle, limit, probes, telemetry};

pub use capture::{Capture, Task, capture};
pub use mistake::{Mistake, Mistakes};
pub use paths::{admin_address, control_path, control_to_ask};
pub use pod::{
    Pair, Places, Remark, Said, Source, Trouble, of_annotations, of_annotations_file,
    of_config_file,
};
pub use webhook::{Webhook, webhook};
pub use words::Origin;

use listen::Listener;
use words::{PodTexts, Word};

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
    /// The application's own probes, which are done for the kubelet.
    pub app_probes: probes::Plan,
    /// Some container of the pod may end before a drain does.
    pub drain_partial: bool,
    /// What OpenTelemetry's variables say that is not understood; for the log.
    pub ignored: Vec<String>,
    /// Nobody is there who could correct what cannot be had here: it is done without.
    pub in_a_pod: bool,
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
    /// What the pod says, if this is one.
    pod: Option<pod::Pod>,
    /// Of the strongest layer that names any; host names are resolved once.
    listeners: Vec<Listener>,
    /// Where the listeners were named, if not in the file.
    listeners_from_file: bool,
    /// Where the control socket goes when nobody says.
    default_control: PathBuf,
    /// What OpenTelemetry's own variables say.
    otel: otel::Otel,
    /// What the injector and the pod say.
    injected: injected::Injected,
}

/// The environment of the process.
pub fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

/// The command line of the process.
pub fn arguments() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// Whether it is the name of a file, and of nothing else.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
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
        let own_pod = own::pod(&environment);
        let environment = words::of_environment(environment, &mut mistakes);
        let flags = words::of_flags(run, &mut mistakes);
        let path = run.config.clone().or(environment.config);
        let file = path.as_deref().map(|path| file::read(path, &mut mistakes)).unwrap_or_default();

        let injected = injected::Injected::new(environment.injected, flags.injected, &mut mistakes);

        let listeners_from_file = flags.listen.is_empty() && environment.listen.is_empty();
        let named = [flags.listen, environment.listen, file.listen];
        // A bad listener of a weaker layer is a mistake too, although it would not be used.
        let parsed = named.map(|texts| listen::parse_all(texts, &mut mistakes));
        let listeners = parsed.into_iter().find(|list| !list.is_empty()).unwrap_or_default();

        let texts = PodTexts::of_flags(&run.pod).or(environment.pod);
        let layers = Self {
            path,
            file: file.words,
            environment: environment.words,
            flags: flags.words,
            live: Vec::new(),
            pod: texts.is_a_pod().then(pod::Pod::default),
            listeners,
            listeners_from_file,
            default_control: paths::default_control(environment.runtime_dir),
            otel,
            injected,
        };
        if layers.in_a_pod() {
            for flag in &run.ignored {
                mistakes.add(flag, None, Origin::Flag, "is no flag of this version");
            }
            return layers.begin_in_a_pod(&texts, own_pod, mistakes);
        }
        if mistakes.is_empty() {
            return layers.resolve().map(|_| layers);
        }
        layers.check_addresses(&mut mistakes);
        Err(mistakes)
    }

    /// Only what leaves nothing to serve is an error in a pod.
    fn begin_in_a_pod(
        mut self,
        texts: &PodTexts,
        own_pod: Result<cluster::pod::Config, String>,
        mut mistakes: Mistakes,
    ) -> Result<Self, Mistakes> {
        self.drop_unserved_ports(&mut mistakes);
        let (about_listeners, others): (Vec<_>, Vec<_>) =
            mistakes.into_iter().partition(|mistake| mistake.setting == "listen");
        let about_listeners = Mistakes::from_iter(about_listeners);
        self.note_operators(others.into_iter().collect());
        about_listeners.into_result()?;

        let mut places = Places { annotations: texts.annotations.clone(), ..Places::default() };
        if let Some(directory) = &texts.namespace_config {
            places.config.push((Source::Namespace, directory.join("_all")));
            if let Some(workload) = texts.workload.as_ref().filter(|name| is_plain(name)) {
                places.config.push((Source::Workload, directory.join(workload)));
            }
        }
        if texts.watch {
            match own_pod {
                Ok(own) => places.watch = Some(own),
                Err(problem) => self.note_no_watch(problem),
            }
        }
        if let (Some(pod), Some(keys)) = (&mut self.pod, &texts.allowed) {
            pod.allow(keys);
        }
        if let Some(text) = &texts.ceilings {
            self.listen_to(Source::Ceilings, pod::of_json(text));
        }
        if let Some(text) = &texts.template_annotations {
            self.listen_to(Source::Template, pod::of_json(text));
        }
        for (source, path) in &places.config {
            self.listen_to(*source, of_config_file(&files::look(path)));
        }
        if let Some(path) = &places.annotations {
            let annotations = of_annotations_file(&files::look(path));
            let said = annotations.map(|found| of_annotations(&found.unwrap_or_default()));
            self.listen_to(Source::Annotations, said);
        }
        if let Some(pod) = &mut self.pod {
            pod.places = places;
        }
        self.resolve().map(|_| self)
    }

    /// The addresses the kernel gave, in the order of the listeners: who listens on port 0 gets
    /// settings of single ports by the port it really has.
    pub fn bound(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        for (listener, address) in self.listeners.iter_mut().zip(addresses) {
            listener.listen = address;
        }
        self.start_to_follow();
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
        if !self.in_a_pod() {
            self.check_modes(&mut mistakes);
        }
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
