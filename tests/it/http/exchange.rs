//! One request and its answer at the application, whichever version of HTTP carries it.

use std::io;

use bytes::Bytes;

use super::oracle::Entry;
use super::{wire1, wire2};

/// What the head of an answer says about the length of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Length {
    Known(u64),
    /// Chunked in HTTP/1.1, END_STREAM in HTTP/2.
    Unknown,
    /// HTTP/1 only: as long as the connection lasts.
    ToClose,
}

pub(crate) struct Exchange<'a> {
    pub(crate) entry: Entry,
    pub(crate) wire: Wire<'a>,
}

pub(crate) enum Wire<'a> {
    One(&'a mut wire1::Connection),
    Two(&'a mut wire2::Stream),
}

impl Exchange<'_> {
    /// Some of the request's body; `None` at its end. A body that breaks off is an error.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        let part = match &mut self.wire {
            Wire::One(wire) => wire.receive().await?,
            Wire::Two(wire) => wire.receive().await?,
        };
        let trailers = match &mut self.wire {
            Wire::One(wire) => std::mem::take(&mut wire.trailers),
            Wire::Two(wire) => std::mem::take(&mut wire.trailers),
        };
        self.entry.note(|seen| match &part {
            Some(part) => seen.body += part.len() as u64,
            None => {
                seen.whole = true;
                seen.trailers.extend(trailers);
            }
        });
        Ok(part)
    }

    /// Head of the answer, with the request's id.
    pub(crate) async fn head(&mut self, status: u16, length: Length) -> io::Result<()> {
        let seen = self.entry.seen();
        if seen.method == "HEAD" {
            self.entry.leave(); // the head is all of the answer
        }
        let mut headers = vec![("content-type", "text/plain".to_owned())];
        if seen.header("content-type").is_some_and(|kind| kind.starts_with("application/grpc")) {
            headers = vec![("content-type", "application/grpc".to_owned())];
        }
        if let Some(id) = seen.id {
            headers.push(("x-id", id.to_string()));
        }
        match &mut self.wire {
            Wire::One(wire) => wire.head(status, &headers, length).await,
            Wire::Two(wire) => wire.head(status, &headers, length).await,
        }
    }

    /// Informational 103.
    pub(crate) async fn hints(&mut self) -> io::Result<()> {
        match &mut self.wire {
            Wire::One(wire) => wire.hints().await,
            Wire::Two(_) => Ok(()), // the h2 crate does not offer it
        }
    }

    pub(crate) async fn part(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.wire {
            Wire::One(wire) => wire.part(bytes).await,
            Wire::Two(wire) => wire.part(bytes, false).await,
        }
    }

    /// The last part: counted out first, sent after.
    pub(crate) async fn last(&mut self, bytes: &[u8], trailers: &[(&str, &str)]) -> io::Result<()> {
        let seen = self.entry.seen();
        let grpc = seen.header("content-type").is_some_and(|kind| kind.contains("grpc"));
        self.entry.leave();
        match &mut self.wire {
            Wire::One(wire) => wire.last(bytes, trailers).await,
            Wire::Two(wire) if grpc => wire.last(bytes, &[("grpc-status", "0")]).await,
            Wire::Two(wire) => wire.last(bytes, trailers).await,
        }
    }

    /// Head and body in one.
    pub(crate) async fn whole(&mut self, status: u16, body: &[u8]) -> io::Result<()> {
        self.entry.leave();
        self.head(status, Length::Known(body.len() as u64)).await?;
        self.last(body, &[]).await
    }

    /// HTTP/1: this answer is the connection's last.
    pub(crate) fn closes(&mut self) {
        if let Wire::One(wire) = &mut self.wire {
            wire.close = true;
        }
    }

    /// 101, then every byte comes back until the client's end.
    pub(crate) async fn tunnel(&mut self) -> io::Result<()> {
        match &mut self.wire {
            Wire::One(wire) => wire.tunnel(&mut self.entry).await,
            Wire::Two(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}
