//! What a client is told when its request is not served: why, whose fault it was, and when to come
//! again. Codes and headers after RFC 9110 (`Retry-After`), RFC 9209 (`Proxy-Status`) and gRPC's
//! status codes and A6 (`grpc-retry-pushback-ms`).

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode, Version};

use super::body::ResponseBody;
use crate::conn::Port;
use crate::conn::report::Told;
use crate::outcome::Reason;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Nobody is sent away for longer: an estimate is not worth more.
const LONGEST: Duration = Duration::from_secs(30);

/// What can be chosen of what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses {
    /// There is no room: 503 or 429.
    pub no_room: StatusCode,
    /// It cannot be served before its deadline: 503 or 504.
    pub deadline: StatusCode,
    /// The same as `no_room`, to gRPC.
    pub grpc_no_room: GrpcStatus,
    /// On HTTP/2, what may come again is not answered: its stream is refused.
    pub resets: bool,
}

/// The statuses of gRPC that are said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatus {
    /// It was not served in time.
    DeadlineExceeded = 4,
    /// Somebody has had as much as there is.
    ResourceExhausted = 8,
    /// Nobody serves it.
    Unimplemented = 12,
    /// It is not served now.
    Unavailable = 14,
}

/// How a client wants to be spoken to.
#[derive(Clone, Debug)]
pub struct Manner {
    grpc: bool,
    http1: bool,
    accept: Option<HeaderValue>,
}

/// Why a request was not served, beyond the gate's own reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The gate's, or the way to the application.
    Reason(Reason),
    /// The application broke off before it had answered.
    AppBroke,
    /// It answered something that is not HTTP.
    AppTalksNonsense,
    /// Nothing moved for `idle-timeout`, and it had not answered.
    AppIsSilent,
    /// The client sent too slowly.
    TooSlow,
    /// The client's request did not come to its end.
    Incomplete,
    /// A request that no proxy of this kind serves.
    NotServed(StatusCode, &'static str),
}

/// What is said about one cause.
struct Words {
    status: StatusCode,
    grpc: GrpcStatus,
    error: &'static str,
    details: &'static str,
    text: &'static str,
    retry: bool,
}

impl Manner {
    /// Whether the client speaks gRPC.
    pub const fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// As the request says.
    pub fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        // Not gRPC-Web, which is another protocol and goes over HTTP/1 too.
        let grpc = |value: &HeaderValue| {
            let rest = value.as_bytes().strip_prefix(b"application/grpc");
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        };
        Self {
            grpc: headers.get(CONTENT_TYPE).is_some_and(grpc),
            http1: request.version() < Version::HTTP_2,
            accept: headers.get(ACCEPT).cloned(),
        }
    }
}

impl Cause {
    fn words(self, statuses: Statuses) -> Words {
        use GrpcStatus::{DeadlineExceeded, ResourceExhausted, Unavailable, Unimplemented};
        use StatusCode as S;
        let said = |status, grpc, error, details, text, retry| Words {
            status,
            grpc,
            error,
            details,
            text,
            retry,
        };
        let reason = match self {
            Self::Reason(reason) => reason,
            Self::AppBroke => {
                return said(
                    S::BAD_GATEWAY,
                    Unavailable,
                    "connection_terminated",
                    "",
                    "The application closed the connection before it had answered.",
                    false,
                );
            }
            Self::AppTalksNonsense => {
                return said(
                    S::BAD_GATEWAY,
                    Unavailable,
                    "http_protocol_error",
                    "",
                    "The application's answer is not HTTP.",
                    false,
                );
            }
            Self::AppIsSilent => {
                return said(
                    S::GATEWAY_TIMEOUT,
                    Unavailable,
                    "http_response_timeout",
                    "",
                    "The application did not answer, and nothing moved, for too long.",
                    false,
                );
            }
            Self::TooSlow => {
                return said(
                    S::REQUEST_TIMEOUT,
                    DeadlineExceeded,
                    "http_request_error",
                    "",
                    "The request came too slowly.",
                    false,
                );
            }
            Self::Incomplete => {
                return said(
                    S::BAD_REQUEST,
                    Unavailable,
                    "http_request_error",
                    "",
                    "The request did not come to its end.",
                    false,
                );
            }
            Self::NotServed(status, text) => {
                let details = Reason::NotServed.label();
                return said(status, Unimplemented, "http_request_error", details, text, false);
            }
        };
        let details = reason.label();
        match reason {
            Reason::LimitReached | Reason::QueueFull | Reason::MaxConnections => said(
                statuses.no_room,
                statuses.grpc_no_room,
                "connection_limit_reached",
                details,
                "The application is busy. Try again in a moment.",
                true,
            ),
            Reason::QueueTimeout => said(
                statuses.no_room,
                statuses.grpc_no_room,
                "connection_limit_reached",
                details,
                "The application was busy for longer than this request could wait.",
                true,
            ),
            Reason::PerClientLimit => said(
                S::TOO_MANY_REQUESTS,
                ResourceExhausted,
                "http_request_error",
                details,
                "This client has as many requests under way as one client may have.",
                true,
            ),
            Reason::DeadlineUnmeetable => said(
                statuses.deadline,
                DeadlineExceeded,
                "connection_limit_reached",
                details,
                "The request could not be served before its deadline.",
                false,
            ),
            Reason::Draining => said(
                S::SERVICE_UNAVAILABLE,
                Unavailable,
                "destination_unavailable",
                details,
                "This instance is going away. Another one will serve the request.",
                true,
            ),
            Reason::UpstreamTimeout => said(
                S::GATEWAY_TIMEOUT,
                Unavailable,
                "connection_timeout",
                details,
                "The application did not accept the connection in time.",
                false,
            ),
            Reason::Loop => said(
                S::BAD_GATEWAY,
                Unavailable,
                "proxy_loop_detected",
                details,
                "The application's address leads back to the gateway.",
                false,
            ),
            // It may still read, if it has only ended its own side.
            Reason::ClientGone => said(
                S::BAD_REQUEST,
                Unavailable,
                "http_request_error",
                details,
                "The client ended the connection while its request was waiting (queued-half-close).",
                false,
            ),
            Reason::UpstreamRefused | Reason::Abandoned | Reason::NotServed => said(
                S::BAD_GATEWAY,
                Unavailable,
                "connection_refused",
                details,
                "The application does not accept connections.",
                false,
            ),
        }
    }
}

