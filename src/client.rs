//! The commands that talk to a gateway: `drain`, `set`, `status`, `explain`. HTTP/1 over the control socket,
//! or over the admin address for reading.

mod table;
mod terminal;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{MissedTickBehavior, timeout};

use crate::admin::{explain, story};
use terminal::{Watcher, Wish};

pub use watch::Screen;

/// Where a gateway is asked.
#[derive(Clone, Debug)]
pub enum Target {
    /// Its control socket.
    Control(PathBuf),
    /// Its admin address.
    Admin(SocketAddr),
}

/// Why there is no answer, for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A control socket is for its owner alone.
    #[error("the control socket {} is not for uid {}{}: {source}. Run this as the gateway's own user, or as root", .path.display(), .uid, Owner(.path))]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// Who asked.
        uid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("no gateway answers at {0}: {1}. Is it running? Name its place with {flag}", flag = .0.flag())]
    Unreachable(Target, io::Error),
    /// Nobody of those that were asked.
    #[error("no gateway answers. Is it running? Name its place with --admin or --control. Tried:\n  {}", .0.join("\n  "))]
    Nobody(Vec<String>),
    /// It listens, but does not answer.
    #[error("the gateway at {0} did not answer within {1:?}")]
    Timeout(Target, Duration),
    /// It went away in the middle.
    #[error("the gateway at {0} broke off: {1}")]
    Broken(Target, hyper::Error),
    /// Something else lives there.
    #[error("what answers at {0} is not a gateway: {1}")]
    Foreign(Target, String),
    /// It said no.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
}

/// Whose socket it is, or its directory where that cannot be entered.
struct Owner<'a>(&'a Path);

/// A gateway answers from memory; one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer: a connection list of a hundred thousand.
const MAX_ANSWER: usize = 32 << 20;

impl Target {
    const fn flag(&self) -> &'static str {
        match self {
            Self::Control(_) => "--control",
            Self::Admin(_) => "--admin",
        }
    }

    /// Ask, and read the JSON answer; an answer that says no is an error.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        patience: Option<Duration>,
    ) -> Result<Value, ClientError> {
        let answer = async {
            match self {
                Self::Control(socket) => match UnixStream::connect(socket).await {
                    Ok(stream) => self.exchange(stream, method, path, body).await,
                    Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                        let uid = rustix::process::geteuid().as_raw();
                        Err(ClientError::Forbidden { path: socket.clone(), uid, source })
                    }
                    Err(error) => Err(ClientError::Unreachable(self.clone(), error)),
                },
                Self::Admin(address) => match TcpStream::connect(address).await {
                    Ok(stream) => self.exchange(stream, method, path, body).await,
                    Err(error) => Err(ClientError::Unreachable(self.clone(), error)),
                },
            }
        };
        match patience {
            None => answer.await,
            Some(limit) => timeout(limit, answer)
                .await
                .unwrap_or_else(|_| Err(ClientError::Timeout(self.clone(), limit))),
        }
    }

    async fn exchange<S>(
        &self,
        stream: S,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error| ClientError::Broken(self.clone(), error);
        let foreign = |what: String| ClientError::Foreign(self.clone(), what);
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let host = match self {
            Self::Control(_) => "localhost".to_owned(),
            Self::Admin(address) => address.to_string(),
        };
        let payload = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(payload)))
            .map_err(|error| foreign(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|error| foreign(error.to_string()))?.to_bytes();
        let value: Option<Value> = serde_json::from_slice(&body).ok();
        match (status.is_success(), value) {
            (true, Some(value)) => Ok(value),
            (false, Some(value)) if value["mistakes"].is_array() => {
                Err(ClientError::Refused(strings(&value["mistakes"])))
            }
            (false, _) if status != StatusCode::NOT_FOUND => {
                let said = String::from_utf8_lossy(&body[..body.len().min(200)]);
                Err(foreign(format!("it said {status}: {}", story::visible(said.trim()))))
            }
            _ => Err(foreign(format!("it said {status}"))),
        }
    }
}

/// `tidegate drain`: the report's text if it was waited for.
pub async fn drain(
    control: &Path,
    wait: bool,
    limit: Option<Duration>,
) -> Result<String, ClientError> {
    let target = Target::Control(control.to_owned());
    let work = async {
        let answer = target.ask(Method::POST, "/drain", &Value::Null, Some(PATIENCE)).await?;
        if !wait {
            let phase = answer["phase"].as_str().unwrap_or_default();
            let news = if answer["started"] == true { "started" } else { "was already wanted" };
            return Ok(format!("the drain {news}; the gateway is {phase}"));
        }
        let report = target.ask(Method::GET, "/drain/wait", &Value::Null, None).await?;
        Ok(serde_json::to_string_pretty(&report).unwrap_or_default())
    };
    match limit {
        None => work.await,
        Some(limit) => timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(ClientError::Timeout(target.clone(), limit))),
    }
}

