//! Unheard: requests whose head came to nothing, so that the stack has never seen them. hyper has
//! answered them (400, 414, 431), or they came too slowly (408). They are counted and written down
//! like what the screen turns away, as `not_served`; having no id, they are known by the number of
//! their connection.
//!
//! HTTP/1 only. On HTTP/2 such a head is an affair of its stream, and the h2 crate keeps it to itself: it
//! answers 431 to one that is too long and resets one that is malformed, inside the poll that brings
//! the next request, and goes on. Neither that poll's result nor hyper's connection, which is all that
//! we hold, says so; and what it writes is compressed by its own table. Those streams have no metric.

use std::time::Instant;

use http::{Method, Request, Response, StatusCode, Uri};

use super::account;
use super::wire::Head;
use super::{Client, End};
use crate::conn::report::Told;
use crate::io::Engine;

/// What the conventions of OpenTelemetry call a method that nobody knows.
const UNKNOWN_METHOD: &[u8] = b"_OTHER";

/// In place of a path that cannot be read.
const UNKNOWN_PATH: &str = "*";

/// What hyper has told the client before it ended the connection because of a head.
pub fn answered(error: &hyper::Error) -> Option<StatusCode> {
    // To the preface of HTTP/2 after requests of HTTP/1 it says nothing.
    if !error.is_parse() || error.is_parse_version_h2() {
        return None;
    }
    Some(match error.is_parse_too_large() {
        false => StatusCode::BAD_REQUEST,
        // It tells these two apart in nothing but its words.
        true if error.to_string().starts_with("URI") => StatusCode::URI_TOO_LONG,
        true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    })
}

impl<E: Engine> Client<E> {
    /// If the connection ends because of a head: write down what its client was, or is about to be,
    /// told. `read`: what of the head is here.
    pub(super) fn note_unheard(&self, end: End, read: &[u8]) {
        let status = match end {
            End::Unheard(status) => status,
            End::SlowHead if self.line.has_spoken() => StatusCode::REQUEST_TIMEOUT,
            _ => return,
        };
        let since = match self.line.head() {
            Head::Since(since) => since,
            Head::Busy | Head::Idle(_) => Instant::now(),
        };
        let mut request = first_line(read);
        let line = account::open(self, &mut request, Some(since));
        let mut response = Response::new(());
        *response.status_mut() = status;
        let told = Told { status: status.as_u16(), grpc_status: None, retry_after: None };
        self.not_served(&request, since, &response, told);
        if let Some(line) = line {
            line.answered(status);
        }
    }
}

/// What a head's first line says, as far as it came and can be read.
fn first_line(head: &[u8]) -> Request<()> {
    let mut lines = head.split(|byte| matches!(byte, b'\r' | b'\n'));
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().and_then(|word| Method::from_bytes(word).ok());
    let uri = words.next().and_then(|word| Uri::try_from(word).ok());
    let mut request = Request::new(());
    *request.method_mut() =
        method.unwrap_or_else(|| Method::from_bytes(UNKNOWN_METHOD).expect("a token"));
    *request.uri_mut() = uri.unwrap_or_else(|| Uri::from_static(UNKNOWN_PATH));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_read_as_far_as_it_came() {
        for (head, method, path) in [
            ("GET /a?b HTTP/1.1\r\nBad Field: x\r\n\r\n", "GET", "/a"),
            ("\r\nPUT /long", "PUT", "/long"),
            ("GET", "GET", "*"),
            ("G(T / HTTP/1.1\r\n\r\n", "_OTHER", "/"),
            ("GET /\u{1} HTTP/1.1\r\n\r\n", "GET", "*"),
            ("", "_OTHER", "*"),
        ] {
            let request = first_line(head.as_bytes());
            assert_eq!((request.method().as_str(), request.uri().path()), (method, path), "{head}");
        }
    }
}
