//! A stand-in for the API server: TLS, a bearer token, lists and watches of pods' metadata in the real wire
//! format, with bookmarks and resource versions; and every way in which a real one fails. If there is a real
//! one, this stands in front of it: it checks and fails as ever, and everything else goes to the real one.
//!
//! It is strict: whatever asks for something that a watch of one pod does not need is answered 400 and kept
//! in `breaches`, which tests expect to be empty.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::cluster::Cluster;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Nobody listens.
    Absent,
    Unauthorized,
    Forbidden,
    /// Every watch begins with 410.
    Gone,
    /// 429 with `Retry-After: 1`.
    Busy,
    /// Every connection ends after a second.
    Closing,
    /// It accepts, and no byte ever comes.
    Hung,
    /// Bytes without end, and no newline.
    Endless,
}

/// One pod and its API server. Dropping it ends it.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    real: Option<Cluster>,
    dir: tempfile::TempDir,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    namespace: String,
    pod: String,
    /// Whether there is a real one, and once it is asked, the way to it.
    real: Option<OnceCell<kube::Client>>,
    state: Mutex<State>,
    /// Changes with the fault, and ends what is open.
    fault: watch::Sender<Fault>,
    over: watch::Sender<bool>,
}

struct State {
    token: String,
    version: u64,
    metadata: Value,
    /// Version, and the line of the watch.
    history: Vec<(u64, Value)>,
    watchers: Vec<mpsc::UnboundedSender<Bytes>>,
    breaches: Vec<String>,
    lists: usize,
    watches: usize,
    /// Every version that somebody was told: others can go on from those.
    told: BTreeSet<u64>,
    /// From which version the last watch went on.
    resumed: Option<u64>,
}

const NAMESPACE: &str = "shop";
const POD: &str = "shop-7d9f-x2x5v";
const LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const WATCH: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

