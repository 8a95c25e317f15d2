//! HTTP/1 at the application, by hand: it must not share a parser with what it judges. It is strict;
//! whatever it does not understand is a `400` in its books.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::exchange::{Exchange, Length, Wire};
use super::oracle::{Books, Entry, Head};
use super::scripts;

pub(crate) struct Connection {
    stream: TcpStream,
    unread: BytesMut,
    /// What is still to come of the request's body.
    body: Body,
    pub(crate) trailers: Vec<(String, String)>,
    /// How the answer's body ends.
    length: Length,
    /// HEAD: an answer without a body.
    head_only: bool,
    /// No further request on this connection.
    pub(crate) close: bool,
    /// The client waits for `100 Continue`.
    expects: bool,
}

enum Body {
    Left(u64),
    Chunked,
}

pub(crate) async fn converse(stream: TcpStream, number: usize, books: Arc<Books>) {
    let mut connection = Connection {
        stream,
        unread: BytesMut::new(),
        body: Body::Left(0),
        trailers: Vec::new(),
        length: Length::ToClose,
        head_only: false,
        close: false,
        expects: false,
    };
    while let Ok(Some(head)) = connection.request().await {
        let entry = books.enter(number, head);
        let mut exchange = Exchange { entry, wire: Wire::One(&mut connection) };
        let mut end = scripts::play(&mut exchange).await;
        if end.is_ok() && !connection_closes(&exchange) {
            while let Ok(Some(_)) = exchange.receive().await {} // what the script left unread
        }
        if connection_closes(&exchange) && end.is_ok() {
            end = shutdown(&mut exchange).await;
        }
        let over = end.is_err() || connection_closes(&exchange);
        exchange.entry.note(|seen| seen.end = Some(end.map_err(|error| error.kind())));
        if over {
            return;
        }
    }
}

fn connection_closes(exchange: &Exchange<'_>) -> bool {
    matches!(&exchange.wire, Wire::One(connection) if connection.close)
}

async fn shutdown(exchange: &mut Exchange<'_>) -> io::Result<()> {
    match &mut exchange.wire {
        Wire::One(connection) => connection.stream.shutdown().await,
        Wire::Two(_) => Ok(()),
    }
}

impl Connection {
    /// The next head; `None` when the connection has ended before one began.
    async fn request(&mut self) -> io::Result<Option<Head>> {
        let end = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if self.more().await? == 0 {
                return Ok(None);
            }
        };
        let head = self.unread.split_to(end + 4);
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let version = if words.next() == Some("HTTP/1.0") { "1.0" } else { "1.1" };
        let headers = lines.map(field).collect::<io::Result<Vec<_>>>()?;
        let value = |name: &str| {
            let found = headers.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.as_str())
        };
        self.body = match (value("transfer-encoding"), value("content-length")) {
            (Some("chunked"), None) => Body::Chunked,
            (None, Some(length)) => Body::Left(length.parse().map_err(bad)?),
            (None, None) => Body::Left(0),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let connection = value("connection").unwrap_or_default().to_ascii_lowercase();
        self.close = connection.contains("close")
            || (version == "1.0" && !connection.contains("keep-alive"));
        self.head_only = method == "HEAD";
        self.expects = value("expect").is_some_and(|value| value == "100-continue");
        Ok(Some(Head { method: method.to_owned(), path: path.to_owned(), version, headers }))
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.unread.reserve(65_536);
        self.stream.read_buf(&mut self.unread).await
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = self.unread.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub(crate) async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        if std::mem::take(&mut self.expects) && self.unread.is_empty() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if matches!(self.body, Body::Left(0)) {
            return Ok(None);
        }
        let Body::Left(left) = self.body else {
            return self.chunk().await;
        };
        if self.unread.is_empty() && self.more().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let part = self.unread.split_to(self.unread.len().min(left as usize));
        self.body = Body::Left(left - part.len() as u64);
        Ok(Some(part.freeze()))
    }

    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        let line = self.line().await?;
        let digits = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(digits.trim(), 16).map_err(bad)?;
        if size == 0 {
            loop {
                let line = self.line().await?;
                if line.is_empty() {
                    break;
                }
                self.trailers.push(field(&line)?);
            }
            self.body = Body::Left(0);
            return Ok(None);
        }
        while self.unread.len() < size + 2 {
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let part = self.unread.split_to(size).freeze();
        self.unread.advance(2);
        Ok(Some(part))
    }

    pub(crate) async fn head(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        length: Length,
    ) -> io::Result<()> {
        self.length = length;
        let mut text = format!("HTTP/1.1 {status} Status\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &match length {
            Length::Known(_) if status == 204 || status == 304 => String::new(),
            Length::Known(length) => format!("content-length: {length}\r\n"),
            Length::Unknown => "transfer-encoding: chunked\r\ntrailer: x-sum\r\n".to_owned(),
            Length::ToClose => String::new(),
        };
        if self.close {
            text += "connection: close\r\n";
        }
        self.stream.write_all((text + "\r\n").as_bytes()).await
    }

    pub(crate) async fn hints(&mut self) -> io::Result<()> {
        self.stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </style>\r\n\r\n").await
    }

    pub(crate) async fn part(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.head_only || bytes.is_empty() {
            return Ok(());
        }
        if self.length == Length::Unknown {
            let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
            chunk.extend_from_slice(bytes);
            chunk.extend_from_slice(b"\r\n");
            return self.stream.write_all(&chunk).await;
        }
        self.stream.write_all(bytes).await
    }

    pub(crate) async fn last(&mut self, bytes: &[u8], trailers: &[(&str, &str)]) -> io::Result<()> {
        self.part(bytes).await?;
        if self.length != Length::Unknown || self.head_only {
            return Ok(());
        }
        let trailers = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let end = format!("0\r\n{}\r\n", trailers.collect::<String>());
        self.stream.write_all(end.as_bytes()).await
    }

    pub(crate) async fn tunnel(&mut self, entry: &mut Entry) -> io::Result<()> {
        self.close = true;
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        self.stream.write_all(answer).await?;
        loop {
            let bytes = self.unread.split();
            entry.note(|seen| seen.body += bytes.len() as u64);
            self.stream.write_all(&bytes).await?;
            if self.more().await? == 0 {
                entry.leave();
                return Ok(());
            }
        }
    }
}

fn field(line: &str) -> io::Result<(String, String)> {
    let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
    Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn bad(_: std::num::ParseIntError) -> io::Error {
    io::ErrorKind::InvalidData.into()
}
