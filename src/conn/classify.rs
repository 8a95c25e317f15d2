//! Classify: what a client speaks, from its first bytes, without taking any from the kernel. A pure
//! parser ([`classify`]) and the wait for enough to decide ([`listen_to`]).
//!
//! Always true: more bytes never change a verdict; whatever hyper, or a server less strict than it,
//! would serve as HTTP is not TCP here, or else the way round a limit per request would be to look like
//! something else.

use socket2::SockRef;

use super::admit::has_left;
use crate::io::{Engine, sock};

/// What the first bytes of a client say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A request line, or what can only be the beginning of a long one.
    Http1,
    /// The connection preface of HTTP/2.
    Http2,
    /// TLS, or anything else.
    Tcp,
    /// It may still be any of them.
    More,
}

/// What a client turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
    Tcp,
    /// It ended without a word.
    Nothing,
}

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What has not decided by here is what only a request line takes so long for.
const LOOK: usize = 1024;

/// Judge the first bytes of a client.
pub fn classify(bytes: &[u8]) -> Verdict {
    let bytes = &bytes[..bytes.len().min(LOOK)];
    if bytes.starts_with(PREFACE) {
        return Verdict::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::More;
    }
    match request_line(bytes) {
        Verdict::More if bytes.len() == LOOK => Verdict::Http1,
        verdict => verdict,
    }
}

/// `method target HTTP/`, as far as it is there. No more is asked of the words than servers do: of any
/// method and target, and of versions that are none, hyper says what is wrong.
fn request_line(bytes: &[u8]) -> Verdict {
    // Servers skip empty lines before it (RFC 9112, section 2.2),
    let line = past(bytes, |byte| matches!(byte, b'\r' | b'\n'));
    let is_method = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let Some(target) = word(line, is_method) else { return Verdict::Tcp };
    let is_target = |byte: u8| !byte.is_ascii_control() && byte != b' ';
    let Some(version) = word(target, is_target) else { return Verdict::Tcp };
    const VERSION: &[u8] = b"HTTP/";
    let known = version.len().min(VERSION.len());
    match version[..known].eq_ignore_ascii_case(&VERSION[..known]) {
        false => Verdict::Tcp,
        true if known < VERSION.len() => Verdict::More,
        true => Verdict::Http1,
    }
}

/// What follows a word and the space behind it; nothing yet, if it may still go on. `None`: this is no word.
fn word(bytes: &[u8], is_part: impl Fn(u8) -> bool) -> Option<&[u8]> {
    let rest = past(bytes, is_part);
    // and some of them take more than one space, and tabs for spaces (RFC 9112, section 3).
    let next = past(rest, |byte| matches!(byte, b' ' | b'\t'));
    let is_word = bytes.is_empty() || rest.len() < bytes.len();
    (is_word && (rest.is_empty() || next.len() < rest.len())).then_some(next)
}

/// The rest, from the first byte on that is none of these.
fn past(bytes: &[u8], is_one: impl Fn(u8) -> bool) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| is_one(**byte)).count()..]
}

/// Wait until the client's bytes decide. Takes nothing from the kernel, and may be dropped.
pub(super) async fn listen_to<E: Engine>(engine: &E, client: &E::Stream) -> Spoken {
    let mut seen = LowWater { socket: engine.socket(client), length: 0 };
    loop {
        engine.readable(client).await;
        let (verdict, length) = look(&seen.socket);
        return match verdict {
            Verdict::Http1 => Spoken::Http1,
            Verdict::Http2 => Spoken::Http2,
            Verdict::More if length > seen.length => {
                seen.wait_beyond(length);
                continue;
            }
            Verdict::More if length == 0 => Spoken::Nothing,
            // It ended in the middle of a word;
            Verdict::More if has_left(engine.socket(client), false) => Spoken::Tcp,
            // or the kernel has no room for more, which a client can bring about, and go on.
            Verdict::More => Spoken::Http1,
            Verdict::Tcp => Spoken::Tcp,
        };
    }
}

/// How much of a word has been seen: the socket is not to count as readable again before there is
/// more, or the end. Whoever reads it afterwards finds it as it was.
struct LowWater<'a> {
    socket: SockRef<'a>,
    length: usize,
}

impl LowWater<'_> {
    fn wait_beyond(&mut self, length: usize) {
        let _ = sock::wake_beyond(&self.socket, length);
        self.length = length;
    }
}

impl Drop for LowWater<'_> {
    fn drop(&mut self) {
        if self.length > 0 {
            let _ = sock::wake_beyond(&self.socket, 0);
        }
    }
}

