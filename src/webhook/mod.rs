//! `tidegate webhook`: the API server shows it every new pod, over HTTPS, and it answers with what is to be
//! added. What a pod needs is [`inject`](crate::inject)'s to say; here is the way there and back.
//!
//! ```text
//! API server ── TLS ──→ server: seats, deadlines ──→ service: path, size ──→ review: JSON in, JSON out ──→ inject
//!                         ↑ identity: certificate and key     ↑ operator's file      both are read again when they change
//! ```
//!
//! Always true: whoever is connected, a client that is slow or sends anything whatever costs bounded memory and
//! keeps nobody from being answered; a file that cannot be used changes nothing; of a pod nothing but its name and
//! namespace is logged, of a key nothing; nothing here asks the API server for anything.

mod identity;
mod metrics;
mod reload;
pub mod review;
mod server;
mod service;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::inject::Operator;

use identity::Identity;
use metrics::Metrics;
use server::Face;

/// Where it listens, and what it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where reviews are answered.
    pub address: SocketAddr,
    /// Where the metrics are.
    pub metrics: SocketAddr,
    /// The certificate, and those between it and the CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The operator's decisions. Without: those that are built in.
    pub operator: Option<PathBuf>,
    /// How long it goes on serving after it was told to go, until the news has spread.
    pub announce: Duration,
    /// How long what is under way may take after that.
    pub parting: Duration,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files that cannot be used and addresses that cannot be listened on, one a line.
    #[error("{}", .0.join("\n"))]
    Unusable(Vec<String>),
    /// Of the runtime or the kernel.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What every connection sees.
struct Injector {
    identity: RwLock<Arc<Identity>>,
    operator: RwLock<Arc<Operator>>,
    metrics: Metrics,
    /// It was told to go.
    leaving: AtomicBool,
}

/// Serve until SIGTERM or SIGINT; the second of them means now.
pub async fn run(config: Config) -> Result<(), StartError> {
    LocalSet::new().run_until(serve(config)).await
}

async fn serve(config: Config) -> Result<(), StartError> {
    let mut mistakes = Vec::new();
    let files = reload::read(&config, &mut mistakes);
    let reviews = server::listen("address", config.address, &mut mistakes);
    let metrics = server::listen("metrics", config.metrics, &mut mistakes);
    let (Some((identity, operator, files)), Some(reviews), Some(metrics)) =
        (files, reviews, metrics)
    else {
        return Err(StartError::Unusable(mistakes));
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut told =
        async || tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} };

    tracing::info!(address = %reviews.local()?, metrics = %metrics.local()?, "answering admission reviews");
    identity.describe();
    let injector = Arc::new(Injector {
        identity: RwLock::new(Arc::new(identity)),
        operator: RwLock::new(Arc::new(operator)),
        metrics: Metrics::default(),
        leaving: AtomicBool::new(false),
    });
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let serve = |face, listener| {
        let (injector, stop, cut) = (injector.clone(), stop.clone(), cut.clone());
        spawn_local(server::serve(face, listener, injector, stop, cut))
    };
    let served = [serve(Face::Reviews, reviews), serve(Face::Metrics, metrics)];
    let reloading = spawn_local(reload::keep(injector.clone(), config.clone(), files));

    told().await;
    injector.leaving.store(true, Ordering::Relaxed);
    tracing::info!(announce = ?config.announce, "told to go; still answering until the news has spread");
    let hurried = tokio::select! {
        () = tokio::time::sleep(config.announce) => false,
        () = told() => true,
    };
    stop.cancel();
    let [reviews, metrics] = served;
    let ended = async {
        let _ = reviews.await;
        let _ = metrics.await;
    };
    tokio::pin!(ended);
    tokio::select! {
        () = &mut ended, if !hurried => {}
        () = tokio::time::sleep(config.parting), if !hurried => tracing::warn!("cutting what is left"),
        () = told(), if !hurried => {}
        else => {}
    }
    cut.cancel();
    reloading.abort();
    tracing::info!(reviews = injector.metrics.reviews(), "gone");
    Ok(())
}

impl Injector {
    fn identity(&self) -> Arc<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn operator(&self) -> Arc<Operator> {
        self.operator.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Whether the API server should come here, or why not.
    fn readiness(&self) -> Result<(), String> {
        if self.is_leaving() {
            return Err("told to go".into());
        }
        self.identity().is_valid_at(SystemTime::now())
    }
}
