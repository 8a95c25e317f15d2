//! The status for people with a browser: one page that needs nothing else. First what is going on, in
//! a sentence; then the numbers; then what they come from.
//!
//! ```text
//! /status.json ──→ html() ──→ all of the page, complete without scripts
//!                     └─ live.js: fetches the page again every second, and takes over what changed
//! ```
//!
//! Always true: the page is drawn in one place, here, from the status as JSON; the browser may run
//! one script, show one style sheet, both named by a nonce, and talk to nobody else.

mod details;
mod markup;
mod panel;
mod plot;

use std::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::gateway::{Connection, Setting};
use super::story::{self, Story, Tone};

use markup::Html;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");

/// What a page is made of.
pub(super) struct Content<'a> {
    /// `/status.json`.
    pub(super) status: &'a Value,
    /// Every setting in force.
    pub(super) settings: &'a [Setting],
    /// Open connections; `None`: too many to show.
    pub(super) connections: Option<&'a [Connection]>,
    /// When it was.
    pub(super) now: SystemTime,
}

/// How the page is shown.
pub(super) struct Frame<'a> {
    /// Lets the page's own script and style be used, and no other.
    pub(super) nonce: &'a str,
    /// Why it is asked for.
    pub(super) purpose: Purpose,
}

/// Why the page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be looked at.
    Whole,
    /// To be looked at again after so many seconds, in a browser without scripts.
    Again(u8),
    /// For the script, which takes over what changed: style and script are there already, and the
    /// policy of the first page would not let in those of another.
    Update,
}

impl Purpose {
    /// `?reload=5`, `?update`.
    pub(super) fn of(query: Option<&str>) -> Self {
        let seconds = query.and_then(|query| query.strip_prefix("reload=")?.parse().ok());
        match (query, seconds) {
            (Some("update"), _) => Self::Update,
            (_, Some(seconds @ 1..)) => Self::Again(seconds),
            _ => Self::Whole,
        }
    }
}

/// Which nobody can guess.
pub(super) fn nonce() -> String {
    let mut random = [0; 16];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    // Without it the page is shown without its script, which is better than with a known nonce.
    let random = if filled == Ok(random.len()) { &random[..] } else { &[] };
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a browser may do with the page.
pub(super) fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The page.
pub(super) fn html(content: &Content<'_>, frame: &Frame<'_>) -> String {
    let status = content.status;
    let ports = ports(status);
    let mut stories: Vec<_> = story::process(status);
    let of_process = stories.len();
    stories.extend(ports.iter().map(|port| story::port(status, port)));
    let worst = stories.iter().map(|story| story.tone).min().unwrap_or(Tone::Calm);

    let mut html = Html::default();
    html.literal("<!doctype html>");
    html.tag("html", &[("lang", &"en")], |html| {
        html.tag("head", &[], |html| head(html, worst, &stories, frame));
        html.tag("body", &[], |html| {
            html.tag("header", &[], |html| banner(html, content));
            html.tag("main", &[("id", &"main")], |html| {
                headline(html, &stories, of_process);
                panel::drain(html, status);
                for (place, port) in ports.iter().enumerate() {
                    panel::port(html, content, port, place);
                }
                details::process(html, content);
            });
            html.tag("footer", &[], footer);
            let alert = [("id", &"news" as &dyn Display), ("role", &"status"), ("class", &"heard")];
            html.leaf("p", &alert, "");
            if frame.purpose != Purpose::Update {
                html.tag("script", &[("nonce", &frame.nonce)], |html| html.literal(SCRIPT));
            }
        });
    });
    html.literal("\n");
    html.finish()
}

fn head(html: &mut Html, worst: Tone, stories: &[Story], frame: &Frame<'_>) {
    html.void("meta", &[("charset", &"utf-8")]);
    html.void(
        "meta",
        &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")],
    );
    html.void("meta", &[("name", &"color-scheme"), ("content", &"light dark")]);
    if let Purpose::Again(seconds) = frame.purpose {
        html.tag("noscript", &[], |html| {
            html.void("meta", &[("http-equiv", &"refresh"), ("content", &seconds)]);
        });
    }
    let first = stories.iter().find(|story| story.tone == worst);
    let title = first.map_or_else(String::new, |s| format!("{}: {} · ", s.subject, s.word));
    html.leaf("title", &[], format!("{title}tidegate"));
    html.void("link", &[("rel", &"icon"), ("href", &icon(worst))]);
    if frame.purpose != Purpose::Update {
        html.tag("style", &[("nonce", &frame.nonce)], |html| html.literal(STYLE));
    }
}

/// A dot in the colour of what is going on, for a browser with many tabs.
fn icon(tone: Tone) -> String {
    let colour = match tone {
        Tone::Bad => "d32f2f",
        Tone::Busy => "e69100",
        Tone::Open => "3b82f6",
        Tone::Calm => "2e9e5b",
    };
    format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
         %3Ccircle cx='8' cy='8' r='7' fill='%23{colour}'/%3E%3C/svg%3E"
    )
}

