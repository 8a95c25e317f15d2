//! What the sidecar asks for and may use, so that the pod stays what it was to scheduler, quotas and limits.
//!
//! Always true:
//! - the pod's class of service stays: BestEffort says nothing, Guaranteed asks for all it may use;
//! - the sidecar names a limit of CPU only where every container of the pod has one: then a quota may want
//!   it; a gateway that is throttled delays everybody behind it;
//! - what LimitRanges say of containers is kept, as far as we are told of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, LimitRangeItem};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::{Value, json};

use super::annotations::Wishes;
use super::operator::Operator;
use super::quantity::Quantity;
use super::seen::Seen;

/// What one kind of resource is asked for, and how much of it may be used.
struct Share {
    request: Quantity,
    limit: Option<Quantity>,
}

type Amounts = Option<BTreeMap<String, Text>>;

/// The sidecar's resources. The error says why there are none that the namespace would admit.
pub(super) fn of(
    seen: &Seen,
    wishes: &Wishes,
    defaults: &Wishes,
    operator: &Operator,
    ranges: &[LimitRangeItem],
) -> Result<Value, String> {
    let said = |container: &Container| amounts(container).next().is_some();
    let pod_level = seen.spec.resources.as_ref();
    let of_pod = pod_level.is_some_and(|all| present(&all.requests) || present(&all.limits));
    if of_pod || !seen.all().any(said) {
        return Ok(json!({}));
    }
    let built_in = &operator.resources;
    let chosen = |wish: &Option<Quantity>, default: &Option<Quantity>, operators: &str| {
        let operators = || Quantity::parse(operators).expect("operators' quantities are checked");
        wish.clone().or(default.clone()).unwrap_or_else(operators)
    };
    let asked = |wish: &Option<Quantity>| wish.is_some();
    let guaranteed = guaranteed(seen);
    let share = |name: &str| {
        let (request, limit) = match name {
            "cpu" => (
                chosen(&wishes.cpu_request, &defaults.cpu_request, &built_in.requests.cpu),
                chosen(&wishes.cpu_limit, &defaults.cpu_limit, &built_in.limits.cpu),
            ),
            _ => (
                chosen(&wishes.memory_request, &defaults.memory_request, &built_in.requests.memory),
                chosen(&wishes.memory_limit, &defaults.memory_limit, &built_in.limits.memory),
            ),
        };
        let wished = if name == "cpu" { &wishes.cpu_request } else { &wishes.memory_request };
        // Who asks for more than the usual limit means it.
        let limit = if limit < request && asked(wished) { request.clone() } else { limit };
        let request = if request > limit || guaranteed { limit.clone() } else { request };
        let limited =
            name == "memory" || seen.all().all(|container| limit_of(container, name).is_some());
        Share { request, limit: limited.then_some(limit) }
    };
    let mut resources = json!({});
    for name in ["cpu", "memory"] {
        let mut share = share(name);
        for range in ranges.iter().filter(|range| range.type_ == "Container") {
            within(&mut share, name, range, guaranteed);
        }
        for range in ranges.iter().filter(|range| range.type_ == "Pod") {
            fits(seen, &share, name, range)?;
        }
        resources["requests"][name] = share.request.as_str().into();
        if let Some(limit) = share.limit {
            resources["limits"][name] = limit.as_str().into();
        }
    }
    Ok(resources)
}

/// Whether every container asks for all that it may use, so that the sidecar has to do the same.
pub(super) fn guaranteed(seen: &Seen) -> bool {
    seen.all().all(is_guaranteed)
}

/// What a container says of the resources that classes of service are about.
fn amounts(container: &Container) -> impl Iterator<Item = &Text> {
    let of = |all: &'static str| {
        let resources = container.resources.as_ref();
        let list = resources
            .and_then(|r| if all == "limits" { r.limits.as_ref() } else { r.requests.as_ref() });
        list.into_iter().flatten().filter(|(name, _)| is_counted(name)).map(|(_, amount)| amount)
    };
    of("limits").chain(of("requests"))
}

fn is_counted(name: &str) -> bool {
    name == "cpu" || name == "memory"
}

fn present(amounts: &Amounts) -> bool {
    amounts.iter().flatten().any(|(name, _)| is_counted(name))
}

fn limit_of(container: &Container, name: &str) -> Option<Quantity> {
    let amount = container.resources.as_ref()?.limits.as_ref()?.get(name)?;
    Quantity::parse(&amount.0)
}

/// Who says only how much he may use asks for that.
fn request_of(container: &Container, name: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let amount = resources.requests.as_ref().and_then(|all| all.get(name));
    amount.and_then(|amount| Quantity::parse(&amount.0)).or_else(|| limit_of(container, name))
}

fn is_guaranteed(container: &Container) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let limit = limit_of(container, name);
        let request = request_of(container, name);
        limit.is_some_and(|limit| request.is_some_and(|r| r.billionths() == limit.billionths()))
    })
}

fn within(share: &mut Share, name: &str, range: &LimitRangeItem, guaranteed: bool) {
    let bound = |all: &Amounts| Quantity::parse(&all.as_ref()?.get(name)?.0);
    if let Some(max) = bound(&range.max) {
        share.limit = share.limit.take().map(|limit| if limit > max { max.clone() } else { limit });
        if share.request > max {
            share.request = max;
        }
    }
    if let Some(min) = bound(&range.min).filter(|min| share.request < *min) {
        share.request = min;
    }
    let Some(limit) = &mut share.limit else { return };
    if *limit < share.request {
        *limit = share.request.clone();
    }
    if let Some(ratio) = bound(&range.max_limit_request_ratio)
        && limit.times(&share.request) > ratio.billionths()
    {
        share.request = limit.divided(&ratio, name == "cpu");
    }
    if guaranteed {
        share.request = limit.clone();
    }
}

/// The pod and its sidecar together have to stay within what a whole pod may have.
fn fits(seen: &Seen, share: &Share, name: &str, range: &LimitRangeItem) -> Result<(), String> {
    let Some(max) = range.max.as_ref().and_then(|all| Quantity::parse(&all.get(name)?.0)) else {
        return Ok(());
    };
    let kept_running =
        |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let running = seen.spec.containers.iter().chain(seen.init().iter().filter(kept_running));
    let used: i128 =
        running.filter_map(|container| limit_of(container, name)).map(|l| l.billionths()).sum();
    let ours = share.limit.as_ref().unwrap_or(&share.request);
    if used + ours.billionths() <= max.billionths() {
        return Ok(());
    }
    Err(format!(
        "the namespace's LimitRange lets a pod have {max} of {name}, and with the sidecar's {ours} it would have more: \
         lower the application's limits, or set {}sidecar-{name}-limit",
        super::annotations::PREFIX
    ))
}
