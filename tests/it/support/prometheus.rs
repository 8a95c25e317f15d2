//! A real Prometheus, promtool, and a scraper of our own.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::server::Server;
use super::{SOON, until};
use crate::http::client::Http1;

/// The package.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One scrape: the content type and the page.
pub(crate) fn scrape(from: SocketAddr, accept: &str) -> (String, String) {
    let mut client = Http1::connect(from);
    client.ask("/metrics", &format!("Accept: {accept}\r\nConnection: close\r\n"));
    let answer = client.answer().expect("a page");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").expect("it has a type").to_owned();
    (kind, answer.text())
}

/// Runs promtool on `input`; it has to find nothing to say against it.
#[track_caller]
pub(crate) fn promtool(words: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(words).current_dir(root());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {words:?}: {said}");
    // What it only advises it says and succeeds.
    assert!(input.is_empty() || said.trim().is_empty(), "promtool {words:?}: {said}");
}

/// A Prometheus with the rules of this file that scrapes each target under the name of its job.
pub(crate) fn start(rules: &str, targets: &[(&str, SocketAddr)]) -> Server {
    let prometheus = Server::start(|dir, port| {
        let rules: PathBuf = root().join(rules);
        let mut config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\nscrape_configs:\n",
            rules.display()
        );
        for (job, target) in targets {
            writeln!(config, "- job_name: {job}\n  static_configs: [{{targets: ['{target}']}}]")
                .expect("a String takes everything");
        }
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, config).expect("writes");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command
    });
    let to = prometheus.address().parse().expect("an address");
    until("Prometheus is ready", SOON, || Http1::connect(to).get("/-/ready").status == 200);
    prometheus
}

pub(crate) fn get(prometheus: &Server, path: &str) -> Value {
    let to = prometheus.address().parse().expect("an address");
    let answer = Http1::connect(to).get(path);
    let json: Value = serde_json::from_str(&answer.text()).expect("Prometheus speaks JSON");
    assert_eq!(json["status"], "success", "{path}: {json}");
    json
}

/// The values that answer a query now.
pub(crate) fn ask(prometheus: &Server, query: &str) -> Vec<f64> {
    let mut path = "/api/v1/query?query=".to_owned();
    for byte in query.bytes() {
        write!(path, "%{byte:02X}").expect("a String takes everything");
    }
    let json = get(prometheus, &path);
    let series = json["data"]["result"].as_array().cloned().unwrap_or_default();
    let value = |series: &Value| series["value"][1].as_str().and_then(|v| v.parse().ok());
    series.iter().map(|series| value(series).expect("a vector")).collect()
}

/// Stands between Prometheus and the gateway and asks in the words it was given: which format Prometheus
/// prefers cannot be told to every version.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn start(from: SocketAddr, accept: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().take_while(|_| !ended.load(Ordering::Relaxed)) {
                let _ = client.and_then(|client| relay(client, from, accept)); // it asks again
            }
        });
        Self { address, over }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address); // wakes it
    }
}

fn relay(mut client: TcpStream, from: SocketAddr, accept: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    let (kind, page) = scrape(from, accept);
    let length = page.len();
    write!(
        client,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{page}"
    )
}
