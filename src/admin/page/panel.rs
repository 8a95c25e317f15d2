//! One port: its numbers, what they were in the last minutes, and why it refused. And the drain.

use serde_json::Value;

use super::super::story;
use super::markup::Html;
use super::plot::{Line, Plot, Unit};
use super::{Content, details, plain};

/// What each reason means and who can change it, for those who see it for the first time.
const REASONS: [(&str, &str); 13] = [
    ("limit_reached", "at the limit, and there is no queue"),
    ("queue_full", "at the limit, and the queue is full"),
    ("queue_timeout", "waited for queue-timeout and no slot came free"),
    ("client_gone", "the client left while it waited"),
    ("draining", "the gateway is going away"),
    ("per_client_limit", "one client has as much as one may have"),
    ("deadline_unmeetable", "could not have been served before its deadline"),
    ("max_connections", "the gateway holds as many connections as it may"),
    ("loop", "would have come back to the gateway itself"),
    ("abandoned", "the client left and the application did not finish"),
    ("upstream_refused", "the application refused or could not be reached"),
    ("upstream_timeout", "the application did not answer within connect-timeout"),
    ("not_served", "no request that a proxy serves: CONNECT, a wrong Host, a head that is none"),
];

/// A drain under way.
pub(super) fn drain(html: &mut Html, status: &Value) {
    let draining = &status["draining"];
    if !draining.is_object() {
        return;
    }
    let number = |key: &str| draining[key].as_u64().unwrap_or(0);
    let seconds = |key: &str| draining[key].as_f64().unwrap_or(0.0);
    let left = number("left");
    // Everything there was, or came since, either ended or is left.
    let done = number("finished") + number("refused");
    let all = (done + left).max(1);
    let (passed, rest) = (seconds("seconds"), seconds("cut_in_seconds"));
    html.tag("section", &[("class", &"drain"), ("aria-labelledby", &"drain")], |html| {
        html.leaf("h2", &[("id", &"drain")], "Drain");
        bar(html, "Work", done, all, &format!("{done} of {} ended, {left} left", done + left));
        let time = format!("{} passed, cut in {}", whole(passed), whole(rest));
        bar(html, "Time", (passed * 10.0) as u64, ((passed + rest) * 10.0).max(1.0) as u64, &time);
        html.tag("dl", &[("class", &"facts")], |html| {
            for (key, what) in [
                ("cause", "asked for by"),
                ("in_flight_at_start", "in flight at start"),
                ("queued_at_start", "waited at start"),
                ("late_arrivals", "came since"),
                ("finished", "finished since"),
                ("refused", "refused since"),
            ] {
                html.tag("div", &[], |html| {
                    html.leaf("dt", &[], what);
                    html.leaf("dd", &[("data-is", &key)], plain(&draining[key]));
                });
            }
        });
    });
}

fn bar(html: &mut Html, label: &'static str, value: u64, max: u64, text: &str) {
    html.tag("p", &[("class", &"bar")], |html| {
        html.leaf("span", &[("aria-hidden", &"true")], label);
        let spoken = format!("{label}: {text}");
        html.leaf("progress", &[("value", &value), ("max", &max), ("aria-label", &spoken)], "");
        html.leaf("span", &[("aria-hidden", &"true")], text);
    });
}

fn whole(seconds: f64) -> String {
    story::duration(seconds.ceil())
}

