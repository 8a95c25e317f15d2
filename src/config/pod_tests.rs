//! Settings in a pod: who wins, what stays when somebody is mistaken, and what is said about it.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limit::Mode;

/// What a pod's gateway is started with, in front of port 8080.
fn layers(more: &[(&str, &str)]) -> Layers {
    let mut environment = vec![("TIDEGATE_LISTEN", "127.0.0.1:8080=127.0.0.1:3000")];
    environment.extend(more);
    if !more.iter().any(|(name, _)| *name == "TIDEGATE_TEMPLATE_ANNOTATIONS") {
        environment.push(("TIDEGATE_TEMPLATE_ANNOTATIONS", "{}"));
    }
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
    let layers = Layers::from_cli(&cli::Run::default(), environment);
    let layers = layers.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    layers.bound(["127.0.0.1:8080".parse().expect("an address")])
}

fn pairs(said: &[(&str, &str)]) -> Said {
    let pair = |(name, text): &(&str, &str)| Pair {
        name: (*name).to_owned(),
        text: (*text).to_owned(),
        line: None,
    };
    Ok(said.iter().map(pair).collect())
}

fn limit(layers: &Layers) -> Option<u32> {
    let config = layers.resolve().expect("a pod's settings always resolve");
    config.ports[0].gate.limit.map(std::num::NonZeroU32::get)
}

fn mode(layers: &Layers) -> Mode {
    layers.resolve().expect("a pod's settings always resolve").ports[0].gate.mode
}

fn reasons(layers: &Layers) -> Vec<(&'static str, &'static str)> {
    let remarks = layers.remarks().into_iter();
    remarks.map(|remark| (remark.source.label(), remark.trouble.label())).collect()
}

fn origin(layers: &Layers, key: &str) -> (String, String) {
    let setting = layers.describe().into_iter().find(|setting| setting.key == key);
    setting.map(|setting| (setting.value, setting.origin)).expect("a key of the table")
}

