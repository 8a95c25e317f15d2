//! Serving the faces: bounded connections, and nobody who is slow keeps others waiting.
//!
//! Each face keeps at most [`MAX_CONNECTIONS`]; one more closes the oldest, so that a probe is
//! answered even while somebody holds connections open and says nothing. Those on which something is done
//! that takes time are not closed for it, and have bounds of their own (`patience`).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::header::{CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use super::bind::Bound;
use super::control::Control;
use super::faces::{Face, answer};
use super::gateway::Gateway;
use super::guard;
use super::history::History;
use super::patience::{Patience, Visitor};

/// A kubelet, a few scrapers and a few people; each holds one or two.
const MAX_CONNECTIONS: usize = 64;

/// A head is one packet. It also bounds how long a kept connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A scraper that keeps its connection opens a new one now and then; one who reads an answer byte
/// by byte is rid of.
const LIFETIME: Duration = Duration::from_secs(60);

/// How often somebody who outlives that because of a wait is looked after.
const LOOK: Duration = Duration::from_millis(100);

/// What an answer that is being written may still take when the gateway leaves.
const PARTING: Duration = Duration::from_secs(1);

/// How much of a body that is too large is read and thrown away, and for how long.
const SWALLOW: usize = 1024 * 1024;
const SWALLOW_TIMEOUT: Duration = Duration::from_secs(1);

/// The largest head, and the largest body: some settings.
const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 64 * 1024;

impl Bound {
    /// Serve all faces until `stop` is cancelled, then let answers that are being given end.
    /// To be called on the control plane's runtime.
    pub async fn serve(self, gateway: Arc<dyn Gateway>, stop: CancellationToken) -> io::Result<()> {
        let Self { admin, probe, metrics, control, .. } = self;
        let Control { listener: control, file } = control;
        let bound = admin.local_addr()?.ip();
        let admin = TcpListener::from_std(admin)?;
        let probe = TcpListener::from_std(probe)?;
        let metrics = TcpListener::from_std(metrics)?;
        let control = UnixListener::from_std(control)?;
        let history = Arc::<History>::default();
        let host = Host { gateway, history, bound, stop, patience: Arc::default() };
        tokio::join!(
            host.remember(),
            host.face(Face::Admin, async || from_network(admin.accept().await)),
            host.face(Face::Probe, async || from_network(probe.accept().await)),
            host.face(Face::Metrics, async || from_network(metrics.accept().await)),
            host.face(Face::Control, async || Ok((control.accept().await?.0, None))),
        );
        drop(file);
        Ok(())
    }
}

struct Host {
    gateway: Arc<dyn Gateway>,
    history: Arc<History>,
    /// Where the admin face listens.
    bound: IpAddr,
    stop: CancellationToken,
    patience: Arc<Patience>,
}

/// A connection, and where it comes from.
type Accepted<S> = io::Result<(S, Option<IpAddr>)>;

fn from_network(accepted: io::Result<(TcpStream, SocketAddr)>) -> Accepted<TcpStream> {
    accepted.map(|(stream, peer)| (stream, Some(peer.ip().to_canonical())))
}

impl Host {
    async fn remember(&self) {
        tokio::select! {
            () = self.history.keep(&*self.gateway) => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn face<S>(&self, face: Face, accept: impl AsyncFn() -> Accepted<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let mut oldest_first: VecDeque<(AbortHandle, Visitor)> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept() => accepted,
                Some(_) = tasks.join_next() => continue,
                () = self.stop.cancelled() => break,
            };
            let Ok((socket, address)) = accepted else {
                // Out of descriptors, most likely: others need them more.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            oldest_first.retain(|(task, _)| !task.is_finished());
            let idle = |(_, visitor): &(AbortHandle, Visitor)| !visitor.is_busy();
            if oldest_first.iter().filter(|each| idle(each)).count() >= MAX_CONNECTIONS
                && let Some(oldest) = oldest_first.iter().position(idle)
                && let Some((task, _)) = oldest_first.remove(oldest)
            {
                task.abort();
            }
            let visitor = Visitor::new(address, self.patience.clone());
            let task = tasks.spawn(self.connection(face, socket, visitor.clone()));
            oldest_first.push_back((task, visitor));
        }
        while tasks.join_next().await.is_some() {}
    }

    fn connection<S>(
        &self,
        face: Face,
        socket: S,
        visitor: Visitor,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (gateway, bound, stop) = (self.gateway.clone(), self.bound, self.stop.clone());
        let history = self.history.clone();
        let guest = visitor.clone();
        let service = ServiceBuilder::new()
            // What is shown is of this moment.
            .layer(SetResponseHeaderLayer::overriding(
                CACHE_CONTROL,
                HeaderValue::from_static("no-store"),
            ))
            // A browser must not take text for a script.
            .layer(SetResponseHeaderLayer::overriding(
                X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            ))
            // Settings fit; nobody may fill our memory.
            .layer(RequestBodyLimitLayer::new(MAX_BODY))
            .service(service_fn(move |request: Request<_>| {
                let (gateway, history, guest) = (gateway.clone(), history.clone(), guest.clone());
                async move {
                    let refusal = match face {
                        Face::Admin => guard::check(&request, bound),
                        Face::Probe | Face::Metrics | Face::Control => None,
                    };
                    Ok::<_, Infallible>(match refusal {
                        Some(refusal) => refusal,
                        None => {
                            type Body = tower_http::body::Limited<Incoming>;
                            answer::<Body>(face, gateway, &history, &guest, request).await
                        }
                    })
                }
            }));
        // Whoever sends too much still reads why: closing with bytes unread would reset him.
        let service = service_fn(move |mut request: Request<Incoming>| {
            let service = service.clone();
            async move {
                if request.body().size_hint().lower() > MAX_BODY as u64 {
                    swallow(request.body_mut()).await;
                }
                service.oneshot(request).await
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
        async move {
            let mut connection = std::pin::pin!(connection);
            let expired = async {
                match face {
                    // Its clients are trusted, and one may wait for a drain.
                    Face::Control => std::future::pending().await,
                    _ => tokio::time::sleep(LIFETIME).await,
                }
            };
            tokio::select! {
                _ = connection.as_mut() => return,
                () = stop.cancelled() => {}
                () = expired => {}
            }
            connection.as_mut().graceful_shutdown();
            // Whoever waits for something gets it, unless the gateway leaves before.
            let waits = async {
                while visitor.is_busy() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::select! {
                _ = connection.as_mut() => return,
                () = stop.cancelled() => {}
                () = waits => {}
            }
            let _ = tokio::time::timeout(PARTING, connection).await;
        }
    }
}

/// Read what nobody wants, within bounds.
async fn swallow(body: &mut Incoming) {
    let reading = async {
        let mut left = SWALLOW;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
        }
    };
    let _ = tokio::time::timeout(SWALLOW_TIMEOUT, reading).await;
}
