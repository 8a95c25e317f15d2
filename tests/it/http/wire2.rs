//! HTTP/2 at the application, through the `h2` crate: each stream is a request of its own.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::net::TcpStream;

use super::exchange::{Exchange, Length, Wire};
use super::oracle::{Books, Head};
use super::scripts;

pub(crate) struct Stream {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    /// HEAD: an answer without a body.
    head_only: bool,
    pub(crate) trailers: Vec<(String, String)>,
}

pub(crate) async fn converse(stream: TcpStream, number: usize, books: Arc<Books>) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 22);
    builder.max_concurrent_streams(100); // as many as most servers
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let books = Arc::clone(&books);
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let head = Head {
            method: parts.method.to_string(),
            path: path.to_owned(),
            version: "2",
            headers: fields(&parts.headers),
        };
        let head_only = head.method == "HEAD";
        let entry = books.enter(number, head);
        tokio::task::spawn_local(async move {
            let mut stream = Stream { body, respond, send: None, head_only, trailers: Vec::new() };
            let mut exchange = Exchange { entry, wire: Wire::Two(&mut stream) };
            let end = scripts::play(&mut exchange).await;
            exchange.entry.note(|seen| seen.end = Some(end.map_err(|error| error.kind())));
        });
    }
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let fields = headers.iter().map(|(name, value)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    fields.collect()
}

impl Stream {
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        let Some(part) = self.body.data().await else {
            let trailers = self.body.trailers().await.map_err(broken)?;
            self.trailers = trailers.map(|trailers| fields(&trailers)).unwrap_or_default();
            return Ok(None);
        };
        let part = part.map_err(broken)?;
        self.body.flow_control().release_capacity(part.len()).map_err(broken)?;
        Ok(Some(part))
    }

    pub(crate) async fn head(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        length: Length,
    ) -> io::Result<()> {
        let mut answer = Response::new(());
        if let (Length::Known(length), false) = (length, matches!(status, 204 | 304)) {
            answer.headers_mut().insert("content-length", length.into());
        }
        *answer.status_mut() = status.try_into().expect("a status");
        for (name, value) in headers {
            answer.headers_mut().append(header(name), value.parse().expect("a header"));
        }
        self.send = Some(self.respond.send_response(answer, false).map_err(broken)?);
        Ok(())
    }

    pub(crate) async fn part(&mut self, bytes: &[u8], end: bool) -> io::Result<()> {
        let send = self.send.as_mut().expect("the head comes first");
        if self.head_only {
            return Ok(());
        }
        let mut rest = Bytes::copy_from_slice(bytes);
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let granted = std::future::poll_fn(|context| send.poll_capacity(context)).await;
            let granted = granted.ok_or(io::ErrorKind::BrokenPipe)?.map_err(broken)?;
            let part = rest.split_to(granted.min(rest.len()));
            send.send_data(part, end && rest.is_empty()).map_err(broken)?;
        }
        Ok(())
    }

    pub(crate) async fn last(&mut self, bytes: &[u8], trailers: &[(&str, &str)]) -> io::Result<()> {
        let with_bytes = trailers.is_empty() && !bytes.is_empty() && !self.head_only;
        self.part(bytes, with_bytes).await?;
        let send = self.send.as_mut().expect("the head comes first");
        if !trailers.is_empty() {
            let pairs = trailers
                .iter()
                .map(|(name, value)| (header(name), HeaderValue::from_str(value).expect("ASCII")));
            send.send_trailers(pairs.collect()).map_err(broken)?;
        } else if !with_bytes {
            send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Ok(())
    }
}

fn header(name: &str) -> HeaderName {
    name.parse().expect("a header's name")
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_reset() {
        return io::ErrorKind::ConnectionReset.into();
    }
    error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
}
