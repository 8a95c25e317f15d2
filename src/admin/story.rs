//! What is going on, in a sentence: the first thing that the page and `tidegate status` say. Made from
//! the status as JSON, so that a program of one version can tell about a gateway of another.

use serde_json::Value;

/// How worried to be. The worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// Clients are turned away, or the application does not answer.
    Bad,
    /// It works, and there is something to know.
    Busy,
    /// Nothing is held back because nobody asked for it.
    Open,
    /// All is well.
    Calm,
}

/// One thing that is going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// How worried to be.
    pub tone: Tone,
    /// What it is about, such as `Port 8080`.
    pub subject: String,
    /// It in a word, such as `full`.
    pub word: &'static str,
    /// The numbers that say so.
    pub detail: String,
}

impl Tone {
    /// A name for style sheets.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Busy => "busy",
            Self::Open => "open",
            Self::Calm => "calm",
        }
    }

    /// A sign that is told from the others without colours.
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Bad => "■",
            Self::Busy => "▲",
            Self::Open => "○",
            Self::Calm => "●",
        }
    }
}

impl Story {
    /// All of it, as it is said.
    pub fn sentence(&self) -> String {
        format!("{}: {} — {}", self.subject, self.word, self.detail)
    }
}

/// What the process as a whole is about, if that is not just serving: the drain, settings that
/// were not applied.
pub fn process(status: &Value) -> Vec<Story> {
    let story = |tone, subject: &str, word, detail| Story {
        tone,
        subject: subject.to_owned(),
        word,
        detail,
    };
    let mut stories = Vec::new();
    let (draining, drained) = (&status["draining"], &status["drain"]);
    if drained.is_object() {
        let cut = number(&drained["cut"]);
        let detail = format!(
            "{} finished, {cut} cut, {} refused, in {}",
            number(&drained["finished"]),
            number(&drained["refused"]),
            duration(drained["seconds"].as_f64().unwrap_or(0.0)),
        );
        let tone = if cut > 0 { Tone::Bad } else { Tone::Open };
        stories.push(story(tone, "Gateway", "drained", detail));
    } else if draining.is_object() {
        let word = match draining["closes_in_seconds"].is_null() {
            true => "draining",
            false => "draining soon",
        };
        stories.push(story(Tone::Busy, "Gateway", word, drain_detail(draining)));
    } else if status["phase"] == "starting" {
        stories.push(story(Tone::Busy, "Gateway", "starting", "not ready yet".into()));
    }
    if let Some(error) = status["last_reload"]["error"].as_str() {
        let detail = format!("the last good ones stay: {}", visible(error));
        stories.push(story(Tone::Busy, "Settings", "not applied", detail));
    }
    stories.extend(pod(status));
    stories
}

/// What is to be known of drains that are not under way: whether the application waits for them, and
/// whether one came to nothing.
pub fn drains(status: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    if status["drain_partial"] == true {
        let why = "a container has a hook of its own, and may end before a drain does";
        notes.push(format!("drain=partial: {why}"));
    }
    let why = "nobody ended the gateway, and it serves again";
    match number(&status["drains_taken_back"]) {
        0 => {}
        1 => notes.push(format!("1 drain was taken back: {why}")),
        n => notes.push(format!("{n} drains were taken back: {why}")),
    }
    notes
}

/// What is said in a pod and does not hold as it was written, and whether it is watched.
fn pod(status: &Value) -> Vec<Story> {
    let mut stories = Vec::new();
    let mut open = |subject: &str, word, detail| {
        stories.push(Story { tone: Tone::Open, subject: subject.to_owned(), word, detail });
    };
    let failed =
        |remark: &&Value| remark["reason"] == "invalid" || remark["reason"] == "unreadable";
    let remarks: Vec<_> = status["remarks"].as_array().into_iter().flatten().collect();
    let others = remarks.iter().filter(|remark| !failed(remark));
    let others: Vec<_> = others.filter_map(|remark| remark["text"].as_str()).map(visible).collect();
    if !others.is_empty() {
        open("Settings", "not all as written", others.join("; "));
    }
    if let Some(error) = status["own_pod"]["error"].as_str() {
        open("Pod", "not watched", visible(error));
    }
    stories
}