/// One port.
pub(super) fn port(html: &mut Html, content: &Content<'_>, port: &Value, place: usize) {
    let name = story::name(content.status, port);
    let id = format!("port-{place}");
    let attributes: [super::markup::Attribute<'_>; 3] =
        [("class", &"port"), ("aria-labelledby", &id), ("data-port", &plain(&port["listen"]))];
    html.tag("section", &attributes, |html| {
        html.leaf("h2", &[("id", &id)], format_args!("Port {name}"));
        html.tag("p", &[("class", &"route")], |html| {
            html.leaf("span", &[("data-is", &"listen")], plain(&port["listen"]));
            html.text(" → ");
            html.leaf("span", &[("data-is", &"app")], plain(&port["app"]));
            html.text(", ");
            html.leaf("span", &[("data-is", &"protocol")], plain(&port["protocol"]));
            html.text(", ");
            html.leaf("span", &[("data-is", &"mode")], plain(&port["mode"]));
        });
        html.tag("dl", &[("class", &"tiles")], |html| tiles(html, port));
        html.tag("div", &[("class", &"tables")], |html| {
            refused(html, port);
            shadow(html, port);
            details::outcomes(html, port);
            details::settings_of_port(html, content, port);
        });
    });
}

/// A number each, and what it was in the last minutes.
fn tiles(html: &mut Html, port: &Value) {
    let (recent, history) = (&port["recent"], &port["history"]);
    let number = |key: &str| port[key].as_u64().unwrap_or(0);
    let rate = |key: &str| story::rate(recent[key].as_f64().unwrap_or(0.0));
    let enforced = port["mode"] == "enforce";
    let limit = port["limit"].as_f64().filter(|_| enforced).map(|limit| ("limit", limit));
    tile(html, &one("In flight", Unit::Count, "main", &history["active"], limit), |html| {
        big(html, "active", &story::grouped(number("active")));
        match port["limit"].as_u64() {
            Some(limit) => {
                html.text(if enforced { " of " } else { ", limit " });
                html.leaf("span", &[("data-is", &"limit")], limit);
                html.text(if enforced { "" } else { " not enforced" });
            }
            None => {
                html.text(", ");
                html.leaf("span", &[("data-is", &"limit")], "no limit");
            }
        }
        html.tag("small", &[], |html| {
            html.text("highest ever ");
            html.leaf(
                "span",
                &[("data-is", &"peak_active")],
                story::grouped(number("peak_active")),
            );
            if let Some(beside) = port["bypass"].as_u64() {
                html.text(", beside the gateway ");
                html.leaf("span", &[("data-is", &"bypass")], story::grouped(beside));
            }
        });
    });
    let places = port["queue_length"].as_f64().filter(|_| enforced).map(|n| ("places", n));
    tile(html, &one("Waiting", Unit::Count, "main", &history["queued"], places), |html| {
        big(html, "queued", &story::grouped(number("queued")));
        html.text(" of ");
        html.leaf("span", &[("data-is", &"queue_length")], story::grouped(number("queue_length")));
        html.leaf("small", &[], "places in the queue");
    });
    let admitted = &history["admitted_per_second"];
    tile(html, &one("Admitted", Unit::PerSecond, "main", admitted, None), |html| {
        big(html, "admitted_per_second", &rate("admitted_per_second"));
        html.text("/s");
        total(html, "admitted", number("admitted"));
    });
    let reasons = counts(&port["refused"]);
    let turned_away = reasons.iter().filter(|(why, _)| !story::OWN.contains(why));
    let refused_so_far = turned_away.map(|(_, n)| n).sum();
    let refused = &history["refused_per_second"];
    tile(html, &one("Refused", Unit::PerSecond, "alarm", refused, None), |html| {
        let rates = recent["refused_per_second"].as_object().into_iter().flatten();
        let rates = rates.filter(|(why, _)| !story::OWN.contains(&why.as_str()));
        let now: f64 = rates.filter_map(|(_, rate)| rate.as_f64()).sum();
        big(html, "refused_per_second", &story::rate(now));
        html.text("/s");
        total(html, "refused", refused_so_far);
    });
    percentiles(html, port, "Wait", "wait", "no wait ended");
    let (name, key) = durations(port);
    percentiles(html, port, name, key, "none ended");
}

fn tile(html: &mut Html, plot: &Plot<'_>, numbers: impl FnOnce(&mut Html)) {
    html.tag("div", &[], |html| {
        html.leaf("dt", &[], plot.title);
        html.tag("dd", &[], |html| {
            numbers(html);
            plot.draw(html);
        });
    });
}

/// A plot of one thing.
fn one<'a>(
    title: &'static str,
    unit: Unit,
    look: &'static str,
    values: &'a Value,
    ceiling: Option<(&'static str, f64)>,
) -> Plot<'a> {
    let line = Line { name: "per second", look, filled: true, values };
    let line = if unit == Unit::Count { Line { name: "at once", ..line } } else { line };
    Plot { title, unit, lines: vec![line], ceiling }
}

fn big(html: &mut Html, is: &'static str, text: &str) {
    html.leaf("b", &[("data-is", &is)], text);
}

fn total(html: &mut Html, is: &'static str, n: u64) {
    html.tag("small", &[], |html| {
        html.leaf("data", &[("data-is", &is), ("value", &n)], story::grouped(n));
        html.text(" so far");
    });
}

fn percentiles(
    html: &mut Html,
    port: &Value,
    title: &'static str,
    key: &'static str,
    none: &'static str,
) {
    let history = |quantile: &str| &port["history"][format!("{key}_{quantile}")];
    let lines = vec![
        Line { name: "p99", look: "alarm", filled: false, values: history("p99") },
        Line { name: "p50", look: "other", filled: false, values: history("p50") },
    ];
    let plot = Plot { title, unit: Unit::Seconds, lines, ceiling: None };
    let recent = &port["recent"][format!("{key}_seconds")];
    let show = |quantile: &str| recent[quantile].as_f64().map(story::duration);
    let is = format!("{key}_p99");
    tile(html, &plot, |html| match (show("p50"), show("p90"), show("p99")) {
        (Some(p50), Some(p90), Some(p99)) => {
            html.leaf("b", &[("data-is", &is)], p99);
            html.text(" p99");
            html.leaf("small", &[], format_args!("p50 {p50}, p90 {p90}"));
        }
        _ => {
            html.leaf("b", &[("data-is", &is)], "–");
            html.leaf("small", &[], format_args!("{none} lately"));
        }
    });
}