fn banner(html: &mut Html, content: &Content<'_>) {
    let status = content.status;
    html.tag("p", &[("class", &"name")], |html| {
        html.leaf("strong", &[], "tidegate");
        html.text(" ");
        html.leaf("span", &[("data-is", &"version")], plain(&status["version"]));
    });
    html.tag("p", &[], |html| {
        html.leaf("span", &[("data-is", &"phase")], plain(&status["phase"]));
        html.text(", up ");
        let up = status["uptime_seconds"].as_f64().unwrap_or(0.0).floor();
        html.leaf("span", &[("data-is", &"uptime")], story::duration(up));
        html.text(", on ");
        html.leaf("span", &[("data-is", &"engine")], plain(&status["engine"]["name"]));
    });
    html.tag("p", &[("class", &"as-of")], |html| {
        html.leaf("span", &[("id", &"live")], "as of");
        html.text(" ");
        html.leaf("time", &[("data-is", &"now")], clock(content.now));
        html.text(" ");
        // The script shows it: without one there is nothing to pause.
        html.leaf("button", &[("id", &"pause"), ("type", &"button"), ("hidden", &"")], "Pause");
    });
    html.tag("noscript", &[], |html| {
        html.leaf("a", &[("href", &"/")], "Reload");
        html.text(" or ");
        html.leaf("a", &[("href", &"/?reload=5")], "every 5 seconds");
    });
}

/// The worst first, as the heading of the page; the others under it.
fn headline(html: &mut Html, stories: &[Story], of_process: usize) {
    let mut order: Vec<usize> = (0..stories.len()).collect();
    // The drain is what everything else comes from.
    order.sort_by_key(|at| (*at >= of_process, stories[*at].tone));
    html.tag("section", &[("class", &"now"), ("aria-label", &"What is going on")], |html| {
        let Some((first, others)) = order.split_first() else {
            return html.leaf("h1", &[], "No port is configured");
        };
        html.tag("h1", &[], |html| told(html, &stories[*first]));
        if others.is_empty() {
            return;
        }
        html.tag("ul", &[], |html| {
            for at in others {
                html.tag("li", &[], |html| told(html, &stories[*at]));
            }
        });
    });
}

fn told(html: &mut Html, story: &Story) {
    let look = format!("told {}", story.tone.label());
    html.tag("span", &[("class", &look)], |html| {
        html.leaf("span", &[("class", &"sign"), ("aria-hidden", &"true")], story.tone.sign());
        html.text(format_args!("{}: ", story.subject));
        html.leaf("b", &[("data-subject", &story.subject)], story.word);
        html.text(format_args!(" — {}", story.detail));
    });
}

fn footer(html: &mut Html) {
    html.text("The same for programs: ");
    for (place, path) in
        ["/status.json", "/settings.json", "/connections.json", "/metrics"].iter().enumerate()
    {
        if place > 0 {
            html.text(", ");
        }
        html.leaf("a", &[("href", path)], path);
    }
    html.text("; in a terminal: ");
    html.leaf("code", &[], "tidegate status --watch");
}

fn ports(status: &Value) -> &[Value] {
    status["ports"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text or a number as it is.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".into(),
        other => other.to_string(),
    }
}

/// Hours, minutes and seconds, of the zone all machines agree on.
fn clock(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests;