/// Judge what is there now, and how much that is; 0 is the end.
fn look(socket: &SockRef<'_>) -> (Verdict, usize) {
    let mut bytes = [0; LOOK];
    let length = sock::peek(socket, &mut bytes).unwrap_or(0);
    (classify(&bytes[..length]), length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_send() {
        for (bytes, verdict) in [
            (&b"GET / HTTP/1.1\r\nHost: x\r\n"[..], Verdict::Http1),
            (b"\r\n\r\nGET / HTTP/1.0\r\n", Verdict::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Verdict::Http1),
            (b"CONNECT a:1 HTTP/1.1\r\n", Verdict::Http1),
            (b"GET HTTP://a/b HTTP/1.1\r\n", Verdict::Http1),
            (b"M-SEARCH /x HTTP/1.1\r\n", Verdict::Http1),
            (PREFACE, Verdict::Http2),
            (b"PRI * HTTP/2.0\r\n", Verdict::More),
            (b"PRI * HTTP/1.1\r\n", Verdict::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Http1),
            (b"PRI  * HTTP/2.0\r\n", Verdict::Http1),
            (b"\r\nPRI * HTTP/2.0\r\n", Verdict::Http1),
            (b"A B HTTP/1.1\r\n\r\n", Verdict::Http1),
            (b"AMETHODOFTHIRTYTHREELETTERSANDNOLESS / HTTP/1.1\r\n", Verdict::Http1),
            (b"GET  /  HTTP/1.1\r\n", Verdict::Http1),
            (b"GET\t/\tHTTP/1.1\r\n", Verdict::Http1),
            (b"GET / HTTP/2.0\r\n", Verdict::Http1),
            (b"GET / http/1.1\r\n", Verdict::Http1),
            (b"\r\r\n\nGET x:1 HTTP/1.1\r\n", Verdict::Http1),
            (b"GET / HT", Verdict::More),
            (b"GET ", Verdict::More),
            (b"GET ht", Verdict::More),
            (b"", Verdict::More),
            (b"GET key\r\n", Verdict::Tcp),
            (b"GET /key\r\n", Verdict::Tcp),
            (b"GET / HTCPCP/1.0", Verdict::Tcp),
            (b" / HTTP/1.1\r\n", Verdict::Tcp),
            (b"hello, world\n", Verdict::Tcp),
            (b"EHLO mail\r\n", Verdict::Tcp),
            (b"*1\r\n$4\r\nPING\r\n", Verdict::Tcp),
            (b"\x16\x03\x01\x02\x00\x01", Verdict::Tcp),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Verdict::Tcp),
            (b"SSH-2.0-x\r\n", Verdict::Tcp),
        ] {
            assert_eq!(classify(bytes), verdict, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    /// What can be the beginning of a request for so long is one, whatever it is made of.
    #[test]
    fn what_does_not_decide_is_http() {
        for (start, byte) in
            [("GET /", b'a'), ("", b'A'), ("", b'\n'), ("\r\n", b'\r'), ("GET ", b' ')]
        {
            let mut bytes = start.as_bytes().to_vec();
            bytes.resize(LOOK - 1, byte);
            assert_eq!(classify(&bytes), Verdict::More, "{start:?} {byte}");
            bytes.push(byte);
            assert_eq!(classify(&bytes), Verdict::Http1, "{start:?} {byte}");
            bytes.extend(b"\0");
            assert_eq!(classify(&bytes), Verdict::Http1, "{start:?} {byte}");
        }
    }

    proptest! {
        /// The more bytes, the more is known; what is known stays.
        #[test]
        fn more_bytes_never_change_a_verdict(
            start in prop::sample::select(vec![
                &b""[..], b"GET ", b"GET / ", b"GET / HTTP", b"PRI * HTTP/2.0\r\n\r\nSM", b"\r\n",
                &[b'\n'; LOOK - 32], &[b'a'; LOOK - 32],
            ]),
            rest in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let bytes = [start, &rest].concat();
            let mut known = Verdict::More;
            for end in 0..=bytes.len() {
                let verdict = classify(&bytes[..end]);
                prop_assert!(known == Verdict::More || verdict == known);
                known = verdict;
            }
        }

        /// Nobody gets past a limit per request by writing it differently: what the parser behind
        /// this one takes for a request is never TCP.
        #[test]
        fn a_request_line_that_parses_is_never_tcp(
            empty in "(\r?\n){0,600}", method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}",
            target in "[!-~\u{80}-\u{ff}]{1,40}", minor in 0..2,
        ) {
            let line = format!("{empty}{method} {target} HTTP/1.{minor}\r\n\r\n");
            for end in 1..=line.len() {
                prop_assert_ne!(classify(&line.as_bytes()[..end]), Verdict::Tcp);
            }
        }
    }
}
