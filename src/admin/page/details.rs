//! What is looked at second: how work ended, settings and where they came from, connections, the
//! process.

use serde_json::Value;

use super::super::gateway::Setting;
use super::super::story;
use super::markup::Html;
use super::panel::{count, counts, table};
use super::{Content, plain, ports};

/// How the work of a port ended that was not refused.
pub(super) fn outcomes(html: &mut Html, port: &Value) {
    let mut outcomes = counts(&port["outcomes"]);
    outcomes.retain(|(_, n)| *n > 0);
    if outcomes.is_empty() {
        return;
    }
    outcomes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    html.tag("div", &[], |html| {
        html.leaf("h3", &[], "Admitted, by how it ended");
        table(html, "Admitted, by how it ended", &["end", "so far"], |html| {
            for (how, n) in outcomes {
                html.tag("tr", &[], |html| {
                    html.leaf("th", &[("scope", &"row")], how);
                    count(html, &format!("outcomes.{how}"), n);
                });
            }
        });
        let bytes = |key: &str| port[key].as_u64().unwrap_or(0);
        let (bytes_in, bytes_out) = (bytes("bytes_in"), bytes("bytes_out"));
        if bytes_in + bytes_out > 0 {
            let carried = format!("{} in, {} out", size(bytes_in), size(bytes_out));
            html.leaf("p", &[("class", &"bytes")], carried);
        }
    });
}

/// The settings of a port.
pub(super) fn settings_of_port(html: &mut Html, content: &Content<'_>, port: &Value) {
    let listen = port["listen"].as_str().unwrap_or_default();
    let number = listen.rsplit_once(':').and_then(|(_, number)| number.parse::<u16>().ok());
    let all: Vec<_> = content
        .settings
        .iter()
        .filter(|setting| setting.port.is_some() && setting.port == number)
        .collect();
    settings(html, "Settings of this port", &all);
}

/// What somebody said, and folded away what nobody said.
fn settings(html: &mut Html, title: &'static str, all: &[&Setting]) {
    let (defaults, said): (Vec<_>, Vec<_>) =
        all.iter().partition(|setting| setting.origin.starts_with("default"));
    html.tag("div", &[("class", &"settings")], |html| {
        html.leaf("h3", &[], title);
        if said.is_empty() {
            html.leaf("p", &[], "All as they are by default.");
        } else {
            rows(html, title, &said);
        }
        if !defaults.is_empty() {
            html.tag("details", &[], |html| {
                html.leaf("summary", &[], format_args!("{} by default", defaults.len()));
                rows(html, "By default", &defaults);
            });
        }
    });
}

fn rows(html: &mut Html, name: &'static str, settings: &[&Setting]) {
    table(html, name, &["setting", "value", "from"], |html| {
        for setting in settings {
            html.tag("tr", &[], |html| {
                html.leaf("th", &[("scope", &"row")], setting.key);
                html.leaf("td", &[("data-setting", &setting.key)], &setting.value);
                html.leaf("td", &[], &setting.origin);
            });
        }
    });
}

/// What is not about one port.
pub(super) fn process(html: &mut Html, content: &Content<'_>) {
    let status = content.status;
    html.tag("section", &[("aria-labelledby", &"gateway")], |html| {
        html.leaf("h2", &[("id", &"gateway")], "Gateway");
        html.tag("div", &[("class", &"tables")], |html| {
            html.tag("div", &[], |html| {
                html.leaf("h3", &[], "Process");
                html.tag("dl", &[("class", &"facts")], |html| facts(html, status));
            });
            let process: Vec<_> =
                content.settings.iter().filter(|setting| setting.port.is_none()).collect();
            settings(html, "Settings of the process", &process);
            connections(html, content);
        });
    });
}

fn facts(html: &mut Html, status: &Value) {
    let mut fact = |what: &'static str, is: &'static str, text: &str| {
        html.tag("div", &[], |html| {
            html.leaf("dt", &[], what);
            html.leaf("dd", &[("data-is", &is)], text);
        });
    };
    let engine = &status["engine"];
    fact("engine", "engine.name", &plain(&engine["name"]));
    fact("because", "engine.reason", &plain(&engine["reason"]));
    fact("workers", "workers", &plain(&status["workers"]));
    fact("connections open", "connections", &plain(&status["connections"]));
    fact("at most", "max_connections", &plain(&status["max_connections"]));
    fact("buffers in use", "pools.in_use", &plain(&status["pools"]["in_use"]));
    fact("operations in the ring", "ring_ops", &plain(&status["ring_ops"]));
    let reload = match status["last_reload"]["error"].as_str() {
        Some(error) => format!("not applied: {error}"),
        None => "applied".to_owned(),
    };
    fact("last change of settings", "last_reload", &reload);
    let notes = story::drains(status);
    if !notes.is_empty() {
        fact("drains", "drains", &notes.join("; "));
    }
    fact("probes", "probe", &plain(&status["probe"]));
    fact("metrics", "metrics", &plain(&status["metrics"]));
}

fn connections(html: &mut Html, content: &Content<'_>) {
    html.tag("div", &[("class", &"wide")], |html| {
        html.leaf("h3", &[], "Connections");
        let Some(all) = content.connections else {
            return html.tag("p", &[], |html| {
                html.text("Too many to show here: ");
                html.leaf("a", &[("href", &"/connections.json")], "all of them");
            });
        };
        if all.is_empty() {
            return html.leaf("p", &[], "None is open.");
        }
        let several = ports(content.status).len() > 1;
        html.tag("details", &[], |html| {
            html.leaf("summary", &[], format_args!("{} open, the oldest first", all.len()));
            let head: &[&str] = match several {
                true => &["client", "port", "stage", "open for", "in", "out"],
                false => &["client", "stage", "open for", "in", "out"],
            };
            table(html, "Open connections", head, |html| {
                for one in all {
                    html.tag("tr", &[], |html| {
                        html.leaf("th", &[("scope", &"row")], &one.client);
                        if several {
                            html.leaf("td", &[], &one.port);
                        }
                        html.leaf("td", &[], one.stage);
                        html.leaf("td", &[], story::duration(one.seconds));
                        html.leaf("td", &[], size(one.bytes_in));
                        html.leaf("td", &[], size(one.bytes_out));
                    });
                }
            });
        });
    });
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut rest = bytes as f64;
    let mut unit = 0;
    while rest >= 1000.0 && unit + 1 < UNITS.len() {
        rest /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && rest < 9.95);
    format!("{rest:.digits$} {}", UNITS[unit])
}
