//! `tidegate status`: what is going on, in sentences, and a table under them.

use std::fmt::Write;

use serde_json::Value;

use crate::admin::story::{self, visible};

const COLUMNS: [&str; 10] = [
    "LISTEN", "APP", "MODE", "LIMIT", "ACTIVE", "PEAK", "QUEUED", "ACCEPTED", "ADMITTED", "REFUSED",
];

/// The status as lines of text.
pub(super) fn plain(status: &Value) -> String {
    let mut out = String::new();
    let engine = &status["engine"];
    let _ = writeln!(
        out,
        "tidegate {}: {}, {} ({}), {} connections of {}, up {}",
        word(&status["version"]),
        word(&status["phase"]),
        word(&engine["name"]),
        word(&engine["reason"]),
        word(&status["connections"]),
        word(&status["max_connections"]),
        uptime(&status["uptime_seconds"]),
    );
    let ports = status["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut stories = story::process(status);
    stories.extend(ports.iter().map(|port| story::port(status, port)));
    for story in stories {
        let _ = writeln!(out, "{}", story.sentence());
    }
    if status["drain"].is_object() {
        let _ = writeln!(out, "drained: {}", visible(&status["drain"].to_string()));
    }
    for note in story::drains(status) {
        let _ = writeln!(out, "{note}");
    }
    out.push('\n');
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(ports.iter().map(row));
    align(&rows, &mut out);
    for port in ports {
        details(port, &mut out);
    }
    out
}

fn row(port: &Value) -> [String; 10] {
    let limit = if port["limit"].is_null() { "none".to_owned() } else { word(&port["limit"]) };
    let refused: u64 = counts(&port["refused"]).map(|(_, n)| n).sum();
    [
        word(&port["listen"]),
        word(&port["app"]),
        word(&port["mode"]),
        limit,
        word(&port["active"]),
        word(&port["peak_active"]),
        format!("{}/{}", word(&port["queued"]), word(&port["queue_length"])),
        word(&port["accepted"]),
        word(&port["admitted"]),
        refused.to_string(),
    ]
}

/// What does not fit a column: why it refused, how the rest ended, what other limits would do.
fn details(port: &Value, out: &mut String) {
    let mut line = |what: &str, list: String| {
        if !list.is_empty() {
            let _ = writeln!(out, "{}: {what} {list}", word(&port["listen"]));
        }
    };
    line("refused for", some(&port["refused"]));
    line("ended as", some(&port["outcomes"]));
    match port["would_refuse"].as_u64() {
        Some(n) if n > 0 => line("would have refused", n.to_string()),
        _ => {}
    }
    match port["bypass"].as_u64() {
        Some(n) if n > 0 => line("passed by connections that come from elsewhere:", n.to_string()),
        _ => {}
    }
    let mut shadow: Vec<(u64, u64)> =
        counts(&port["shadow"]).filter_map(|(limit, n)| Some((limit.parse().ok()?, n))).collect();
    shadow.sort_unstable();
    let shadow: Vec<_> = shadow.iter().map(|(limit, n)| format!("{limit}: {n}")).collect();
    line("not let in at once by a limit of", shadow.join(", "));
}

fn counts(object: &Value) -> impl Iterator<Item = (&str, u64)> {
    object.as_object().into_iter().flatten().filter_map(|(k, n)| Some((k.as_str(), n.as_u64()?)))
}

fn some(object: &Value) -> String {
    let list: Vec<_> = counts(object)
        .filter(|(_, n)| *n > 0)
        .map(|(why, n)| format!("{} {n}", visible(why)))
        .collect();
    list.join(", ")
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => visible(text),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

fn uptime(seconds: &Value) -> String {
    let whole = std::time::Duration::from_secs(seconds.as_f64().unwrap_or(0.0) as u64);
    humantime::format_duration(whole).to_string()
}

fn align(rows: &[[String; 10]], out: &mut String) {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 10] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A status in which every text and every name is `text`.
    fn status(text: &str) -> Value {
        json!({
            "version": text, "phase": text, "engine": { "name": text, "reason": text },
            "connections": 1, "max_connections": 2, "uptime_seconds": 3.5,
            "last_reload": { "error": text }, "drain": { text: text },
            "ports": [{
                "listen": text, "app": text, "mode": text, "limit": text, "active": text, "bypass": 3,
                "refused": { text: 4 }, "outcomes": { text: 5 }, "would_refuse": 1,
                "shadow": { "25": 4 }, "recent": { "refused_per_second": { text: 1.5 } },
            }],
        })
    }

    proptest! {
        /// Whoever answers in a gateway's stead says nothing beside the lines that are ours.
        #[test]
        fn nothing_that_is_shown_moves_the_cursor_or_begins_a_line(
            text in "[\\PC\\pC]{0,12}", nasty in prop::sample::select(vec!["\n", "\r", "\u{1b}[2J", "\u{9b}1m", "\u{202e}"]),
        ) {
            let shown = plain(&status(&format!("{text}{nasty}x")));
            prop_assert!(shown.chars().all(|c| c == '\n' || crate::admin::story::is_visible(c)), "{shown:?}");
            prop_assert_eq!(shown.lines().count(), plain(&status("x")).lines().count(), "{}", shown);
        }
    }
}