fn drain_detail(draining: &Value) -> String {
    let left = number(&draining["left"]);
    let cut = duration(draining["cut_in_seconds"].as_f64().unwrap_or(0.0).ceil());
    let done = format!("{} finished, {left} left", number(&draining["finished"]));
    match draining["closes_in_seconds"].as_f64() {
        Some(more) => format!(
            "not ready any more, still accepting for {}; {done}",
            duration(more.ceil().max(1.0))
        ),
        None if left == 0 => format!("{done}; waiting for connections to close"),
        None => format!("{done}; the rest is cut in {cut}"),
    }
}

/// What is going on at one port.
pub fn port(status: &Value, port: &Value) -> Story {
    let now = Now::of(port);
    let (mut tone, mut word, mut detail) = now.tell();
    if now.nobody > 0.0 {
        detail += &format!("; {}/s to ports that nobody listens on", rate(now.nobody));
    }
    let beside = number(&port["bypass"]);
    if beside > 0 {
        let connections = if beside == 1 { "connection reaches" } else { "connections reach" };
        detail += &format!("; {beside} {connections} the application beside the gateway");
        let entrance = port["entrance"] == true;
        if entrance {
            detail += ", at ports whose rules are missing (tidegate capture check)";
        }
        // What is let in is limited; what the application has is not.
        if now.mode == "enforce" && tone == Tone::Calm || entrance && tone != Tone::Bad {
            (tone, word) = (Tone::Busy, "passed by");
        }
    }
    Story { tone, subject: format!("Port {}", name(status, port)), word, detail }
}

/// A port's number, unless two addresses share it.
pub fn name(status: &Value, port: &Value) -> String {
    let number = |port: &Value| {
        let listen = port["listen"].as_str().unwrap_or_default();
        listen.rsplit_once(':').map(|(_, number)| number.to_owned())
    };
    let all = status["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    match number(port) {
        Some(own) if all.iter().filter(|p| number(p).as_ref() == Some(&own)).count() == 1 => {
            visible(&own)
        }
        _ => visible(port["listen"].as_str().unwrap_or("?")),
    }
}

/// The numbers of a port that its story is made of.
struct Now<'a> {
    mode: &'a str,
    limit: Option<u64>,
    active: u64,
    queued: u64,
    queue_length: u64,
    admitted: f64,
    would_refuse: f64,
    /// Reasons with their rates, the most frequent first.
    refused: Vec<(&'a str, f64)>,
    /// Where captured connections come in: those to ports that nobody listens on. That is no application's
    /// failure, and anybody can call such ports.
    nobody: f64,
    wait_p99: Option<f64>,
    /// The smallest candidate limit that would have let everybody in, while candidates are tried.
    enough: Option<Option<u64>>,
}

/// The reasons of those that were not turned away, but left by themselves or asked for what nobody can
/// have ([`Reason::is_its_clients`](crate::outcome::Reason::is_its_clients)).
pub const OWN: [&str; 2] = ["client_gone", "not_served"];

/// Reasons that say the application is in trouble.
const APPLICATION: [&str; 3] = ["upstream_refused", "upstream_timeout", "abandoned"];

/// How a connection to a port that nobody listens on is refused.
const NOBODY: &str = "upstream_refused";

/// Of fewer arrivals than this nobody should learn which limit is right.
const ENOUGH: u64 = 1000;

