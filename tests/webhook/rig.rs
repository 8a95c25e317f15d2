//! A webhook as a child process, the certificates it is given as the kubelet gives them, and a client that
//! checks them as an API server does.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::ByteString;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::stopwatch::Stopwatch;

/// The bound for things that have no promised time: the machine is shared.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What nobody may find in a log.
pub(crate) const SECRET: &str = "hunter2-of-the-tests";

/// The name in the certificates, as of a Service.
const NAME: &str = "tidegate.tidegate-system.svc";

/// Who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A directory as the kubelet makes of a Secret or a ConfigMap: files are links into `..data`, which is
/// a link itself and is swapped.
pub(crate) struct Mount {
    dir: tempfile::TempDir,
    generation: u32,
}

/// A running webhook. Dropping it kills it.
pub(crate) struct Webhook {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
    child: Child,
    dir: tempfile::TempDir,
}

/// An API server, which trusts some authorities.
#[derive(Clone)]
pub(crate) struct Client(Arc<ClientConfig>);

/// One of its connections.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// What it was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) closes: bool,
    pub(crate) body: Bytes,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    /// A certificate that ends with that year.
    pub(crate) fn pair(&self, until: i32) -> Pair {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 12, 31);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("signed");
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

impl Mount {
    pub(crate) fn of(pair: &Pair) -> Self {
        let mut mount = Self::empty();
        mount.show(pair);
        mount
    }

    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), generation: 0 }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn show(&mut self, pair: &Pair) {
        self.swap(&[("tls.crt", &pair.cert), ("tls.key", &pair.key)]);
    }

    /// All files at once.
    pub(crate) fn swap(&mut self, files: &[(&str, &str)]) {
        self.generation += 1;
        let name = format!("..{}", self.generation);
        let root = self.dir.path();
        fs::create_dir(root.join(&name)).expect("made");
        for (file, text) in files {
            fs::write(root.join(&name).join(file), text).expect("written");
            let link = root.join(file);
            if link.symlink_metadata().is_err() {
                symlink(Path::new("..data").join(file), link).expect("linked");
            }
        }
        symlink(&name, root.join("..data_tmp")).expect("linked");
        fs::rename(root.join("..data_tmp"), root.join("..data")).expect("swapped");
        if self.generation > 1 {
            let before = format!("..{}", self.generation - 1);
            fs::remove_dir_all(root.join(before)).expect("removed");
        }
    }
}

impl Webhook {
    #[track_caller]
    pub(crate) fn start(mount: &Mount, flags: &[&str]) -> Self {
        let (child, dir) = launch(mount, flags);
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut webhook = Self { address: local, metrics: local, child, dir };
        until("it listens", SOON, || {
            if let Some(status) = webhook.child.try_wait().expect("our child") {
                panic!("it ended with {status}:\n{}", webhook.log());
            }
            let log = webhook.log();
            let line = log.lines().find(|line| line.contains("answering admission reviews"));
            let Some(line) = line else { return false };
            let line: Value = serde_json::from_str(line).expect("JSON");
            let address = |name: &str| line[name].as_str().expect("there").parse().expect("one");
            (webhook.address, webhook.metrics) = (address("address"), address("metrics"));
            true
        });
        webhook
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        until("it ends", SOON, || {
            ended = self.child.try_wait().expect("our child");
            ended.is_some()
        });
        ended.expect("has ended")
    }