/// `tidegate set`: what was applied.
pub async fn set(control: &Path, changes: &[String]) -> Result<Vec<String>, ClientError> {
    let mut map = BTreeMap::new();
    let mut mistakes = Vec::new();
    for change in changes {
        match change.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                if map.insert(key, value).is_some() {
                    mistakes.push(format!("{key} is given twice"));
                }
            }
            _ => mistakes.push(format!("{change:?} must be KEY=VALUE such as limit=8")),
        }
    }
    if !mistakes.is_empty() {
        return Err(ClientError::Refused(mistakes));
    }
    let target = Target::Control(control.to_owned());
    let answer = target.ask(Method::POST, "/set", &json!(map), Some(PATIENCE)).await?;
    Ok(strings(&answer["applied"]))
}

/// The status from the first target that answers.
pub async fn status(targets: &[Target]) -> Result<Value, ClientError> {
    first_answer(targets, "/status.json", |status| status["ports"].is_array()).await
}

/// `tidegate explain`: what is known of a request or connection, or what was refused last, as it is
/// printed.
pub async fn explain(
    targets: &[Target],
    id: Option<&str>,
    last: u64,
    json: bool,
) -> Result<String, ClientError> {
    let path = match id {
        Some(id) => format!("/explain/{}", encoded(id)),
        None => format!("/explain?last={last}"),
    };
    let part = if id.is_some() { "sentences" } else { "recent" };
    let known = first_answer(targets, &path, |known| known[part].is_array()).await?;
    Ok(match (json, id) {
        (true, _) => format!("{known}\n"),
        (false, Some(_)) => explain::plain(&known),
        (false, None) => explain::list(&known),
    })
}

/// A name as a part of a path. What is kept of one is shorter, also where it is spelled out.
fn encoded(name: &str) -> String {
    const ENOUGH: usize = 512;
    let name = &name[..name.floor_char_boundary(ENOUGH)];
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    let part = |byte: u8| match plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(part).collect()
}

/// The answer of the first target that is a gateway.
async fn first_answer(
    targets: &[Target],
    path: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<Value, ClientError> {
    let mut errors = Vec::new();
    for target in targets {
        match target.ask(Method::GET, path, &Value::Null, Some(PATIENCE)).await {
            Ok(answer) if is_it(&answer) => return Ok(answer),
            Ok(_) => {
                let what = "its answer lacks what a gateway's has".into();
                errors.push(ClientError::Foreign(target.clone(), what));
            }
            // It is a gateway, and it knows nothing of it: nobody else is asked.
            Err(refused @ ClientError::Refused(_)) => return Err(refused),
            Err(error) => errors.push(error),
        }
    }
    match errors.pop() {
        Some(only) if errors.is_empty() => Err(only),
        last => Err(ClientError::Nobody(errors.iter().chain(&last).map(brief).collect())),
    }
}

/// An error among others, which share its advice.
fn brief(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable(target, why) => format!("{target}: {why}"),
        other => other.to_string(),
    }
}

/// `tidegate status --watch`: the status every second, until q or Ctrl-C, or until nobody reads it.
pub async fn watch(
    targets: &[Target],
    json: bool,
    screen: Screen,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut watcher = Watcher::new(screen.terminal && !json)?;
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut problem) = (Value::Null, None);
    loop {
        let look = async {
            every.tick().await;
            status(targets).await
        };
        // Whoever wants to leave does not wait for a gateway that does not answer.
        tokio::select! {
            looked = look => match looked {
                Ok(status) => (last, problem) = (status, None),
                Err(error) => problem = Some(error.to_string()),
            },
            wish = watcher.wish() => match wish {
                Wish::End => return Ok(()),
                Wish::Redraw if screen.terminal && !json => {}
                Wish::Redraw => continue,
            },
        }
        let shown = match &problem {
            Some(problem) if json => show(&json!({ "problem": problem }), true),
            None if json => show(&last, true),
            _ => watch::frame(&last, problem.as_deref(), &screen.measured(), SystemTime::now()),
        };
        match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
            // A reader that has left, such as `head`, has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
}

/// The status as it is printed.
pub fn show(status: &Value, json: bool) -> String {
    if json { format!("{status}\n") } else { table::plain(status) }
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), story::visible)).collect()
}

impl ClientError {
    /// The gateway has gone, goes, or takes longer than it was given: not the fault of who asked.
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::Unreachable(..) | Self::Broken(..) | Self::Timeout(..))
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.ancestors().find_map(|path| std::fs::metadata(path).ok());
        known.map_or(Ok(()), |of| write!(f, ", but for uid {}", of.uid()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(path) => write!(f, "{}", path.display()),
            Self::Admin(address) => write!(f, "{address}"),
        }
    }
}
