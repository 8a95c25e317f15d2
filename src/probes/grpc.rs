//! A gRPC probe: `grpc.health.v1.Health/Check` over HTTP/2 without TLS, as the kubelet does it.
//!
//! The two messages have a field each; by hand they are shorter than with a client of gRPC.

use std::time::Duration;

use ::http::header::{CONTENT_TYPE, TE, USER_AGENT};
use ::http::{HeaderMap, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_util::task::AbortOnDropHandle;

use super::http::{AGENT, broken};
use super::location::Place;
use super::{Finding, Target, Verdict, dial};

/// A health answer is four bytes; more than this is none.
const MOST: usize = 10 * 1024;

const SERVING: u64 = 1;
const UNIMPLEMENTED: &str = "12";

/// Ask, and judge.
pub(super) async fn check(
    to: &Target,
    port: u16,
    service: &str,
    timeout: Duration,
) -> Result<Verdict, Verdict> {
    let stream = dial::connect(to, port).await?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let path = "/grpc.health.v1.Health/Check".to_owned();
    let place = Place { https: false, host: to.ip.to_string(), port, target: path };
    let request = Request::post(place.url())
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .header("grpc-timeout", format!("{}S", timeout.as_secs()))
        .body(Full::new(Bytes::from(question(service))))
        .map_err(broken)?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let (head, mut body) = response.into_parts();
    let (mut message, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map_err(broken)?.into_data() {
            Ok(data) if message.len() + data.len() <= MOST => message.extend_from_slice(&data),
            Ok(_) => return Err(Verdict::new(Finding::Broken, "the answer is too long")),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let said = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Ok(match said("grpc-status").as_deref() {
        Some("0") => judge(answer(&message)),
        Some(UNIMPLEMENTED) => Verdict::new(
            Finding::Unhealthy,
            "the application does not implement grpc.health.v1.Health",
        ),
        Some(status) => {
            let message = said("grpc-message").unwrap_or_default();
            let why = format!("the application answered with gRPC status {status} {message:?}");
            Verdict::new(Finding::Unhealthy, why)
        }
        None => {
            let why = format!("the application answered {}, which is no gRPC", head.status);
            Verdict::new(Finding::Broken, why)
        }
    })
}

fn judge(status: Option<u64>) -> Verdict {
    const NAMES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
    let Some(status) = status else {
        return Verdict::new(Finding::Broken, "the answer is no health message");
    };
    let name = usize::try_from(status).ok().and_then(|at| NAMES.get(at).copied());
    let why = format!("the application is {}", name.unwrap_or("in no state that is known"));
    let healthy = status == SERVING;
    Verdict::new(if healthy { Finding::Healthy } else { Finding::Unhealthy }, why)
}

/// `HealthCheckRequest { string service = 1; }`, with gRPC's five bytes before it.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("a service's name is short");
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend(message);
    framed
}

/// `HealthCheckResponse { ServingStatus status = 1; }`: the status; 0 is not written.
fn answer(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    if head[0] != 0 || message.len() != length {
        return None;
    }
    let (mut rest, mut status) = (message, 0);
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = take_varint(&mut rest)?,
            // Fields of later versions.
            (_, 0) => drop(take_varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_the_message_of_the_protocol() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "x".repeat(200);
        assert_eq!(question(&long)[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    }

    #[test]
    fn the_answer_is_read_whatever_else_is_in_it() {
        assert_eq!(answer(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(answer(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(answer(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 2]), Some(2));
        for bad in [&b""[..], &[0, 0, 0, 0, 9, 8, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 8]] {
            assert_eq!(answer(bad), None, "{bad:?}");
        }
        assert_eq!(judge(Some(1)).finding, Finding::Healthy);
        assert_eq!(judge(Some(2)).finding, Finding::Unhealthy);
        assert_eq!(judge(None).finding, Finding::Broken);
    }
}
