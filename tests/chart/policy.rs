//! The policy on annotations: made of the table of settings, and held against the injector.

use std::collections::BTreeSet;
use std::{env, fs};

use regex::Regex;
use serde_json::{Value, json};
use tidegate::inject::{self, Context, Operator, Outcome, PREFIX};
use tidegate::settings::{KEYS, Key, Kind, OPERATORS, Scope};

use super::path;

const FILE: &str = "charts/tidegate/files/annotations.json";

/// What the injector writes onto a pod.
const OURS: &[&str] = &["status", "injected-version", "original"];

#[test]
fn the_policy_knows_the_settings() {
    let wanted = format!("{:#}\n", checks());
    if env::var_os("UPDATE_CHART").is_some() {
        return fs::write(path(FILE), wanted).expect("the chart can be written");
    }
    assert!(
        fs::read_to_string(path(FILE)).is_ok_and(|found| found == wanted),
        "{FILE} has other settings than src/settings.rs: make manifests"
    );
}

/// The policy warns of less than the injector does, never of more.
#[test]
fn the_policy_allows_whatever_the_injector_allows() {
    let checks = Checks::of(&checks());
    let samples = "none all true false auto 0 1 5 64 8192 1000000 1000001 -1 five 5.0 5s 500ms 1m30s 24h 25h 0s \
        0.01 .5 1.0 1.1 10% 25,50 25, 8080 8080,9000-9100 http,grpc x-tenant http tcp udp enforce observe off \
        with-query 503 500 reset gone uring info info,tidegate=debug debgu redirect listen 50m 64Mi 0.5 1e3 64MB 1E";
    let samples = || samples.split(' ').chain(["", " 5", "5 s", "25, 50", "no header"]);
    let words = inject::annotations_table();
    let words = words.split('`').filter_map(|word| word.strip_prefix(PREFIX));
    let names: BTreeSet<&str> = KEYS.iter().map(|key| key.name).chain(words).collect();
    assert!(names.len() > KEYS.len() + 3, "the injector's own words are not found");
    let strange = ["limit.8080", "drain-delay.8080", "limits", "image", "limit.http"];
    let (mut warned_of, mut heeded) = (0, 0);
    for name in names.into_iter().chain(strange) {
        for sample in samples() {
            let key = format!("{PREFIX}{name}");
            let warned = checks.warn(&key, sample);
            let said = injector_says(&key, sample).iter().any(|warning| warning.contains(&key));
            warned_of += usize::from(warned);
            heeded += usize::from(!said);
            assert!(said || !warned, "{key}: {sample:?} is heeded, and warned of");
        }
    }
    assert!(warned_of > 1000 && heeded > 200, "{warned_of} are warned of, {heeded} are heeded");
    assert!(
        checks.warn("tidegate.dev/limit", "five") && checks.warn("tidegate.dev/limit.8080", "0")
    );
    assert!(
        checks.warn("tidegate.dev/queue-timeout", "5") && checks.warn("tidegate.dev/limits", "5")
    );
    assert!(checks.warn("alpha.tidegate.dev/limit", "5"), "nothing is in the making");
    assert!(!checks.warn("example.com/limit", "five") && !checks.warn("tidegate.dev/status", "{}"));
}

/// What the injector says of a pod with this annotation.
fn injector_says(key: &str, value: &str) -> Vec<String> {
    let ports = json!([{ "name": "http", "containerPort": 8080 }]);
    let pod = json!({
        "metadata": { "name": "web", "annotations": { key: value } },
        "spec": { "containers": [{ "name": "web", "image": "web", "ports": ports }] },
    });
    match inject::review(&pod, &Context::default(), &Operator::default()) {
        Outcome::Patched { warnings, .. } => warnings,
        other => panic!("{key}: {value:?}: {other:?}"),
    }
}