/// How long what ends here took: requests, unless the port only ever had connections.
fn durations(port: &Value) -> (&'static str, &'static str) {
    let ever = |key: &str| {
        let all = port["history"][key].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().any(|value| !value.is_null())
    };
    match port["protocol"].as_str() {
        Some("tcp") => ("Connection lasts", "connection"),
        Some("auto") if !ever("request_p99") && ever("connection_p99") => {
            ("Connection lasts", "connection")
        }
        _ => ("Request takes", "request"),
    }
}

fn refused(html: &mut Html, port: &Value) {
    let mut reasons = counts(&port["refused"]);
    reasons.retain(|(_, n)| *n > 0);
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    html.tag("div", &[], |html| {
        html.leaf("h3", &[], "Refused or left, by reason");
        if reasons.is_empty() {
            return html.leaf("p", &[], "Nobody so far.");
        }
        let head = ["reason", "now", "so far"];
        table(html, "Refused or left, by reason", &head, |html| {
            for (reason, n) in reasons {
                let now = port["recent"]["refused_per_second"][reason].as_f64().unwrap_or(0.0);
                let meaning = REASONS.iter().find(|(label, _)| *label == reason);
                html.tag("tr", &[], |html| {
                    html.tag("th", &[("scope", &"row")], |html| {
                        html.text(reason);
                        html.leaf("small", &[], meaning.map_or("", |(_, meaning)| meaning));
                    });
                    html.leaf("td", &[], format_args!("{}/s", story::rate(now)));
                    count(html, &format!("refused.{reason}"), n);
                });
            }
        });
    });
}

fn shadow(html: &mut Html, port: &Value) {
    let mut limits: Vec<(u64, u64)> = counts(&port["shadow"])
        .into_iter()
        .filter_map(|(limit, n)| Some((limit.parse().ok()?, n)))
        .collect();
    if limits.is_empty() {
        return;
    }
    limits.sort_unstable();
    let recent = &port["recent"];
    // While observing everybody is let in.
    let arrivals = recent["admitted_per_second"].as_f64().unwrap_or(0.0);
    html.tag("div", &[], |html| {
        html.leaf("h3", &[], "Limits tried out");
        let head = ["limit", "not let in at once, now", "so far"];
        table(html, "What other limits would not have let in at once", &head, |html| {
            for (limit, n) in limits {
                let now = recent["shadow_per_second"][limit.to_string()].as_f64().unwrap_or(0.0);
                let share = if arrivals > 0.0 { (now / arrivals * 100.0).min(100.0) } else { 0.0 };
                html.tag("tr", &[], |html| {
                    html.leaf("th", &[("scope", &"row")], story::grouped(limit));
                    html.leaf("td", &[], format_args!("{}/s, {share:.0} %", story::rate(now)));
                    count(html, &format!("shadow.{limit}"), n);
                });
            }
        });
        let would = port["would_refuse"].as_u64().unwrap_or(0);
        if would > 0 {
            html.tag("p", &[], |html| {
                html.text("Enforcing would have refused ");
                html.leaf(
                    "data",
                    &[("data-is", &"would_refuse"), ("value", &would)],
                    story::grouped(would),
                );
                html.text(".");
            });
        }
    });
}

/// A table with a name for those who do not see the heading over it.
pub(super) fn table(
    html: &mut Html,
    name: &'static str,
    head: &[&'static str],
    rows: impl FnOnce(&mut Html),
) {
    html.tag("table", &[("aria-label", &name)], |html| {
        html.tag("thead", &[], |html| {
            html.tag("tr", &[], |html| {
                head.iter().for_each(|column| html.leaf("th", &[("scope", &"col")], column));
            });
        });
        html.tag("tbody", &[], rows);
    });
}

/// A cell with a counter.
pub(super) fn count(html: &mut Html, is: &str, n: u64) {
    html.tag("td", &[], |html| {
        html.leaf("data", &[("data-is", &is), ("value", &n)], story::grouped(n));
    });
}

/// The counters of an object of the status.
pub(super) fn counts(object: &Value) -> Vec<(&str, u64)> {
    let all = object.as_object().into_iter().flatten();
    all.filter_map(|(name, n)| Some((name.as_str(), n.as_u64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    #[test]
    fn every_reason_is_explained() {
        assert_eq!(Reason::ALL.map(Reason::label), REASONS.map(|(label, _)| label));
    }
}