impl ApiServer {
    /// With one pod.
    pub(crate) fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into())
    }

    /// The same, at an address of this machine.
    pub(crate) fn start_at(ip: IpAddr) -> Self {
        let real = Cluster::from_env();
        let (namespace, pod) = match &real {
            Some(real) => (real.namespace.clone(), real.pod.clone()),
            None => (NAMESPACE.to_owned(), POD.to_owned()),
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tls = certificates(dir.path());
        let listener = std::net::TcpListener::bind((ip, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let metadata = json!({
            "name": pod, "namespace": namespace, "uid": "7d1f2c80-0000-4000-8000-000000000001",
            "resourceVersion": "100", "annotations": {}, "creationTimestamp": "2026-11-22T20:00:00Z",
            "managedFields": [{ "manager": "kubectl", "operation": "Update", "fieldsV1": { "f:metadata": {} } }],
        });
        let shared = Arc::new(Shared {
            namespace,
            pod,
            real: real.is_some().then(OnceCell::new),
            state: Mutex::new(State {
                token: "first".into(),
                version: 100,
                metadata,
                history: Vec::new(),
                watchers: Vec::new(),
                breaches: Vec::new(),
                lists: 0,
                watches: 0,
                told: BTreeSet::from([100]),
                resumed: None,
            }),
            fault: watch::Sender::new(Fault::Nothing),
            over: watch::Sender::new(false),
        });
        std::fs::write(dir.path().join("token"), "first").expect("written");
        std::fs::write(dir.path().join("namespace"), &shared.namespace).expect("written");
        let served = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serve(served, listener, tls));
        });
        let server = Self { shared, real, dir, address, thread: Some(thread) };
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{ "name": "test", "context": {
                "cluster": "test", "user": "test", "namespace": server.shared.namespace } }],
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{address}"),
                "certificate-authority": server.file("ca.crt") } }],
            "users": [{ "name": "test", "user": { "tokenFile": server.file("token") } }],
        });
        std::fs::write(server.file("kubeconfig"), kubeconfig.to_string()).expect("written");
        server
    }

    /// `ca.crt`, `token`, `namespace`, `kubeconfig`: a service account's files, and one for use by hand.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The pod's name.
    pub(crate) fn pod(&self) -> &str {
        &self.shared.pod
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection, and from now on fails in this way.
    pub(crate) fn fail(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// The pod's annotations are these.
    pub(crate) fn annotate(&self, annotations: &BTreeMap<String, String>) {
        if let Some(real) = &self.real {
            return real.annotate(annotations);
        }
        self.shared.change("MODIFIED", |metadata| metadata["annotations"] = json!(annotations));
    }

    /// The pod is being deleted, and has so many seconds.
    pub(crate) fn delete(&self, grace: u32) {
        if let Some(real) = &self.real {
            return real.delete(grace);
        }
        self.shared.change("MODIFIED", |metadata| {
            let end = k8s_openapi::jiff::Timestamp::now()
                + k8s_openapi::jiff::SignedDuration::from_secs(grace.into());
            metadata["deletionTimestamp"] = json!(end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            metadata["deletionGracePeriodSeconds"] = json!(grace);
        });
    }

    /// From now on only this token is known; whoever has it reads it from the file.
    pub(crate) fn rotate(&self, token: &str) {
        let new = self.file("token.new");
        std::fs::write(&new, token).expect("written");
        std::fs::rename(new, self.file("token")).expect("renamed");
        self.shared.lock().token = token.to_owned();
    }

    /// The time of every watch is up, and it ends as it should; then the annotations are these. Answers how far
    /// the watches have come.
    pub(crate) fn end_watches(&self, annotations: &BTreeMap<String, String>) -> u64 {
        assert!(self.real.is_none(), "the real one ends them when it likes");
        let far = {
            let mut state = self.shared.lock();
            state.watchers.clear();
            state.version
        };
        self.annotate(annotations);
        far
    }

    /// From which version the last watch went on.
    pub(crate) fn resumed(&self) -> Option<u64> {
        self.shared.lock().resumed
    }

    /// Whether a real one stands behind it.
    pub(crate) fn is_real(&self) -> bool {
        self.real.is_some()
    }

    /// How often it was asked: lists and watches.
    pub(crate) fn asked(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.lists, state.watches)
    }

    /// What nobody should have asked.
    pub(crate) fn breaches(&self) -> Vec<String> {
        self.shared.lock().breaches.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.over.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A certificate authority, and a certificate of ours.
fn certificates(dir: &Path) -> Arc<ServerConfig> {
    let mut authority = CertificateParams::new(Vec::new()).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(authority, key).expect("signed");
    std::fs::write(dir.join("ca.crt"), authority.pem()).expect("written");
    let key = KeyPair::generate().expect("a key");
    let ours =
        CertificateParams::new(["127.0.0.1", "::1", "localhost"].map(String::from)).expect("names");
    let ours = ours.signed_by(&key, &authority).expect("signed");
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![ours.der().clone()], key).expect("they fit");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, tls: Arc<ServerConfig>) {
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let mut listener = Some(TcpListener::from_std(listener).expect("a socket"));
    let (mut fault, mut over) = (shared.fault.subscribe(), shared.over.subscribe());
    let acceptor = TlsAcceptor::from(tls);
    let mut bookmarks = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = over.changed() => return,
            _ = bookmarks.tick() => shared.bookmark(),
            _ = fault.changed() => {
                let absent = *fault.borrow_and_update() == Fault::Absent;
                if absent {
                    listener = None;
                } else if listener.is_none() {
                    let socket = match address {
                        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
                        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
                    };
                    let socket = socket.expect("a socket");
                    socket.set_reuseaddr(true).expect("a socket");
                    socket.bind(address).expect("our own port");
                    listener = Some(socket.listen(64).expect("a socket"));
                }
            }
            accepted = accept(listener.as_ref()) => {
                if let Ok((stream, _)) = accepted {
                    tokio::spawn(connection(shared.clone(), stream, acceptor.clone()));
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// One connection, until it ends or the fault changes.
async fn connection(shared: Arc<Shared>, stream: TcpStream, acceptor: TlsAcceptor) {
    let mut fault = shared.fault.subscribe();
    let now = *fault.borrow_and_update();
    let stream = Freezable { stream, fault: shared.fault.subscribe(), thaw: None };
    let conversation = async {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let service = service_fn(move |request| {
            let shared = shared.clone();
            async move {
                Ok::<_, Infallible>(match shared.answer(&request) {
                    Some(answer) => answer,
                    None => shared.pass_on(&request).await,
                })
            }
        });
        let stream = TokioIo::new(stream);
        let _ = if http2 {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.serve_connection(stream, service).await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
        };
    };
    let end = async {
        if now == Fault::Closing {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return;
        }
        // Who hangs is not gone: what was open thaws again.
        let mut was = now;
        while fault.changed().await.is_ok() {
            let next = *fault.borrow_and_update();
            if next != Fault::Hung && was != Fault::Hung {
                return;
            }
            was = next;
        }
    };
    tokio::select! { () = conversation => {} () = end => {} }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, event: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        change(&mut state.metadata);
        state.metadata["resourceVersion"] = json!(version.to_string());
        let line = json!({ "type": event, "object": object(&state.metadata) });
        state.tell(&line);
        state.told.insert(version);
        state.history.push((version, line));
    }

    /// Other pods have changed meanwhile, which is all that a bookmark says.
    fn bookmark(&self) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        state.told.insert(version);
        let version = version.to_string();
        let object = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": { "resourceVersion": version, "creationTimestamp": null } });
        state.tell(&json!({ "type": "BOOKMARK", "object": object }));
    }

    /// `None`: the real one is to be asked.
    fn answer(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let fault = *self.fault.borrow();
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let query = request.uri().query().unwrap_or_default().split('&');
        let query: BTreeMap<_, _> = query.filter_map(|pair| pair.split_once('=')).collect();
        let mut state = self.lock();
        match fault {
            Fault::Forbidden => {
                return Some(status(403, "pods is forbidden: User cannot list resource"));
            }
            Fault::Busy => {
                let mut busy = status(429, "the server has received too many requests");
                busy.headers_mut().insert("retry-after", "1".parse().expect("a number"));
                return Some(busy);
            }
            _ => {}
        }
        let known = header("authorization") == Some(&format!("Bearer {}", state.token));
        if fault == Fault::Unauthorized || !known {
            return Some(status(401, "Unauthorized"));
        }
        let watching = query.get("watch") == Some(&"true");
        if let Err(breach) = self.check(request, &query, watching, &state.told) {
            state.breaches.push(format!("{breach}: {} {}", request.method(), request.uri()));
            return Some(status(400, &breach));
        }
        if watching {
            state.watches += 1
        } else {
            state.lists += 1
        }
        Some(match (fault, watching) {
            (Fault::Endless, _) => ok(Body::Endless),
            (Fault::Gone, true) => {
                let gone = json!({ "type": "ERROR", "object": status_object(410, "too old resource version") });
                ok(Body::Whole(Some(format!("{gone}\n").into())))
            }
            _ if self.real.is_some() => return None,
            (_, true) => {
                let from: u64 = query["resourceVersion"].parse().unwrap_or_default();
                state.resumed = Some(from);
                let (tell, lines) = mpsc::unbounded_channel();
                for (_, line) in state.history.iter().filter(|(version, _)| *version > from) {
                    let _ = tell.send(format!("{line}\n").into());
                }
                state.watchers.push(tell);
                ok(Body::Watch(lines))
            }
            (_, false) => {
                let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": { "resourceVersion": state.version.to_string() },
                    "items": [{ "metadata": state.metadata }] });
                ok(Body::Whole(Some(list.to_string().into())))
            }
        })
    }

    /// What the real one answers.
    async fn pass_on(&self, request: &Request<Incoming>) -> Response<Body> {
        let connect = || async { kube::Client::try_default().await.expect("a cluster") };
        let client = self.real.as_ref().expect("there is one").get_or_init(connect).await;
        let what = request.uri().path_and_query().expect("checked").as_str();
        let asked = Request::get(what).header("accept", &request.headers()["accept"]);
        let asked = asked.body(kube::client::Body::empty()).expect("well-formed");
        match client.send(asked).await {
            Ok(answer) => answer.map(|body| Body::Real(Box::new(body))),
            Err(error) => panic!("the real API server: {error}"),
        }
    }

    /// What a watch of one pod's metadata asks, and nothing else.
    fn check(
        &self,
        request: &Request<Incoming>,
        query: &BTreeMap<&str, &str>,
        watching: bool,
        told: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let expect = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let accept = request.headers().get("accept").and_then(|value| value.to_str().ok());
        expect(request.method() == "GET", "only GET")?;
        expect(request.uri().path() == path, "only our namespace's pods")?;
        expect(accept == Some(if watching { WATCH } else { LIST }), "only metadata")?;
        let selector = format!("metadata.name%3D{}", self.pod);
        expect(query.get("fieldSelector") == Some(&selector.as_str()), "only one pod")?;
        if !watching {
            return expect(query.len() == 1, "a list needs no more than its selector");
        }
        let timeout = query.get("timeoutSeconds").and_then(|text| text.parse::<u32>().ok());
        expect(timeout.is_some_and(|seconds| (1..=290).contains(&seconds)), "a watch ends")?;
        expect(query.get("allowWatchBookmarks") == Some(&"true"), "a watch wants bookmarks")?;
        let version = query.get("resourceVersion").and_then(|text| text.parse::<u64>().ok());
        let known = version.is_some_and(|version| told.contains(&version) || self.real.is_some());
        expect(known, "a watch goes on from what it was told")?;
        expect(query.len() == 5, "a watch needs no more")
    }
}

impl State {
    fn tell(&mut self, line: &Value) {
        let line = Bytes::from(format!("{line}\n"));
        self.watchers.retain(|watcher| watcher.send(line.clone()).is_ok());
    }
}

fn object(metadata: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
}

fn status_object(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Test", "code": code })
}

fn status(code: u16, message: &str) -> Response<Body> {
    let body = Body::Whole(Some(status_object(code, message).to_string().into()));
    let code = StatusCode::from_u16(code).expect("a status");
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(body).expect("well-formed")
}

fn ok(body: Body) -> Response<Body> {
    let response = Response::builder().header("content-type", "application/json");
    response.body(body).expect("well-formed")
}

enum Body {
    Whole(Option<Bytes>),
    Watch(mpsc::UnboundedReceiver<Bytes>),
    Endless,
    Real(Box<kube::client::Body>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |bytes| Ok(Frame::data(bytes));
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(frame)),
            Self::Watch(lines) => lines.poll_recv(cx).map(|line| line.map(frame)),
            Self::Endless => Poll::Ready(Some(frame(Bytes::from_static(&[b' '; 16 << 10])))),
            // One that breaks off ends.
            Self::Real(body) => Pin::new(body).poll_frame(cx).map(|next| next?.ok().map(Ok)),
        }
    }
}

/// A connection on which nothing moves while the server hangs.
struct Freezable {
    stream: TcpStream,
    fault: watch::Receiver<Fault>,
    /// When to look again.
    thaw: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Freezable {
    fn is_frozen(&mut self, cx: &mut Context<'_>) -> bool {
        if *self.fault.borrow() != Fault::Hung {
            self.thaw = None;
            return false;
        }
        loop {
            let look = || Box::pin(tokio::time::sleep(Duration::from_millis(20)));
            if self.thaw.get_or_insert_with(look).as_mut().poll(cx).is_pending() {
                return true;
            }
            self.thaw = None;
        }
    }
}

impl AsyncRead for Freezable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_frozen(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Freezable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_frozen(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