/// What the policy is made of: which annotations there are, and a pattern for each kind of value.
fn checks() -> Value {
    let mut kinds: Vec<(String, String, Vec<String>)> = Vec::new();
    let mut add = |key: String, pattern: &str, allowed: String| {
        let known = kinds.iter_mut().find(|(it, words, _)| it == pattern && *words == allowed);
        match known {
            Some((_, _, keys)) => keys.push(key),
            None => kinds.push((pattern.to_owned(), allowed, vec![key])),
        }
    };
    // The injector makes `grace` of the pod's own terminationGracePeriodSeconds.
    let heeded = |key: &&Key| !OPERATORS.contains(&key.name) && key.name != "grace";
    for key in KEYS.iter().filter(heeded) {
        match key.name {
            // The injector has other words for it than the gateway.
            "capture" => {
                let allowed = "one of `auto`, `redirect`, `listen`";
                add(key.name.into(), "^(auto|redirect|listen)$", allowed.into());
            }
            _ => {
                add(in_annotation(key), &pattern(&key.kind), key.kind.allowed().replace('\'', "’"))
            }
        }
    }
    let quantity = "^[0-9.]+([numkMGTPE]|[KMGTPE]i|[eE][0-9]+)?$";
    let allowed = "a quantity such as `50m` or `64Mi`";
    add("sidecar-(cpu|memory)-(request|limit)".into(), quantity, allowed.into());
    let every = kinds.iter().flat_map(|(_, _, keys)| keys).map(String::as_str);
    let every: Vec<&str> = every.chain(OURS.iter().copied()).collect();
    let keys = |keys: &str| format!("^tidegate[.]dev/({keys})$");
    let checks = kinds.iter().enumerate().map(|(n, (pattern, allowed, names))| {
        let (name, keys) = (format!("wrong{n}"), keys(&names.join("|")));
        json!({ "name": name, "keys": keys, "values": pattern, "allowed": allowed })
    });
    json!({
        "about": "Made of src/settings.rs by `make manifests`.",
        "known": keys(&every.join("|")),
        "checks": checks.collect::<Vec<_>>(),
    })
}

/// The key as a pattern: a setting of a port may name the port.
fn in_annotation(key: &Key) -> String {
    let port = if key.scope == Scope::Port { "([.][0-9]{1,5})?" } else { "" };
    format!("{}{port}", key.name)
}

/// What a value looks like; how large it may be, the gateway says.
fn pattern(kind: &Kind) -> String {
    let or = |word: &Option<&str>| word.map(|word| format!("|{word}")).unwrap_or_default();
    let inner = match kind {
        Kind::Choice { words, .. } => words.join("|"),
        Kind::Count { min: 0, word, .. } => format!("[0-9]+{}", or(word)),
        Kind::Count { word, .. } => format!("0*[1-9][0-9]*{}", or(word)),
        Kind::Counts { .. } => "none| *[0-9]+( *, *[0-9]+)* *".into(),
        Kind::Ratio => "[0-9]*[.]?[0-9]*".into(),
        Kind::Duration { zero, word } => {
            format!("([0-9]+[a-z]+)+{}{}", if *zero { "|0" } else { "" }, or(word))
        }
        Kind::Switch => "true|false".into(),
        // Of the application's container ports also by name.
        Kind::Ports => " *[a-z0-9-]+( *, *[a-z0-9-]+)* *".into(),
        Kind::Header => "[!#$%&*+.^_|~0-9A-Za-z-]+".into(),
        Kind::Filter | Kind::Address | Kind::AddressOr(_) | Kind::Path => ".+".into(),
    };
    format!("^({inner})$")
}

/// The policy's patterns, compiled once.
struct Checks {
    known: Regex,
    /// Keys, and what their values look like.
    values: Vec<(Regex, Regex)>,
}

impl Checks {
    fn of(checks: &Value) -> Self {
        let pattern = |at: &Value| Regex::new(at.as_str().expect("a text")).expect("a pattern");
        let list = checks["checks"].as_array().expect("a list").iter();
        let values = list.map(|check| (pattern(&check["keys"]), pattern(&check["values"])));
        Self { known: pattern(&checks["known"]), values: values.collect() }
    }

    /// Whether the policy would say something.
    fn warn(&self, key: &str, value: &str) -> bool {
        let ours = key.starts_with("tidegate.dev/") || key.starts_with("alpha.tidegate.dev/");
        let wrong = |(keys, values): &(Regex, Regex)| keys.is_match(key) && !values.is_match(value);
        ours && !self.known.is_match(key) || self.values.iter().any(wrong)
    }
}