impl<'a> Now<'a> {
    fn of(port: &'a Value) -> Self {
        let recent = &port["recent"];
        let rates = recent["refused_per_second"].as_object().into_iter().flatten();
        let mut refused: Vec<_> = rates
            .filter(|(why, _)| !OWN.contains(&why.as_str()))
            .filter_map(|(why, rate)| Some((why.as_str(), rate.as_f64()?)))
            .filter(|(_, rate)| *rate > 0.0)
            .collect();
        refused.sort_by(|a, b| b.1.total_cmp(&a.1));
        let astray = |(why, _): &mut (&str, f64)| port["entrance"] == true && *why == NOBODY;
        let nobody = refused.extract_if(.., astray).map(|(_, rate)| rate).sum();
        let seen = number(&port["admitted"]) >= ENOUGH;
        let shadow = port["shadow"].as_object().filter(|all| seen && !all.is_empty());
        let enough = shadow.map(|all| {
            let fits = all.iter().filter(|(_, n)| n.as_u64() == Some(0));
            fits.filter_map(|(limit, _)| limit.parse().ok()).min()
        });
        Self {
            mode: port["mode"].as_str().unwrap_or_default(),
            limit: port["limit"].as_u64(),
            active: number(&port["active"]),
            queued: number(&port["queued"]),
            queue_length: number(&port["queue_length"]),
            admitted: recent["admitted_per_second"].as_f64().unwrap_or(0.0),
            would_refuse: recent["would_refuse_per_second"].as_f64().unwrap_or(0.0),
            refused,
            nobody,
            wait_p99: recent["wait_seconds"]["p99"].as_f64(),
            enough,
        }
    }

    fn tell(&self) -> (Tone, &'static str, String) {
        let (broken, refused): (Vec<_>, Vec<_>) =
            self.refused.iter().copied().partition(|(why, _)| APPLICATION.contains(why));
        let full = self.mode == "enforce" && self.limit.is_some_and(|limit| self.active >= limit);
        let flow = self.flow();
        if !broken.is_empty() {
            let also = if refused.is_empty() { "" } else { " and others" };
            let failed = rates("failed", &broken);
            return (Tone::Bad, "application fails", format!("{failed}{also}, {flow}"));
        }
        if !refused.is_empty() {
            let word = if full { "full" } else { "refusing" };
            return (Tone::Bad, word, format!("{flow}, {}", rates("refused", &refused)));
        }
        match self.mode {
            "off" => (Tone::Open, "off", format!("{flow}, nothing is limited")),
            "observe" => (Tone::Open, "observing", format!("{flow}, {}", self.observed())),
            _ if full && self.queued > 0 => {
                let waits = self.wait_p99.map(|p99| format!(", longest about {}", duration(p99)));
                let detail = format!("{flow}{}, nobody is refused", waits.unwrap_or_default());
                (Tone::Busy, "at its limit", detail)
            }
            _ if full => (Tone::Busy, "at its limit", format!("{flow}, nobody is refused")),
            _ if self.active == 0 && self.admitted == 0.0 => {
                (Tone::Calm, "idle", format!("{flow}, nobody is refused"))
            }
            _ => (Tone::Calm, "flowing", format!("{flow}, nobody is refused")),
        }
    }

    /// How much there is: `8 of 8 in flight, 12 wait`.
    fn flow(&self) -> String {
        let active = match (self.limit, self.mode) {
            (Some(limit), "enforce") => format!("{} of {limit} in flight", self.active),
            _ => format!("{} in flight", self.active),
        };
        match (self.queued, self.queue_length) {
            (0, _) => active,
            (1, _) => format!("{active}, 1 waits"),
            (n, _) => format!("{active}, {n} wait"),
        }
    }

    fn observed(&self) -> String {
        if self.would_refuse > 0.0 {
            return format!("{}/s would be refused", rate(self.would_refuse));
        }
        match self.enough {
            Some(Some(limit)) => format!("nobody is refused; a limit of {limit} would have done"),
            Some(None) => "nobody is refused; every limit tried was too low at times".to_owned(),
            None => "nobody is refused".to_owned(),
        }
    }
}