#[test]
fn the_nearer_source_wins_and_what_is_taken_back_shows_the_one_below() {
    let mut now =
        layers(&[("TIDEGATE_LIMIT", "1"), ("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"limit":"2"}"#)]);
    assert_eq!(limit(&now), Some(2));
    for (source, text) in
        [(Source::Namespace, "3"), (Source::Workload, "4"), (Source::Annotations, "5")]
    {
        (now, _) = now.hear(source, pairs(&[("limit", text)]));
        assert_eq!(limit(&now), Some(text.parse().expect("a number")), "{source:?}");
    }
    (now, _) = now.set_live([("limit".into(), "6".into())].into()).expect("fine");
    assert_eq!(origin(&now, "limit"), ("6".into(), "live change".into()));
    (now, _) = now.set_live([("limit".into(), "default".into())].into()).expect("fine");
    for (source, below, from) in [
        (Source::Annotations, 4, "ConfigMap, key of the workload"),
        (Source::Workload, 3, "ConfigMap, key _all"),
        (Source::Namespace, 2, "annotation of the pod template"),
        (Source::Template, 1, "environment TIDEGATE_LIMIT"),
    ] {
        (now, _) = now.hear(source, pairs(&[]));
        assert_eq!(limit(&now), Some(below), "{source:?} says nothing any more");
        assert_eq!(origin(&now, "limit").1, from);
    }
    assert_eq!(now.remarks(), []);
}

#[test]
fn annotations_that_say_what_the_template_said_were_not_edited() {
    let template =
        [("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"tidegate.dev/limit":"2","capture":"listen"}"#)];
    let (now, _) = layers(&template).hear(Source::Workload, pairs(&[("limit", "4")]));
    let pod = [
        ("tidegate.dev/limit", "2"),
        ("tidegate.dev/capture", "listen"),
        ("tidegate.dev/status", "injected"),
        ("example.com/limit", "99"),
    ];
    let annotations = |pairs: &[(&str, &str)]| {
        let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Ok(of_annotations(&map))
    };
    let (now, _) = now.hear(Source::Annotations, annotations(&pod));
    assert_eq!((limit(&now), reasons(&now)), (Some(4), vec![]));
    let edited = [("tidegate.dev/limit", "7"), ("tidegate.dev/capture", "redirect")];
    let (now, _) = now.hear(Source::Annotations, annotations(&edited));
    assert_eq!(limit(&now), Some(7));
    assert_eq!(reasons(&now), [("annotations", "needs_restart")]);
}

#[test]
fn a_mistake_leaves_its_keys_last_good_value_and_holds_up_nobody() {
    let (now, _) =
        layers(&[]).hear(Source::Annotations, pairs(&[("limit", "5"), ("mode", "enforce")]));
    let wrong = [
        ("limit", "many"),
        ("limit.8080", "0"),
        ("limit.99999", "1"),
        ("limit.9090", "1"),
        ("limmit", "1"),
        ("alpha.tidegate.dev/limit", "1"),
        ("mode", "off"),
        ("workers", "4"),
        ("admin", "0.0.0.0:1"),
    ];
    let (now, config) = now.hear(Source::Annotations, pairs(&wrong));
    assert_eq!(config.workers.get(), 1);
    assert_eq!((limit(&now), mode(&now)), (Some(5), Mode::Off), "the kill switch works");
    let expected = [
        "invalid",
        "invalid",
        "invalid",
        "unused",
        "unknown",
        "unknown",
        "needs_restart",
        "unused",
    ];
    assert_eq!(reasons(&now).into_iter().map(|(_, why)| why).collect::<Vec<_>>(), expected);
    let said = now.remarks()[0].to_string();
    assert_eq!(said, "limit \"many\" (annotation) must be an integer from 1 to 1000000, or `none`");

    let (now, _) = now.hear(Source::Annotations, Err("is no file of annotations".into()));
    assert_eq!((limit(&now), mode(&now)), (Some(5), Mode::Off), "what it said last stays");
    assert_eq!(reasons(&now), [("annotations", "unreadable")]);
    let (now, _) = now.hear(Source::Annotations, pairs(&[("limit", "6")]));
    assert_eq!((limit(&now), mode(&now), reasons(&now)), (Some(6), Mode::Enforce, vec![]));
}

#[test]
fn what_needs_a_restart_is_taken_at_the_start_and_stays() {
    let template = [("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"protocol":"tcp","engine":"epoll"}"#)];
    let start = layers(&template);
    assert_eq!(start.resolve().expect("fine").engine, io::EngineChoice::Epoll);
    assert_eq!(start.remarks(), []);
    let (now, config) = start.hear(Source::Template, pairs(&[("protocol", "http")]));
    assert_eq!(config.ports[0].protocol, conn::Protocol::Tcp);
    assert_eq!(config.engine, io::EngineChoice::Epoll);
    assert_eq!(reasons(&now), [("template", "needs_restart"), ("template", "needs_restart")]);
}

#[test]
fn values_that_were_bad_from_the_beginning_mean_observe() {
    let bad = [
        ("TIDEGATE_LIMIT", "100"),
        ("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"limit":"fivehundred","idle-timeout":"1m"}"#),
    ];
    let start = layers(&bad);
    assert_eq!((limit(&start), mode(&start)), (Some(100), Mode::Observe));
    assert_eq!(
        start.resolve().expect("fine").ports[0].conn.idle_timeout,
        Some(Duration::from_secs(60))
    );
    let (value, why) = origin(&start, "mode");
    assert!(value == "observe" && why.contains("fivehundred"), "{value}: {why}");
    // Somebody nearer says what was meant.
    let (now, _) = start.hear(Source::Annotations, pairs(&[("limit", "500")]));
    assert_eq!((limit(&now), mode(&now)), (Some(500), Mode::Enforce));
    let (now, _) = now.hear(Source::Annotations, pairs(&[]));
    assert_eq!(mode(&now), Mode::Observe);
    let (now, _) = now.set_live([("mode".into(), "enforce".into())].into()).expect("fine");
    assert_eq!(mode(&now), Mode::Enforce, "the owner insists");

    // What was good once is kept instead.
    let (live, _) = layers(&bad[..1]).hear(Source::Annotations, pairs(&[("limit", "fivehundred")]));
    assert_eq!((limit(&live), mode(&live)), (Some(100), Mode::Enforce));

    for bad in [
        [("TIDEGATE_LIMIT", "100"), ("TIDEGATE_TEMPLATE_ANNOTATIONS", "{")],
        [("TIDEGATE_LIMIT", "100"), ("TIDEGATE_CEILINGS", "limit=5")],
        [("TIDEGATE_LIMIT", "100"), ("TIDEGATE_QUEUE_LENGTH", "-1")],
        [("TIDEGATE_LIMIT", "100"), ("TIDEGATE_LIMIT_8080", "many")],
    ] {
        let start = layers(&bad);
        assert_eq!((limit(&start), mode(&start)), (Some(100), Mode::Observe), "{bad:?}");
        assert_eq!(start.remarks().len(), 1, "{:?}", start.remarks());
    }
}

#[test]
fn words_of_another_version_are_said_and_passed_over() {
    let start = layers(&[
        ("TIDEGATE_LIMIT", "5"),
        ("TIDEGATE_FROM_THE_FUTURE", "yes"),
        (
            "TIDEGATE_TEMPLATE_ANNOTATIONS",
            r#"{"from-the-future":{"a":[1]},"queue-length":7,"sidecar-x":"1"}"#,
        ),
        ("TIDEGATE_CEILINGS", r#"{"from-the-future":"1","limit":"500"}"#),
    ]);
    assert_eq!((limit(&start), mode(&start)), (Some(5), Mode::Enforce));
    let expected = [("operator", "unknown"), ("template", "unknown"), ("ceilings", "unknown")];
    assert_eq!(reasons(&start), expected);
    assert_eq!(start.resolve().expect("fine").ports[0].gate.queue_length, 7);
}

#[test]
fn nobody_goes_beyond_the_ceilings_and_that_is_said() {
    let ceilings = [(
        "TIDEGATE_CEILINGS",
        r#"{"limit":"500","queue-length":"50","idle-timeout":"1m","mode":"off"}"#,
    )];
    let start = layers(&ceilings);
    assert_eq!(
        (limit(&start), start.resolve().expect("fine").ports[0].conn.idle_timeout),
        (None, None)
    );
    assert_eq!(reasons(&start), [("ceilings", "invalid")], "a mode has no ceiling");
    for asked in ["501", "none"] {
        let (now, config) = start.hear(Source::Annotations, pairs(&[("limit", asked)]));
        assert_eq!(config.ports[0].gate.queue_length, 50, "what follows from a rule, too");
        assert_eq!(
            origin(&now, "limit"),
            ("500".into(), format!("ceiling; annotation asks for {asked}"))
        );
        assert!(reasons(&now).contains(&("annotations", "clamped")));
    }
    let (now, _) =
        start.set_live([("limit".into(), "999".into())].into()).expect("clamped, not refused");
    assert_eq!(limit(&now), Some(500));
    assert!(reasons(&now).contains(&("live", "clamped")));
}

#[test]
fn a_port_is_called_by_the_applications_number_too() {
    let (now, _) =
        layers(&[]).hear(Source::Annotations, pairs(&[("limit.3000", "4"), ("limit", "9")]));
    assert_eq!((limit(&now), now.remarks()), (Some(4), vec![]));
}

#[test]
fn enforcing_nothing_is_observing() {
    let (now, _) = layers(&[]).hear(Source::Annotations, pairs(&[("mode", "enforce")]));
    assert_eq!((mode(&now), reasons(&now)), (Mode::Observe, vec![("annotations", "unused")]));
    now.set_live([("queue-length".into(), "5".into())].into()).expect("is not held up by it");
}

#[test]
fn only_what_leaves_nothing_to_serve_is_an_error() {
    for listen in ["nonsense", "127.0.0.1:8080=127.0.0.1:8080"] {
        let environment = [("TIDEGATE_LISTEN", listen), ("TIDEGATE_TEMPLATE_ANNOTATIONS", "{}")];
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        Layers::from_cli(&cli::Run::default(), environment).expect_err("nothing to serve");
    }
    layers(&[
        ("TIDEGATE_WATCH_OWN_POD", "true"),
        ("TIDEGATE_LIMIT_9999", "5"),
        ("TIDEGATE_WORKERS", "0"),
    ]);
}

#[test]
fn the_config_map_is_yaml_with_the_same_words() {
    let text = |text: &str| of_config_file(&files::Look::Text(text.into()));
    let (now, _) = layers(&[]).hear(
        Source::Namespace,
        text("limit: 5\nports: {8080: {limit: 6}}\nlimit.9090: 3\nqueue-length: x\n"),
    );
    assert_eq!(limit(&now), Some(6));
    let said = now.remarks()[0].to_string();
    assert!(said.contains("queue-length \"x\" (ConfigMap, key _all, line 4)"), "{said}");
    for broken in ["limit: [", "- limit", "ports: {8080: 5}", "limit: 1\nlimit: 2"] {
        let (now, _) = now.hear(Source::Namespace, text(broken));
        assert_eq!(
            (limit(&now), reasons(&now)),
            (Some(6), vec![("namespace", "unreadable")]),
            "{broken}"
        );
    }
    let (off, config) = now.hear(Source::Namespace, text("mode: off\nlimit: 6\n"));
    assert_eq!(
        (mode(&off), config.ports[0].gate.mode, reasons(&off)),
        (Mode::Off, Mode::Off, vec![])
    );
    let (now, _) = now.hear(Source::Namespace, of_config_file(&files::Look::Absent));
    assert_eq!((limit(&now), reasons(&now)), (None, vec![]));
}

/// One edit: which source, which keys say what.
fn edit() -> impl Strategy<Value = (usize, Vec<(String, String)>)> {
    let name = prop::sample::select(vec![
        "limit",
        "limit.8080",
        "queue-length",
        "queue-length.8080",
        "limmit",
    ]);
    let text = prop::sample::select(vec!["1", "7", "30", "none", "x", "", "-1", "1000001"]);
    let pairs = prop::collection::btree_map(name, text, 0..4);
    let owned = |(name, text): (&str, &str)| (name.to_owned(), text.to_owned());
    (0..4usize, pairs.prop_map(move |pairs| pairs.into_iter().map(owned).collect()))
}

/// As the documentation says it, written without looking at the code: each source remembers per key.
#[derive(Default)]
struct Model([BTreeMap<String, String>; 4]);

impl Model {
    fn hear(&mut self, source: usize, said: &[(String, String)]) {
        let good = |name: &str, text: &str| match (name.split('.').next(), text) {
            (Some("limit"), "none") => true,
            (Some("limit" | "queue-length"), text) => matches!(text, "1" | "7" | "30"),
            _ => false,
        };
        let before = std::mem::take(&mut self.0[source]);
        for (name, text) in said {
            if good(name, text) {
                self.0[source].insert(name.clone(), text.clone());
            } else if let Some(last) = before.get(name) {
                self.0[source].insert(name.clone(), last.clone());
            }
        }
    }

    fn says(&self, key: &str) -> Option<u32> {
        let found = self
            .0
            .iter()
            .rev()
            .find_map(|said| said.get(&format!("{key}.8080")).or_else(|| said.get(key)));
        found?.parse().ok()
    }
}

proptest! {
    #[test]
    fn what_is_in_force_is_what_was_last_valid(edits in prop::collection::vec(edit(), 1..30)) {
        let sources = [Source::Template, Source::Namespace, Source::Workload, Source::Annotations];
        let (mut now, mut model) = (layers(&[]), Model::default());
        for (source, said) in edits {
            let pairs = said.iter().map(|(name, text)| Pair {
                name: name.clone(),
                text: text.clone(),
                line: None,
            });
            // The template is said once in the life of a pod: its later words could not be told from edits.
            let source = source.max(1);
            let (changed, config) = now.hear(sources[source], Ok(pairs.collect()));
            model.hear(source, &said);
            let gate = &config.ports[0].gate;
            let expected = model.says("limit");
            prop_assert_eq!(gate.limit.map(std::num::NonZeroU32::get), expected);
            let queue = model.says("queue-length").unwrap_or(expected.unwrap_or(0).max(16));
            prop_assert_eq!(gate.queue_length, queue);
            now = changed;
        }
    }
}

#[test]
fn what_the_operator_does_not_allow_is_not_heeded_and_said() {
    let now = layers(&[
        ("TIDEGATE_LIMIT", "1"),
        ("TIDEGATE_ALLOWED_ANNOTATIONS", "queue-length, mode"),
        ("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"limit":"2"}"#),
    ]);
    assert_eq!(limit(&now), Some(1));
    for source in [Source::Namespace, Source::Workload, Source::Annotations] {
        let (now, _) = now.hear(source, pairs(&[("limit.8080", "3"), ("mode", "observe")]));
        assert_eq!((limit(&now), mode(&now)), (Some(1), Mode::Observe));
        assert!(reasons(&now).contains(&(source.label(), "unused")), "{:?}", reasons(&now));
    }
    for nothing in ["", "none", " , "] {
        let now = layers(&[
            ("TIDEGATE_LIMIT", "1"),
            ("TIDEGATE_ALLOWED_ANNOTATIONS", nothing),
            ("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"limit":"2"}"#),
        ]);
        let (now, _) = now.hear(Source::Annotations, pairs(&[("limit", "3")]));
        assert_eq!(limit(&now), Some(1), "{nothing:?}");
    }
    let all = layers(&[
        ("TIDEGATE_ALLOWED_ANNOTATIONS", "*"),
        ("TIDEGATE_TEMPLATE_ANNOTATIONS", r#"{"limit":"2"}"#),
    ]);
    assert_eq!(limit(&all), Some(2));
}