/// The response for a request that is not served, and what it says.
pub fn refuse(
    port: &Port,
    statuses: Statuses,
    manner: &Manner,
    cause: Cause,
) -> (Response<ResponseBody>, Told) {
    let words = cause.words(statuses);
    let draining = cause == Cause::Reason(Reason::Draining);
    let retry = words.retry.then(|| if draining { Duration::ZERO } else { come_again(port) });
    let mut response =
        if manner.grpc { say_grpc(&words, retry) } else { say_http(cause, &words, manner, retry) };
    let headers = response.headers_mut();
    headers.insert(PROXY_STATUS, proxy_status(cause, &words));
    // A client that has left asks for nothing more, whatever it has sent; and one too many is to go.
    let last =
        draining || matches!(cause, Cause::Reason(Reason::ClientGone | Reason::MaxConnections));
    if manner.http1 && (last || port.shared.closing.is_raised()) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !manner.http1 && words.retry && statuses.resets {
        *response.body_mut() = ResponseBody::NOT_PROCESSED;
    }
    let told = Told {
        status: response.status().as_u16(),
        grpc_status: manner.grpc.then_some(words.grpc as u8),
        retry_after: retry.map(|retry| if manner.grpc { retry } else { whole_seconds(retry) }),
    };
    (response, told)
}

/// As `Retry-After` says it: rounded up.
fn whole_seconds(retry: Duration) -> Duration {
    Duration::from_secs(retry.as_secs() + u64::from(retry.subsec_nanos() > 0))
}

/// Trailers only: the status is in the head, and there is no body.
fn say_grpc(words: &Words, retry: Option<Duration>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::EMPTY);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(words.grpc as u16));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(words.text));
    if let Some(retry) = retry {
        let millis = u32::try_from(retry.as_millis()).unwrap_or(u32::MAX);
        headers.insert(GRPC_PUSHBACK, HeaderValue::from(millis));
    }
    response
}

fn say_http(
    cause: Cause,
    words: &Words,
    manner: &Manner,
    retry: Option<Duration>,
) -> Response<ResponseBody> {
    let (kind, body) = body(cause, words, manner.accept.as_ref());
    let mut response = Response::new(ResponseBody::words(body));
    *response.status_mut() = words.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(retry) = retry {
        headers.insert(RETRY_AFTER, seconds(whole_seconds(retry)));
    }
    response
}

