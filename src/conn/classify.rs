//! Classify: what a client speaks, from its first bytes, without taking any from the kernel. A pure
//! parser ([`classify`]) and the wait for enough to decide ([`listen_to`]).
//!
//! Always true: more bytes never change a verdict; whatever hyper would serve as HTTP is not TCP
//! here, or else the way round a limit per request would be to look like something else.

use socket2::SockRef;

use crate::io::{Engine, sock};

/// What the first bytes of a client say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A request line of HTTP/1.0 or 1.1, or what can only be the beginning of a long one.
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

/// A method longer than this is none: the longest registered one has 17 letters.
const LONGEST_METHOD: usize = 32;

/// A request line that is still open here, and was one so far, is one.
const LOOK: usize = 1024;

/// Judge the first bytes of a client.
pub fn classify(bytes: &[u8]) -> Verdict {
    if bytes.starts_with(PREFACE) {
        return Verdict::Http2;
    }
    // Servers skip empty lines before a request line (RFC 9112, section 2.2).
    let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if empty == 0 && PREFACE.starts_with(bytes) {
        return Verdict::More;
    }
    request_line(&bytes[empty..], empty + LOOK)
}

/// `method SP target SP HTTP/1.x`, as far as it is there.
fn request_line(line: &[u8], most: usize) -> Verdict {
    let more = if line.len() >= most { Verdict::Http1 } else { Verdict::More };
    let is_method = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = line.iter().take_while(|byte| is_method(byte)).count();
    if method > LONGEST_METHOD {
        return Verdict::Tcp;
    }
    let Some((space, rest)) = line[method..].split_first() else { return Verdict::More };
    if method == 0 || *space != b' ' {
        return Verdict::Tcp;
    }
    let Some(first) = rest.first() else { return Verdict::More };
    let connect = line[..method] == *b"CONNECT";
    let target = rest.iter().take_while(|byte| !byte.is_ascii_control() && **byte != b' ').count();
    // Origin form, asterisk form, or absolute form, whose scheme is a letter's business.
    let begins = match first {
        b'/' | b'*' => true,
        _ => connect || is_absolute(&rest[..target]),
    };
    if !begins {
        return Verdict::Tcp;
    }
    let Some((space, version)) = rest[target..].split_first() else { return more };
    if *space != b' ' {
        return Verdict::Tcp;
    }
    const VERSION: &[u8] = b"HTTP/1.";
    let known = version.len().min(VERSION.len());
    if version[..known] != VERSION[..known] {
        return Verdict::Tcp;
    }
    if known < VERSION.len() { more } else { Verdict::Http1 }
}

/// Whether this is, or may become, `http://…` or `https://…`.
fn is_absolute(target: &[u8]) -> bool {
    [&b"http://"[..], b"https://"].into_iter().any(|scheme| {
        let known = target.len().min(scheme.len());
        target[..known].eq_ignore_ascii_case(&scheme[..known])
    })
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
            // It ended in the middle of a word.
            Verdict::Tcp | Verdict::More => Spoken::Tcp,
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
    let mut bytes = [0; LOOK + 2];
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
            (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Tcp),
            (b"GET / HT", Verdict::More),
            (b"GET ", Verdict::More),
            (b"GET ht", Verdict::More),
            (b"", Verdict::More),
            (b"GET key\r\n", Verdict::Tcp),
            (b"GET /key\r\n", Verdict::Tcp),
            (b"GET / HTTP/3", Verdict::Tcp),
            (b"EHLO mail\r\n", Verdict::Tcp),
            (b"*1\r\n$4\r\nPING\r\n", Verdict::Tcp),
            (b"\x16\x03\x01\x02\x00\x01", Verdict::Tcp),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Verdict::Tcp),
            (b"SSH-2.0-x\r\n", Verdict::Tcp),
        ] {
            assert_eq!(classify(bytes), verdict, "{:?}", bytes.escape_ascii().to_string());
        }
        let long = [b"GET /".as_slice(), &[b'a'; 2000]].concat();
        assert_eq!(classify(&long), Verdict::Http1);
    }

    proptest! {
        /// The more bytes, the more is known; what is known stays.
        #[test]
        fn more_bytes_never_change_a_verdict(
            start in prop::sample::select(vec![
                &b""[..], b"GET ", b"GET / ", b"GET / HTTP/1.", b"PRI * HTTP/2.0\r\n\r\nSM", b"\r\n",
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
            method in "[A-Z]{1,20}", target in "/[!-~]{0,40}", minor in 0..2,
        ) {
            let line = format!("{method} {target} HTTP/1.{minor}\r\n\r\n");
            for end in 1..=line.len() {
                prop_assert_ne!(classify(&line.as_bytes()[..end]), Verdict::Tcp);
            }
        }
    }
}