/// `41/s refused (queue_full)`, or of more than one reason the two most frequent.
fn rates(verb: &str, reasons: &[(&str, f64)]) -> String {
    let all: f64 = reasons.iter().map(|(_, rate)| rate).sum();
    let names = match reasons {
        [(only, _)] => visible(only),
        [(first, n), (second, m), more @ ..] => format!(
            "{} {}, {} {}{}",
            visible(first),
            rate(*n),
            visible(second),
            rate(*m),
            if more.is_empty() { "" } else { ", …" }
        ),
        [] => String::new(),
    };
    format!("{}/s {verb} ({names})", rate(all))
}

/// A rate for people.
pub fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        r => grouped(r.round() as u64),
    }
}

/// Seconds for people: two or three digits and a unit.
pub fn duration(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 0.000_999_5 => (s * 1e6, "µs"),
        s if s < 0.999_5 => (s * 1e3, "ms"),
        s if s < 99.5 => (s, "s"),
        s if s < 7200.0 => {
            let s = s as u64;
            return format!("{} min {} s", s / 60, s % 60);
        }
        s if s < 172_800.0 => {
            let minutes = s as u64 / 60;
            return format!("{} h {} min", minutes / 60, minutes % 60);
        }
        s => return format!("{} d {} h", s as u64 / 86_400, s as u64 / 3600 % 24),
    };
    let digits = usize::from(number < 9.95 && number.fract() != 0.0);
    format!("{number:.digits$} {unit}")
}

/// A count with its digits in groups of three.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.char_indices() {
        // Four digits are read at a glance.
        if at > 0 && digits.len() > 4 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{a0}');
        }
        out.push(digit);
    }
    out
}

/// Text from outside: nothing in it moves the cursor or turns the line around.
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if is_visible(c) { c } else { '\u{fffd}' }).collect()
}

