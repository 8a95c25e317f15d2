//! `tidegate demo`: an application that can carry little, a load in three acts, and what the gateway
//! makes of it. Everything is on loopback in this process, on ports the kernel chooses; the gateway
//! is built from flags by the same code as `tidegate run`.
//!
//! ```text
//! load ──────────────────────────→ application      calm, surge           without
//! load ──→ gateway (--limit 8 …) ──→ application    calm, surge, drain    with
//! ```
//!
//! Always true: no number shown is chosen here. What clients saw is counted by the clients, what the
//! application had at once by the application, and what the drain did by the gateway.

mod application;
mod load;
mod screen;
mod summary;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::app::DataPlane;
use crate::config::Layers;
use crate::io::listen;
use crate::lifecycle::{self, Cause, Lifecycle, Report};
use crate::{cli, settings};

use application::Application;
use load::Load;
use screen::{FIXED_SPACE, Screen};
use summary::{Act, Played, Summary};

/// How a demo ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was seen, and the gateway kept its promises.
    Kept,
    /// Everything was seen, and it did not; the reader has been told.
    Broken,
    /// Ctrl-C.
    Interrupted,
}

/// Requests a second, as a share of what the application can carry.
const CALM: f64 = 0.5;
const SURGE: f64 = 6.0;
/// In the last act the queue is to be full, but not most of the clients refused.
const DRAIN: f64 = 2.0;

/// How long clients go on coming when the gateway has gone.
const AFTERWARDS: Duration = Duration::from_millis(100);

/// As many at once as the application has workers.
const LIMIT: usize = application::WORKERS;
/// One more round of work to wait for: served clients then wait about as long as the work takes.
const QUEUE: usize = application::WORKERS;

/// The gateway under test.
struct Gateway {
    plane: Arc<DataPlane>,
    life: Lifecycle,
    drain: lifecycle::Config,
}

/// Play the whole demo.
pub fn run(args: &cli::Demo) -> anyhow::Result<End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let screen = Screen::new(args.json);
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            end = play(args, &screen) => end,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                screen.leave();
                Ok(End::Interrupted)
            }
        }
    })
}

/// Both runs, and what they come to.
async fn play(args: &cli::Demo, screen: &Screen) -> anyhow::Result<End> {
    let length = Duration::from_secs(args.seconds);
    screen.open(
        &gateway_flags(&args.engine).map(|(key, value)| format!("--{key}{FIXED_SPACE}{value}")),
    );

    let bare = Application::start().context("cannot start the application")?;
    let calm = act(screen, Act::Calm, None, &bare, CALM, tokio::time::sleep(length)).await;
    let surge = act(screen, Act::Surge, None, &bare, SURGE, tokio::time::sleep(length)).await;
    let mut acts = vec![calm, surge];
    drop(bare);

    let application = Application::start().context("cannot start the application")?;
    let gateway = Gateway::start(application.address(), &args.engine)?;
    let with = Some(&gateway);
    acts.push(act(screen, Act::Calm, with, &application, CALM, tokio::time::sleep(length)).await);
    acts.push(act(screen, Act::Surge, with, &application, SURGE, tokio::time::sleep(length)).await);
    let drained = gateway.drain_after(length / 3);
    let mut report = None;
    let drain = async {
        report = Some(drained.await);
        // A few find nobody there any more.
        tokio::time::sleep(AFTERWARDS).await;
    };
    acts.push(act(screen, Act::Drain, with, &application, DRAIN, drain).await);
    let report = report.context("the last act ends with the drain")??;

    let (engine, reason) = (gateway.plane.engine_name(), gateway.plane.engine_reason().to_owned());
    let refused = gateway.refused();
    let summary = Summary { engine, reason, limit: LIMIT, acts, report, refused };
    screen.close(&summary);
    Ok(if summary.broken().is_empty() { End::Kept } else { End::Broken })
}

/// One act: a steady stream of clients until `end`, and everybody who came seen off.
async fn act(
    screen: &Screen,
    act: Act,
    gateway: Option<&Gateway>,
    application: &Application,
    share: f64,
    end: impl Future<Output = ()>,
) -> Played {
    let to = gateway.map_or(application.address(), Gateway::address);
    let load = Load::new(to);
    application.begin_act();
    let came = {
        let clients = load.run(share * application::CAPACITY, end);
        let progress = screen.follow(act, gateway.is_some(), &load, application);
        tokio::pin!(clients, progress);
        tokio::select! {
            came = &mut clients => came,
            never = &mut progress => match never {},
        }
    };
    screen.last(act, gateway.is_some(), &load, application);
    Played {
        act,
        gateway: gateway.is_some(),
        came,
        seen: load.into_seen(),
        app: application.seen(),
    }
}

/// What somebody would type after `tidegate run --listen …`.
fn gateway_flags(engine: &str) -> [(&'static str, String); 7] {
    [
        ("protocol", "http".into()),
        ("limit", LIMIT.to_string()),
        ("queue-length", QUEUE.to_string()),
        ("queue-timeout", "250ms".into()),
        // Short, because here nobody has to hear of it but this process.
        ("drain-delay", "300ms".into()),
        ("grace", "5s".into()),
        ("engine", engine.into()),
    ]
}

impl Gateway {
    fn start(application: SocketAddr, engine: &str) -> anyhow::Result<Self> {
        let flags = gateway_flags(engine).map(|(name, value)| {
            (settings::find(name).expect("every flag of the demo is in the table"), value.into())
        });
        let typed = cli::Run {
            listen: vec![format!("127.0.0.1:0={application}").into()],
            settings: cli::Settings(flags.into()),
            ..cli::Run::default()
        };
        // Nobody's environment: the demo is to show the same everywhere.
        let config = Layers::from_cli(&typed, [])
            .and_then(|layers| layers.resolve())
            .map_err(|mistakes| anyhow!("{mistakes}"))?;
        let sockets = config.ports.iter().map(|port| listen::open(port.listen));
        let sockets =
            sockets.collect::<Result<Vec<_>, _>>().context("cannot listen on loopback")?;
        let life = Lifecycle::new(config.drain.grace);
        let plane = Arc::new(DataPlane::start(&config, sockets, Vec::new(), &life, None)?);
        life.serving();
        Ok(Self { plane, life, drain: config.drain })
    }

    fn address(&self) -> SocketAddr {
        self.plane.ports()[0].listen
    }

    /// Ask for a drain after `delay`; the answer is what it reports.
    fn drain_after(&self, delay: Duration) -> JoinHandle<Report> {
        let (plane, life, config) = (self.plane.clone(), self.life.clone(), self.drain.clone());
        let ask = self.life.clone();
        spawn_local(async move {
            tokio::time::sleep(delay).await;
            ask.drain(Cause::Request);
        });
        spawn_local(async move { life.run_drain(|| config.clone(), &*plane).await })
    }

    /// Clients the gateway turned away while they were still there to see it.
    fn refused(&self) -> u64 {
        let ports = self.plane.ports();
        let counts = ports[0].metrics.refused();
        counts.filter(|(reason, _)| !reason.is_its_clients()).map(|(_, n)| n).sum()
    }
}
