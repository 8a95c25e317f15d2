//! The way to the API server: who it is, who we are, and one question at a time.
//!
//! `kube` brings the credentials (service account or kubeconfig, TLS, a token that is read again), the
//! requests and the types. What it sends them with is put together here, because its own stack logs every
//! failure as an error, reads answers without a bound, and does not notice a peer that has fallen silent.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

/// Where the API server is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As this file says; for use by hand.
    Kubeconfig(PathBuf),
    /// As every pod can.
    InCluster {
        /// `KUBERNETES_SERVICE_HOST`
        host: String,
        /// `KUBERNETES_SERVICE_PORT`
        port: String,
        /// The directory with the token, the certificate and the namespace.
        account: PathBuf,
    },
}

/// Where a pod's service account is mounted.
pub const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there was no answer, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No way to it can be made of what we were told.
    #[error("cannot tell who the API server is: {0}")]
    NoAccess(String),
    /// Nobody answers, or the connection broke.
    #[error("cannot reach the API server: {0}")]
    Unreachable(String),
    /// No answer came in time.
    #[error("the API server does not answer")]
    Silent,
    /// It does not know our token.
    #[error("the API server does not accept the service account's token (401)")]
    Unauthorized,
    /// It knows us, and we may not.
    #[error(
        "the service account may not do this (403): it needs a Role with get, list and watch of pods; {0}"
    )]
    Forbidden(String),
    /// It is busy.
    #[error("the API server is busy (429)")]
    Busy {
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// What we have seen is too old to go on from (410).
    #[error("the API server has forgotten where we were (410)")]
    Gone,
    /// Some other refusal.
    #[error("the API server answers {0}")]
    Refused(String),
    /// A watch that ended as soon as it had begun.
    #[error("the API server ends watches at once")]
    Closed,
    /// More than anything it should ever say.
    #[error("the API server sends more than a pod can be")]
    TooLong,
    /// Not what was asked for.
    #[error("the API server's answer is not understood: {0}")]
    Strange(String),
    /// There is no such pod.
    #[error("the API server knows no pod {0}")]
    NoPod(String),
}

/// Connecting, with TLS; and the head of every answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// HTTP/2 pings: whoever answers none within both together has gone.
const PING: Duration = Duration::from_secs(10);

/// All metadata of a pod: 256 KiB of annotations, as much again of managed fields, and escapes.
pub(super) const MOST: usize = 2 << 20;

/// An explanation is short.
const MOST_WORDS: usize = 64 << 10;

impl Failure {
    /// For metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoAccess(_) => "no_access",
            Self::Unreachable(_) => "unreachable",
            Self::Silent => "silent",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::Busy { .. } => "busy",
            Self::Gone => "gone",
            Self::Refused(_) => "refused",
            Self::Closed => "closed",
            Self::TooLong => "too_long",
            Self::Strange(_) => "not_understood",
            Self::NoPod(_) => "no_pod",
        }
    }

    /// How long it asked to be left alone.
    pub(super) fn asks_for(&self) -> Option<Duration> {
        match self {
            Self::Busy { after } => *after,
            _ => None,
        }
    }

    /// The failure that a status stands for. Of the server's own words a line is kept.
    pub(super) fn of_status(code: u16, message: &str, after: Option<Duration>) -> Self {
        let words: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
        match code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden(words),
            410 => Self::Gone,
            429 => Self::Busy { after },
            _ => Self::Refused(format!("{code}: {words}")),
        }
    }
}

/// A client with what the token and the certificates are now, and the namespace of who we are.
pub(super) async fn connect(access: &Access) -> Result<(Client, String), Failure> {
    let config = match access {
        Access::Kubeconfig(path) => by_hand(path).await?,
        Access::InCluster { host, port, account } => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let uri = format!("https://{host}:{port}").parse().map_err(no_access)?;
            let read = |name: &str| {
                let path = account.join(name);
                std::fs::read_to_string(&path).map_err(|e| no_access(Unreadable(path, e)))
            };
            let mut config = kube::Config::new(uri);
            config.default_namespace = read("namespace")?.trim().to_owned();
            let trusted = account.join("ca.crt");
            // Required by kube beside the file, which is what counts.
            config.root_cert = Some(Vec::new());
            config.root_cert_file = Some(trusted);
            let token = account.join("token");
            config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
            config
        }
    };
    let namespace = config.default_namespace.clone();
    client(&config).map(|client| (client, namespace)).map_err(no_access)
}

async fn by_hand(path: &std::path::Path) -> Result<kube::Config, Failure> {
    let file = Kubeconfig::read_from(path).map_err(no_access)?;
    let options = KubeConfigOptions::default();
    let mut config =
        kube::Config::from_custom_kubeconfig(file, &options).await.map_err(no_access)?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        return Err(Failure::NoAccess(
            "a kubeconfig that runs a program for its credentials is not used; give it a token"
                .into(),
        ));
    }
    config.proxy_url = None;
    Ok(config)
}

fn client(config: &kube::Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(PATIENCE));
    tcp.set_keepalive(Some(PING));
    let tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?);
    let connector = tls.https_or_http().enable_all_versions().wrap_connector(tcp);
    let client = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_max_idle_per_host(1)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Ask; the answer is one of success, its head is here, and its body is still to come.
pub(super) async fn ask(
    client: &Client,
    request: Request<Vec<u8>>,
) -> Result<Response<Body>, Failure> {
    let sent = client.send(request.map(Body::from));
    let answer = tokio::time::timeout(PATIENCE, sent).await.map_err(|_| Failure::Silent)?;
    let answer = answer.map_err(|error| Failure::Unreachable(causes(&error)))?;
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let after = answer.headers().get(header::RETRY_AFTER);
    let after = after.and_then(|text| text.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    let body = whole(answer.into_body(), MOST_WORDS).await.unwrap_or_default();
    let message = serde_json::from_slice::<kube::core::Status>(&body).map(|status| status.message);
    Err(Failure::of_status(status.as_u16(), &message.unwrap_or_default(), after))
}

/// All of a body that is bounded.
pub(super) async fn whole(body: Body, most: usize) -> Result<Vec<u8>, Failure> {
    let collected = tokio::time::timeout(PATIENCE, Limited::new(body, most).collect());
    match collected.await.map_err(|_| Failure::Silent)? {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Failure::TooLong),
        Err(error) => Err(Failure::Unreachable(causes(&*error))),
    }
}

fn no_access(error: impl std::error::Error) -> Failure {
    Failure::NoAccess(causes(&error))
}

#[derive(Debug)]
struct Unreadable(PathBuf, std::io::Error);

impl std::error::Error for Unreadable {}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", self.0.display(), self.1)
    }
}

/// An error and what caused it, each said once.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
