//! An HTTP probe, as the kubelet does it (`pkg/probe/http`): one GET on a connection of its own, a status
//! from 200 to 399, redirects followed only to the same host, and no more than ten.

use ::http::header::{ACCEPT, CONNECTION, HOST, LOCATION, REFERER, USER_AGENT};
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use super::dial;
use super::location::{Place, target};
use super::plan::HttpGet;
use super::{Finding, Target, Verdict};

/// Applications tell the kubelet's requests by this; who really asks is in the comment.
pub(super) const AGENT: &str = concat!("kube-probe/1.0 (tidegate/", env!("CARGO_PKG_VERSION"), ")");

/// As Go's client, hence the kubelet, has it.
const MOST_REQUESTS: usize = 10;

/// The kubelet reads so much of a body: an application that fails while it writes is not healthy.
const MOST_BODY: usize = 10 * 1024;

/// One answer, and the connection that its body comes on.
type Answer = (Response<Incoming>, AbortOnDropHandle<()>);

/// Ask, and judge.
pub(super) async fn get(get: &HttpGet, to: &Target) -> Result<Verdict, Verdict> {
    let mut place = Place {
        https: get.https,
        host: to.ip.to_string(),
        port: get.port,
        target: target(&get.path),
    };
    let said = get.headers.iter().filter(|(name, _)| name == HOST).map(|(_, host)| host.clone());
    let mut host = said.last();
    let mut from: Option<Place> = None;
    for _ in 0..MOST_REQUESTS {
        let headers = headers(get, from.as_ref().filter(|from| place.https || !from.https));
        let (response, connection) = exchange(&place, host.as_ref(), headers, to).await?;
        let status = response.status();
        let location = response.headers().get(LOCATION).cloned().filter(|_| leads_on(status));
        read(response.into_body()).await?;
        drop(connection);
        let Some(location) = location.filter(|location| !location.is_empty()) else {
            return Ok(judge(status));
        };
        let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
        let Some(next) = place.follow(&location) else {
            let why = format!("the application redirects to {location:?}, which leads nowhere");
            return Err(Verdict::new(Finding::Broken, why));
        };
        if next.host != place.host || to.ours.contains(&next.port) {
            let why = format!("the application answered {status}, to {location:?}");
            return Ok(Verdict::new(Finding::Healthy, why));
        }
        // A name of the specification holds as long as the application names no other host.
        if location.contains("://") {
            host = None;
        }
        from = Some(std::mem::replace(&mut place, next));
    }
    let why = format!("the application redirected {MOST_REQUESTS} times");
    Err(Verdict::new(Finding::Broken, why))
}

fn judge(status: StatusCode) -> Verdict {
    let why = format!("the application answered {status}");
    match status.as_u16() {
        200..400 => Verdict::new(Finding::Healthy, why),
        // Below 200 nothing could be answered with it.
        code => Verdict {
            status: Some(code).filter(|code| (400..600).contains(code)),
            ..Verdict::new(Finding::Unhealthy, why)
        },
    }
}

fn leads_on(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Those of the specification, and those the kubelet adds. An empty `Accept` means none.
fn headers(get: &HttpGet, referer: Option<&Place>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in get.headers.iter().filter(|(name, _)| name != HOST) {
        headers.append(name, value.clone());
    }
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    if headers.get(ACCEPT).is_some_and(HeaderValue::is_empty) {
        headers.remove(ACCEPT);
    }
    if let Some(Ok(referer)) = referer.map(|place| HeaderValue::try_from(place.url())) {
        headers.entry(REFERER).or_insert(referer);
    }
    headers
}

async fn exchange(
    place: &Place,
    host: Option<&HeaderValue>,
    headers: HeaderMap,
    to: &Target,
) -> Result<Answer, Verdict> {
    let authority = HeaderValue::try_from(place.authority()).map_err(broken)?;
    let host = host.filter(|host| !host.is_empty()).cloned().unwrap_or(authority);
    if !place.https {
        return over_http1(dial::connect(to, place.port).await?, place, host, headers).await;
    }
    let stream = dial::connect_tls(to, place.port).await?;
    match stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        true => over_http2(stream, place, &host, headers).await,
        false => over_http1(stream, place, host, headers).await,
    }
}

async fn over_http1<S>(
    stream: S,
    place: &Place,
    host: HeaderValue,
    mut headers: HeaderMap,
) -> Result<Answer, Verdict>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut client = http1::Builder::new();
    // As Go writes them: old servers look for `Host`.
    let handshake = client.title_case_headers(true).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    headers.insert(HOST, host);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut request = Request::get(&place.target).body(Empty::<Bytes>::new()).map_err(broken)?;
    *request.headers_mut() = headers;
    Ok((sender.send_request(request).await.map_err(broken)?, connection))
}

async fn over_http2<S>(
    stream: S,
    place: &Place,
    host: &HeaderValue,
    headers: HeaderMap,
) -> Result<Answer, Verdict>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let uri = format!("https://{}{}", host.to_str().map_err(broken)?, place.target);
    let mut request = Request::get(uri).body(Empty::<Bytes>::new()).map_err(broken)?;
    *request.headers_mut() = headers;
    Ok((sender.send_request(request).await.map_err(broken)?, connection))
}

/// As much of the body as counts.
async fn read(mut body: Incoming) -> Result<(), Verdict> {
    let mut length = 0;
    while length < MOST_BODY
        && let Some(frame) = body.frame().await
    {
        length += frame.map_err(broken)?.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

pub(super) fn broken(error: impl std::error::Error) -> Verdict {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Verdict::new(Finding::Broken, format!("the application broke off: {error}{cause}"))
}