    /// A path of the address without TLS.
    #[track_caller]
    pub(crate) fn plain(&self, path: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(self.metrics).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("set");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.expect("a status"), body.to_owned())
    }

    /// The sum of a metric over the series that have `label`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        let (_, page) = self.plain("/metrics");
        let of_name = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']) && rest.contains(label))
        };
        let values = page.lines().filter(of_name).filter_map(|line| line.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
    }

    /// How many certificates or operator's files were taken over, or refused.
    pub(crate) fn reloads(&self, source: &str, result: &str) -> f64 {
        let label = format!("source=\"{source}\",result=\"{result}\"");
        self.metric("tidegate_webhook_reloads_total", &label)
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Starts it and expects it to give up by itself; answers its exit status and what it said.
#[track_caller]
pub(crate) fn start_in_vain(mount: &Mount, flags: &[&str]) -> (Option<i32>, String) {
    let (mut child, dir) = launch(mount, flags);
    let status = child.wait().expect("our child");
    (status.code(), fs::read_to_string(dir.path().join("log")).expect("text"))
}

fn launch(mount: &Mount, flags: &[&str]) -> (Child, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let log = File::create(dir.path().join("log")).expect("a file");
    let binary = std::env::var_os("TIDEGATE_BIN");
    let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_tidegate").into());
    let mut command = Command::new(binary);
    command.env_remove("TIDEGATE_BIN");
    command.args(["webhook", "--address=127.0.0.1:0", "--log-format=json"]).args(flags);
    for (flag, usual) in [("--metrics", "127.0.0.1:0"), ("--drain-delay", "0s")] {
        if !flags.iter().any(|given| given.starts_with(flag)) {
            command.arg(format!("{flag}={usual}"));
        }
    }
    for (flag, file) in [("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")] {
        command.arg(flag).arg(mount.file(file));
    }
    command.stdout(log.try_clone().expect("a second handle")).stderr(log);
    (command.spawn().expect("it starts"), dir)
}

impl Client {
    pub(crate) fn trusting(authorities: &[&Authority]) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.0.der().clone()).expect("a certificate");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("there are some")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// TLS, with one version of HTTP.
    pub(crate) async fn tls(
        &self,
        to: SocketAddr,
        alpn: &[u8],
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut config = (*self.0).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from(NAME).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) async fn http1(&self, to: SocketAddr) -> io::Result<Connection> {
        let tls = self.tls(to, b"http/1.1").await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Connection::Http1(sender))
    }

    pub(crate) async fn http2(&self, to: SocketAddr) -> io::Result<Connection> {
        let tls = self.tls(to, b"h2").await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Connection::Http2(sender))
    }
}

impl Connection {
    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<Bytes>,
    ) -> hyper::Result<Answer> {
        let request = Request::builder().method(method).header("content-type", kind);
        let body = Full::new(body.into());
        let response = match self {
            Self::Http1(sender) => {
                let request = request.uri(path).header("host", NAME).body(body).expect("sound");
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                let uri = format!("https://{NAME}{path}");
                sender.send_request(request.uri(uri).body(body).expect("sound")).await?
            }
        };
        let closes = |response: &Response<_>| {
            response.headers().get("connection").is_some_and(|value| value == "close")
        };
        let (status, closes) = (response.status().as_u16(), closes(&response));
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, closes, body })
    }

    /// Has a review answered, as an API server that gives up after a while.
    pub(crate) async fn review(&mut self, level: &str, review: &Value) -> Result<Answer, String> {
        // API servers send their patience along.
        let path = format!("/inject/{level}?timeout=5s");
        let asked = self.ask(Method::POST, &path, "application/json", review.to_string());
        match tokio::time::timeout(SOON, asked).await {
            Err(_) => Err("no answer".into()),
            Ok(Err(error)) => Err(format!("{error:?}")),
            Ok(Ok(answer)) if answer.status != 200 => Err(format!("{answer:?}")),
            Ok(Ok(answer)) => match answer.json() {
                json if json["response"]["uid"] == review["request"]["uid"] => Ok(answer),
                json => Err(json.to_string()),
            },
        }
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The pod of the review as the answer has it changed, as an API server would.
#[track_caller]
pub(crate) fn patched(review: &Value, answer: &Answer) -> Option<Value> {
    let response = &answer.json()["response"];
    let patch = response.get("patch")?;
    assert_eq!(response["patchType"], "JSONPatch");
    let ByteString(patch) = serde_json::from_value(patch.clone()).expect("base64");
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("RFC 6902");
    let mut pod = review["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).expect("it can be applied");
    Some(pod)
}

/// A review of a new pod, as an API server asks it.
pub(crate) fn review(uid: &str) -> Value {
    let user = json!({ "username": "system:serviceaccount:kube-system:replicaset-controller" });
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": uid,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "requestResource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "shop", "operation": "CREATE", "userInfo": user, "dryRun": false,
            "object": pod(), "oldObject": null, "options": { "kind": "CreateOptions" },
        },
    })
}

fn pod() -> Value {
    let env: Vec<_> = (0..40)
        .map(|n| json!({ "name": format!("PASSWORD_{n}"), "value": format!("{SECRET}-{n}") }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-6d4f5-", "labels": { "app": "web", "tidegate.dev/inject": "enabled" },
            "annotations": { "tidegate.dev/limit": "5" },
        },
        "spec": {
            "containers": [{
                "name": "web", "image": "registry.example/web:1", "env": env,
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
                "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" } },
                "volumeMounts": [{ "name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }],
            }],
            "volumes": [{ "name": "token", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } }],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "serviceAccountName": "default",
        },
    })
}

/// Waits until `condition` holds; fails the test, naming `what`, when it does not within `bound`.
#[track_caller]
pub(crate) fn until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let start = Stopwatch::start();
    while !condition() {
        assert!(!start.is_past(bound), "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(2)); // between two looks, not to synchronise
    }
}