/// Whether a character shows itself and leaves the others where they are.
pub const fn is_visible(c: char) -> bool {
    !matches!(c,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{ad}' | '\u{180e}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
    )
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(port: &Value) -> String {
        let status = json!({ "ports": [port] });
        super::port(&status, port).sentence()
    }

    fn enforcing(active: u64, queued: u64, refused: &Value) -> Value {
        json!({
            "listen": "0.0.0.0:8080", "mode": "enforce", "limit": 8, "queue_length": 16,
            "active": active, "queued": queued,
            "recent": {
                "admitted_per_second": active as f64, "refused_per_second": refused,
                "wait_seconds": { "p99": 0.1234 },
            },
        })
    }

    #[test]
    fn whoever_was_not_turned_away_is_known_by_the_same_words() {
        let own = crate::outcome::Reason::ALL.into_iter().filter(|reason| reason.is_its_clients());
        assert_eq!(own.map(|reason| reason.label()).collect::<Vec<_>>(), OWN);
    }

    #[test]
    fn a_port_is_told_in_a_sentence() {
        for (active, queued, refused, sentence) in [
            (0, 0, json!({}), "Port 8080: idle — 0 of 8 in flight, nobody is refused"),
            (3, 0, json!({}), "Port 8080: flowing — 3 of 8 in flight, nobody is refused"),
            (8, 0, json!({}), "Port 8080: at its limit — 8 of 8 in flight, nobody is refused"),
            (
                8,
                1,
                json!({}),
                "Port 8080: at its limit — 8 of 8 in flight, 1 waits, longest about 123 ms, nobody is refused",
            ),
            (
                8,
                12,
                json!({ "queue_full": 41.2, "client_gone": 50.0 }),
                "Port 8080: full — 8 of 8 in flight, 12 wait, 41/s refused (queue_full)",
            ),
            (
                2,
                0,
                json!({ "per_client_limit": 0.2 }),
                "Port 8080: refusing — 2 of 8 in flight, 0.2/s refused (per_client_limit)",
            ),
            (
                8,
                16,
                json!({ "queue_full": 30.0, "queue_timeout": 4.0, "draining": 1.0 }),
                "Port 8080: full — 8 of 8 in flight, 16 wait, 35/s refused (queue_full 30, queue_timeout 4.0, …)",
            ),
            (
                0,
                0,
                json!({ "upstream_refused": 12.0 }),
                "Port 8080: application fails — 12/s failed (upstream_refused), 0 of 8 in flight",
            ),
        ] {
            assert_eq!(told(&enforcing(active, queued, &refused)), sentence);
        }
    }

    #[test]
    fn whoever_looks_for_open_ports_finds_no_failing_application() {
        let mut port = enforcing(0, 0, &json!({ "upstream_refused": 12.0 }));
        port["mode"] = json!("off");
        port["entrance"] = json!(true);
        assert_eq!(
            told(&port),
            "Port 8080: off — 0 in flight, nothing is limited; 12/s to ports that nobody listens on"
        );
        port["recent"]["refused_per_second"]["loop"] = json!(3.0);
        assert_eq!(super::port(&json!({}), &port).tone, Tone::Bad, "that one is");
    }

    #[test]
    fn where_rules_are_missing_it_is_said_at_the_entrance() {
        let mut port = enforcing(0, 0, &json!({}));
        (port["mode"], port["entrance"], port["bypass"]) = (json!("off"), json!(true), json!(2));
        assert_eq!(
            told(&port),
            "Port 8080: passed by — 0 in flight, nothing is limited; 2 connections reach the application beside \
             the gateway, at ports whose rules are missing (tidegate capture check)"
        );
    }

    #[test]
    fn an_observing_port_says_what_a_limit_would_do() {
        let mut port = enforcing(30, 0, &json!({}));
        port["mode"] = json!("observe");
        assert_eq!(told(&port), "Port 8080: observing — 30 in flight, nobody is refused");
        port["admitted"] = json!(5000);
        port["shadow"] = json!({ "25": 9, "50": 0, "100": 0 });
        assert_eq!(
            told(&port),
            "Port 8080: observing — 30 in flight, nobody is refused; a limit of 50 would have done"
        );
        port["recent"]["would_refuse_per_second"] = json!(14.0);
        assert_eq!(told(&port), "Port 8080: observing — 30 in flight, 14/s would be refused");
    }

    #[test]
    fn a_status_of_another_version_is_told_as_far_as_it_goes() {
        assert_eq!(
            told(&json!({ "listen": "[::]:80", "mode": "enforce", "limit": 1, "active": 1 })),
            "Port 80: at its limit — 1 of 1 in flight, nobody is refused"
        );
        assert_eq!(told(&json!({})), "Port ?: idle — 0 in flight, nobody is refused");
    }

    #[test]
    fn the_drain_and_settings_that_failed_are_told_first() {
        let status = json!({
            "phase": "closing",
            "draining": { "finished": 6, "left": 5, "closes_in_seconds": null, "cut_in_seconds": 16.2 },
            "last_reload": { "error": "limit \u{1b}[2J must be a number" },
        });
        let stories = process(&status);
        let told: Vec<_> = stories.iter().map(Story::sentence).collect();
        assert_eq!(
            told,
            [
                "Gateway: draining — 6 finished, 5 left; the rest is cut in 17 s",
                "Settings: not applied — the last good ones stay: limit \u{fffd}[2J must be a number",
            ]
        );
    }

    #[test]
    fn numbers_are_for_people() {
        let told = [0.0, 0.000_25, 0.0012, 0.012, 0.25, 1.0, 1.25, 42.0, 130.0, 7300.0, 200_000.0]
            .map(duration);
        let people = [
            "0 µs",
            "250 µs",
            "1.2 ms",
            "12 ms",
            "250 ms",
            "1 s",
            "1.2 s",
            "42 s",
            "2 min 10 s",
            "2 h 1 min",
            "2 d 7 h",
        ];
        assert_eq!(told, people);
        assert_eq!(
            [0, 999, 1234, 12_345, 1_234_567].map(grouped).join(" "),
            "0 999 1234 12\u{a0}345 1\u{a0}234\u{a0}567"
        );
        assert_eq!(
            [0.0, 0.2, 9.94, 9.96, 12_345.6].map(rate).join(" "),
            "0 0.2 9.9 10 12\u{a0}346"
        );
    }
}
