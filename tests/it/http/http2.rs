//! A client that speaks HTTP/2 with prior knowledge, through the `h2` crate.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;

use crate::support::SOON;
use crate::support::Stopwatch;

use super::client::{Answer, next_id};

/// One connection; a task of its own drives it.
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
}

/// Runs a test's conversation, with a bound.
#[track_caller]
pub(crate) fn block_on<T>(conversation: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let bounded = async { tokio::time::timeout(12 * SOON, conversation).await };
    local.block_on(&runtime, bounded).expect("the conversation comes to an end")
}

/// Looks again and again until `condition` holds, while the connections go on.
pub(crate) async fn until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let start = Stopwatch::start();
    while !condition() {
        assert!(!start.is_past(bound), "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await; // between two looks
    }
}

impl Http2 {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).await.expect("the gateway speaks HTTP/2")
    }

    pub(crate) async fn try_connect(to: SocketAddr) -> Result<Self, h2::Error> {
        let stream = TcpStream::connect(to).await.map_err(|_| h2::Reason::CONNECT_ERROR)?;
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 22);
        let (send, connection) = builder.handshake(stream).await?;
        tokio::task::spawn_local(connection);
        Ok(Self { send })
    }

    /// Opens a stream; `end` says that nothing follows the head.
    pub(crate) async fn open(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut request = Request::builder().method(method).uri(format!("http://app{path}"));
        if !headers.iter().any(|(name, _)| *name == "x-id") {
            request = request.header("x-id", next_id());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut ready = self.send.clone().ready().await?;
        ready.send_request(request, end)
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let (response, _) = self.open("GET", path, headers, true).await.expect("a stream");
        answer(response).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub(crate) async fn post(&mut self, path: &str, body: &[u8]) -> Answer {
        let opened = self.open("POST", path, &[], false).await;
        let (response, mut send) = opened.expect("a stream");
        let upload = upload(&mut send, body);
        let (_, answer) = tokio::join!(upload, answer(response));
        answer.unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }
}

/// Sends a whole body and END_STREAM.
pub(crate) async fn upload(send: &mut SendStream<Bytes>, body: &[u8]) -> Result<(), h2::Error> {
    let mut rest = Bytes::copy_from_slice(body);
    while !rest.is_empty() {
        send.reserve_capacity(rest.len());
        let granted = std::future::poll_fn(|context| send.poll_capacity(context)).await;
        let granted = granted.unwrap_or(Err(h2::Reason::CANCEL.into()))?;
        send.send_data(rest.split_to(granted.min(rest.len())), false)?;
    }
    send.send_data(Bytes::new(), true)
}

/// Head, body and trailers of an answer.
pub(crate) async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (mut answer, body) = head(response).await?;
    match body {
        Some(body) => {
            rest(&mut answer, body).await?;
        }
        None => answer.trailers = answer.headers.clone(), // trailers-only
    }
    Ok(answer)
}

/// The head; no body when the head ended the stream.
pub(crate) async fn head(
    response: ResponseFuture,
) -> Result<(Answer, Option<RecvStream>), h2::Error> {
    let response = response.await?;
    let (parts, body) = response.into_parts();
    let headers = fields(&parts.headers);
    let answer = Answer { status: parts.status.as_u16(), headers, ..Answer::default() };
    let body = (!body.is_end_stream()).then_some(body);
    Ok((answer, body))
}

/// The rest of an answer whose head has been read.
pub(crate) async fn rest(answer: &mut Answer, mut body: RecvStream) -> Result<(), h2::Error> {
    while let Some(part) = body.data().await {
        let part = part?;
        answer.body.extend_from_slice(&part);
        body.flow_control().release_capacity(part.len())?;
    }
    let trailers = body.trailers().await?;
    answer.trailers = trailers.map(|trailers| fields(&trailers)).unwrap_or_default();
    Ok(())
}

fn fields(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let fields = headers.iter().map(|(name, value)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    fields.collect()
}