/// A few words in the form the client likes best of those it names.
fn body(cause: Cause, words: &Words, accept: Option<&HeaderValue>) -> (&'static str, Bytes) {
    let accept = accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (status, text) = (words.status, words.text);
    let reason = if words.details.is_empty() { words.error } else { words.details };
    match preferred(accept) {
        Form::Json => (
            "application/json",
            format!(
                "{{\"status\":{},\"reason\":\"{reason}\",\"message\":\"{text}\"}}\n",
                status.as_u16()
            )
            .into(),
        ),
        Form::Html => (
            "text/html; charset=utf-8",
            format!("<!doctype html>\n<title>{status}</title>\n<h1>{status}</h1>\n<p>{text}</p>\n")
                .into(),
        ),
        Form::Plain => ("text/plain; charset=utf-8", plain(cause, words)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Html,
    Json,
}

/// What an `Accept` header asks for: the highest quality wins, then what is named first.
fn preferred(accept: &str) -> Form {
    let mut best = (0.0, Form::Plain);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let form = match parts.next().unwrap_or_default() {
            "application/json" | "application/problem+json" => Form::Json,
            "text/html" | "application/xhtml+xml" => Form::Html,
            "text/plain" => Form::Plain,
            _ => continue,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q="));
        let quality = quality.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        if quality > best.0 {
            best = (quality, form);
        }
    }
    best.1
}

// Refusals are to be cheap: what is said for each of the gate's reasons is put together once.

fn proxy_status(cause: Cause, words: &Words) -> HeaderValue {
    static BY_REASON: LazyLock<ByReason<HeaderValue>> = LazyLock::new(|| {
        by_reason(|words| {
            let text = format!("tidegate; error={}; details=\"{}\"", words.error, words.details);
            HeaderValue::try_from(text).expect("the words are ASCII")
        })
    });
    match cause {
        Cause::Reason(reason) => BY_REASON[reason as usize].clone(),
        _ => HeaderValue::try_from(format!("tidegate; error={}", words.error))
            .expect("the words are ASCII"),
    }
}

fn plain(cause: Cause, words: &Words) -> Bytes {
    static BY_REASON: LazyLock<ByReason<Bytes>> =
        LazyLock::new(|| by_reason(|words| format!("{}\n", words.text).into()));
    match cause {
        Cause::Reason(reason) => BY_REASON[reason as usize].clone(),
        _ => format!("{}\n", words.text).into(),
    }
}

/// No more of them than [`LONGEST`] has.
fn seconds(retry: Duration) -> HeaderValue {
    static NUMBERS: LazyLock<Vec<HeaderValue>> =
        LazyLock::new(|| (0..=LONGEST.as_secs()).map(HeaderValue::from).collect());
    let seconds = retry.as_secs();
    let known = usize::try_from(seconds).ok().and_then(|at| NUMBERS.get(at).cloned());
    known.unwrap_or_else(|| HeaderValue::from(seconds))
}

type ByReason<T> = [T; Reason::ALL.len()];

fn by_reason<T>(say: impl Fn(&Words) -> T) -> ByReason<T> {
    // Error, details and text are the same whatever statuses an operator has chosen.
    const ANY: Statuses = Statuses {
        no_room: StatusCode::SERVICE_UNAVAILABLE,
        deadline: StatusCode::SERVICE_UNAVAILABLE,
        grpc_no_room: GrpcStatus::Unavailable,
        resets: false,
    };
    Reason::ALL.map(|reason| say(&Cause::Reason(reason).words(ANY)))
}

/// When there may be room: as long as the queue takes at the pace of late, and up to half as long
/// again, so that those who were refused together do not come back together.
fn come_again(port: &Port) -> Duration {
    room_in(port.pace.mean(), port.gate.queued(), port.gate.limit())
}

fn room_in(mean: Option<Duration>, queued: u32, limit: u32) -> Duration {
    /// What is said before anything is known of the pace, and at least.
    const LEAST: Duration = Duration::from_millis(500);
    let turns = f64::from(queued + 1) / f64::from(limit.max(1));
    let mean = mean.unwrap_or(LEAST);
    let expected = mean.mul_f64(turns.max(1.0)).clamp(LEAST, LONGEST);
    expected.mul_f64(1.0 + jitter() / 2.0).min(LONGEST)
}

/// From 0 to 1, well spread: steps of the golden ratio (Weyl's sequence). Nothing depends on it
/// being hard to guess.
fn jitter() -> f64 {
    static STEP: AtomicU32 = AtomicU32::new(0);
    const GOLDEN: u32 = 0x9E37_79B9;
    f64::from(STEP.fetch_add(GOLDEN, Ordering::Relaxed)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_known_by_its_type() {
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let request =
                Request::builder().header(CONTENT_TYPE, kind).body(()).expect("a request");
            assert_eq!(Manner::of(&request).is_grpc(), grpc, "{kind}");
        }
    }

    #[test]
    fn the_form_is_the_one_asked_for() {
        for (accept, form) in [
            ("", Form::Plain),
            ("*/*", Form::Plain),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Form::Html),
            ("application/json", Form::Json),
            ("text/html;q=0.5, application/json", Form::Json),
            ("application/json;q=0", Form::Plain),
            ("text/plain;q=0.1, text/html;q=nonsense", Form::Plain),
        ] {
            assert_eq!(preferred(accept), form, "{accept}");
        }
    }

    #[test]
    fn each_reason_is_said_in_its_own_words() {
        let statuses = Statuses {
            no_room: StatusCode::TOO_MANY_REQUESTS,
            deadline: StatusCode::GATEWAY_TIMEOUT,
            grpc_no_room: GrpcStatus::ResourceExhausted,
            resets: false,
        };
        for reason in Reason::ALL {
            let cause = Cause::Reason(reason);
            let words = cause.words(statuses);
            let status = proxy_status(cause, &words);
            let details = format!("details=\"{}\"", reason.label());
            assert!(status.to_str().expect("ASCII").ends_with(&details), "{status:?}");
            assert_eq!(plain(cause, &words), format!("{}\n", words.text));
        }
    }

    /// features 5.6: whose fault it was, in numbers; and who is asked to come again.
    #[test]
    fn each_cause_has_its_statuses() {
        let said = |cause: Cause, chosen: bool| {
            let statuses = Statuses {
                no_room: if chosen {
                    StatusCode::TOO_MANY_REQUESTS
                } else {
                    S::SERVICE_UNAVAILABLE
                },
                deadline: if chosen { S::GATEWAY_TIMEOUT } else { S::SERVICE_UNAVAILABLE },
                grpc_no_room: if chosen {
                    GrpcStatus::ResourceExhausted
                } else {
                    GrpcStatus::Unavailable
                },
                resets: false,
            };
            let words = cause.words(statuses);
            (words.status.as_u16(), words.grpc as u8, words.retry)
        };
        use Reason as R;
        use StatusCode as S;
        for (reason, usual, chosen) in [
            (R::LimitReached, (503, 14, true), (429, 8, true)),
            (R::QueueFull, (503, 14, true), (429, 8, true)),
            (R::QueueTimeout, (503, 14, true), (429, 8, true)),
            (R::MaxConnections, (503, 14, true), (429, 8, true)),
            (R::PerClientLimit, (429, 8, true), (429, 8, true)),
            (R::DeadlineUnmeetable, (503, 4, false), (504, 4, false)),
            (R::Draining, (503, 14, true), (503, 14, true)),
            (R::UpstreamRefused, (502, 14, false), (502, 14, false)),
            (R::UpstreamTimeout, (504, 14, false), (504, 14, false)),
            (R::Loop, (502, 14, false), (502, 14, false)),
            (R::ClientGone, (400, 14, false), (400, 14, false)),
        ] {
            let cause = Cause::Reason(reason);
            assert_eq!((said(cause, false), said(cause, true)), (usual, chosen), "{reason:?}");
        }
        for (cause, usual) in [
            (Cause::AppBroke, (502, 14, false)),
            (Cause::AppTalksNonsense, (502, 14, false)),
            (Cause::AppIsSilent, (504, 14, false)),
            (Cause::TooSlow, (408, 4, false)),
            (Cause::NotServed(S::NOT_IMPLEMENTED, ""), (501, 12, false)),
        ] {
            assert_eq!((said(cause, false), said(cause, true)), (usual, usual), "{cause:?}");
        }
    }

    /// At the pace of late: as long as those before it take, and up to half as long again.
    #[test]
    fn who_comes_again_comes_when_there_may_be_room() {
        let ms = Duration::from_millis;
        for (mean, queued, limit, from, to) in [
            (None, 0, 1, ms(500), ms(750)),                  // nothing is known
            (Some(ms(10)), 3, 1, ms(500), ms(750)),          // and it is not worth less
            (Some(ms(2000)), 0, 4, ms(2000), ms(3000)),      // whoever is in takes his time
            (Some(ms(2000)), 7, 4, ms(4000), ms(6000)),      // two turns of four
            (Some(ms(2000)), 99, 4, ms(30_000), ms(30_000)), // an estimate is worth no more
            (Some(ms(1000)), 4, 0, ms(5000), ms(7500)),
        ] {
            for _ in 0..100 {
                let said = room_in(mean, queued, limit);
                assert!((from..=to).contains(&said), "{mean:?}, {queued} of {limit}: {said:?}");
            }
        }
    }

    #[test]
    fn jitter_is_spread() {
        let all: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(all.iter().all(|x| (0.0..=1.0).contains(x)));
        assert!(all.iter().filter(|x| **x < 0.5).count() > 30);
        assert!(all.iter().filter(|x| **x > 0.5).count() > 30);
    }
}
