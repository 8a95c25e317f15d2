//! Forward: send an admitted request to the application and hand its answer back. The innermost
//! service: whatever comes here has a slot.

use std::rc::Rc;

use http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming};

use super::admit::Admitted;
use super::body::{Answer, RequestBody, ResponseBody, Upload, UploadError};
use super::exchange::{Lease, Slot};
use super::refuse::{Cause, Manner, refuse};
use super::tunnel::Tunnel;
use super::upstream::Unanswered;
use super::wire::alarm;
use super::{Client, headers};
use crate::io::Engine;
use crate::outcome::{Outcome, Reason};

/// Serve one admitted request.
pub async fn forward<E: Engine>(
    client: Rc<Client<E>>,
    admitted: Admitted,
) -> Response<ResponseBody> {
    let Admitted { request, slot } = admitted;
    let manner = Manner::of(&request);
    let asks_to_switch = headers::wanted_upgrade(&request).is_some();
    match exchange(&client, request, slot).await {
        Ok((mut response, lease, key)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            if !asks_to_switch {
                lease.will_be(Outcome::AppReset);
                return say(&client, &manner, Cause::AppTalksNonsense);
            }
            let taken = client.upstream.switched(key);
            *client.tunnel.borrow_mut() = Some(Tunnel { app: taken, lease });
            headers::for_client(&mut response);
            response.map(|_| ResponseBody::EMPTY)
        }
        Ok((mut response, lease, _)) => {
            headers::for_client(&mut response);
            response.map(|body| ResponseBody::answer(Answer::new(body, lease)))
        }
        Err(cause) => say(&client, &manner, cause),
    }
}

fn say<E: Engine>(client: &Client<E>, manner: &Manner, cause: Cause) -> Response<ResponseBody> {
    refuse(client.port(), client.config.http.refuse_status, manner, cause)
}

/// Send the request by a connection of its own, by another if that had ended before it was sent.
async fn exchange<E: Engine>(
    client: &Client<E>,
    request: Request<Incoming>,
    mut slot: Slot,
) -> Result<(Response<Incoming>, Rc<Lease>, usize), Cause> {
    let upstream = &client.upstream;
    let mut request = Err(request);
    loop {
        let key = match upstream.connection(&client.config).await {
            Ok(key) => key,
            Err(reason) => {
                slot.will_be(Outcome::Refused(reason));
                return Err(Cause::Reason(reason));
            }
        };
        let lease = upstream.lease(key);
        let ready = match request {
            Err(fresh) => prepare(client, fresh, &lease),
            Ok(again) => rebind(again, &lease),
        };
        lease.begin(slot, ready.body().is_end_stream());
        match upstream.send(key, ready).await {
            Ok(response) => return Ok((response, lease, key)),
            Err(Unanswered::Unsent(unsent)) => {
                let Some(kept) = lease.take() else {
                    return Err(Cause::Reason(Reason::UpstreamRefused));
                };
                slot = kept;
                request = Ok(*unsent);
            }
            Err(Unanswered::Broken(error)) => {
                let (outcome, cause) = judge(&error);
                lease.will_be(outcome);
                return Err(cause);
            }
        }
    }
}

/// The request as it is sent, its body bound to the exchange.
fn prepare<E: Engine>(
    client: &Client<E>,
    request: Request<Incoming>,
    lease: &Rc<Lease>,
) -> Request<RequestBody> {
    let (parts, incoming) = request.into_parts();
    let body = if incoming.is_end_stream() {
        RequestBody::Empty
    } else {
        let engine = client.upstream.engine.clone();
        let alarm_at = Box::new(move |at| alarm(&engine, at));
        RequestBody::Upload(Upload::new(incoming, lease.clone(), alarm_at))
    };
    Request::from_parts(parts, body)
}

/// The same request on another connection.
fn rebind(request: Request<RequestBody>, lease: &Rc<Lease>) -> Request<RequestBody> {
    request.map(|body| match body {
        RequestBody::Empty => RequestBody::Empty,
        RequestBody::Upload(upload) => RequestBody::Upload(upload.rebind(lease.clone())),
    })
}

/// Whose fault it was that no answer came.
fn judge(error: &hyper::Error) -> (Outcome, Cause) {
    let upload = std::error::Error::source(error).and_then(|e| e.downcast_ref::<UploadError>());
    match upload {
        Some(UploadError::Slow) => (Outcome::ClientStalled, Cause::TooSlow),
        Some(UploadError::Client(_)) => (Outcome::ClientReset, Cause::Incomplete),
        None if error.is_parse() => (Outcome::AppReset, Cause::AppTalksNonsense),
        None => (Outcome::AppReset, Cause::AppBroke),
    }
}
