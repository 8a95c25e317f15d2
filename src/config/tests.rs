//! The settings from end to end: what somebody writes, and what holds or what is said about it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use clap::Parser;

use super::*;
use crate::limit::Mode;

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:8080=127.0.0.1:3000"];

fn run(flags: &[&str]) -> cli::Run {
    let typed = ["tidegate", "run"].iter().chain(flags);
    match cli::Cli::try_parse_from(typed).expect("clap accepts it").command {
        cli::Command::Run(run) => run,
        _ => unreachable!("`run` was typed"),
    }
}

fn layers(flags: &[&str], environment: &[(&str, &str)]) -> Result<Layers, Mistakes> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    Layers::from_cli(&run(flags), environment)
}

fn config(flags: &[&str], environment: &[(&str, &str)]) -> Config {
    let layers = layers(flags, environment).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    layers.resolve().expect("checked")
}

/// The mistakes, one string each.
fn mistakes(flags: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    let found = layers(flags, environment).expect_err("mistakes");
    found.iter().map(ToString::to_string).collect()
}

fn with_listen<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    LISTEN.into_iter().chain(flags.iter().copied()).collect()
}

fn changes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn limit(config: &Config, port: usize) -> Option<u32> {
    config.ports[port].gate.limit.map(std::num::NonZeroU32::get)
}

/// A file and its path, deleted when the test ends.
fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), text).expect("written");
    let path = file.path().to_str().expect("ascii").to_owned();
    (file, path)
}

#[test]
fn nothing_said_means_observe() {
    let config = config(&LISTEN, &[]);
    let gate = &config.ports[0].gate;
    assert_eq!((gate.mode, gate.limit, gate.queue_length), (Mode::Observe, None, 16));
    assert_eq!(gate.queue_timeout, Duration::from_secs(1));
    let shadows: Vec<_> = gate.shadow_limits.iter().map(|n| n.get()).collect();
    assert_eq!(shadows, [25, 50, 100, 200, 400]);
    assert_eq!(config.admin, paths::DEFAULT_ADMIN);
    assert_eq!(config.workers.get(), 1);
    assert!(config.max_connections > 0);
    assert_eq!(config.drain.drain_timeout, None);
}

#[test]
fn a_limit_means_enforce_with_a_queue_of_its_size() {
    let gate = |flags: &[&str]| config(&with_listen(flags), &[]).ports[0].gate.clone();
    assert_eq!(
        (gate(&["--limit", "5"]).mode, gate(&["--limit", "5"]).queue_length),
        (Mode::Enforce, 16)
    );
    assert_eq!(gate(&["--limit", "500"]).queue_length, 500);
    assert_eq!(gate(&["--limit", "500", "--queue-length", "0"]).queue_length, 0);
    assert_eq!(gate(&["--limit", "5"]).shadow_limits.len(), 0);
    assert_eq!(gate(&["--limit", "5", "--shadow-limits", "9"]).shadow_limits.len(), 1);
    assert_eq!(gate(&["--limit", "5", "--mode", "observe"]).mode, Mode::Observe);
    assert_eq!(gate(&["--per-client-limit", "2", "--mode", "enforce"]).mode, Mode::Enforce);
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let (_file, path) = file("limit: 1\nqueue-timeout: 1s\nidle-timeout: 1m\n");
    let config = config(
        &with_listen(&["--config", &path, "--limit", "3"]),
        &[("TIDEGATE_LIMIT", "2"), ("TIDEGATE_QUEUE_TIMEOUT", "2s"), ("HOME", "/root")],
    );
    assert_eq!(limit(&config, 0), Some(3));
    assert_eq!(config.ports[0].gate.queue_timeout, Duration::from_secs(2));
    assert_eq!(config.ports[0].conn.idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(config.ports[0].conn.connect_timeout, Duration::from_secs(1));
}

#[test]
fn a_mode_is_a_word_in_the_file_too() {
    let (_file, path) = file("limit: 1\nmode: off\nvia: true\n");
    let config = config(&with_listen(&["--config", &path]), &[]);
    assert_eq!(config.ports[0].gate.mode, Mode::Off);
}

#[test]
fn a_port_has_its_own_settings() {
    let two = ["--listen", "127.0.0.1:8081=127.0.0.1:3000", "--limit", "5", "--limit", "8081=7"];
    assert_eq!(
        [0, 1].map(|port| limit(&config(&with_listen(&two), &[]), port)),
        [Some(5), Some(7)]
    );
    let by_environment = config(&with_listen(&two[..2]), &[("TIDEGATE_LIMIT_8081", "9")]);
    assert_eq!([0, 1].map(|port| limit(&by_environment, port)), [None, Some(9)]);

    let said = mistakes(&with_listen(&["--limit", "9999=7"]), &[]);
    assert_eq!(said, ["limit.9999 \"7\" (flag) is about port 9999, but we listen on 8080"]);
}

#[test]
fn the_file_has_listeners_and_sections() {
    let (_file, path) = file(
        "listen:\n  - {address: \"127.0.0.1:8080\", app: \"127.0.0.1:3000\"}\n  - 127.0.0.1:8081=unix:/run/app.sock\n\
         limit.8081: 4\nports:\n  8080:\n    limit: 5\n    shadow-limits: [10, 20]\nsend-proxy-protocol: true\n",
    );
    let config = config(&["--config", &path], &[]);
    assert_eq!([0, 1].map(|port| limit(&config, port)), [Some(5), Some(4)]);
    assert_eq!(config.ports[1].apps, [io::App::Unix("/run/app.sock".into())]);
    assert_eq!(config.ports[0].gate.shadow_limits.len(), 2);
    assert!(config.ports[0].conn.send_proxy_protocol);

    let (_file, path) = file("listen: {\"127.0.0.1:8080\": \"127.0.0.1:3000\"}\n");
    assert_eq!(self::config(&["--config", &path], &[]).ports.len(), 1);
}

#[test]
fn all_mistakes_of_all_layers_are_in_one_error() {
    let (_file, path) =
        file("limit: 0\nqueue-lenght: 5\nfrobnicate: 1\nports: {8080: {grace: 5s}}\n");
    let said = mistakes(
        &[
            "--config",
            &path,
            "--listen",
            "nonsense",
            "--listen",
            "127.0.0.1:8080=/run/app.sock",
            "--queue-timeout",
            "5",
        ],
        &[("TIDEGATE_WORKERS", "0"), ("TIDEGATE_LIMITS", "5")],
    );
    let all = said.join("\n");
    for part in [
        "limit \"0\"",
        "line 1) must be an integer from 1 to 1000000, or `none`",
        "queue-lenght",
        "frobnicate",
        "grace.8080",
        "nonsense",
        "is `unix:` missing?",
        "queue-timeout \"5\" (flag) has no unit",
        "workers \"0\" (environment TIDEGATE_WORKERS) must be an integer from 1 to 64, or `auto`",
        "limits (environment TIDEGATE_LIMITS) is no setting; did you mean `limit`?",
    ] {
        assert!(all.contains(part), "{part:?} is not in:\n{all}");
    }
    assert_eq!(said.len(), 9, "{all}");
}

#[test]
fn every_bad_value_is_refused_from_every_layer() {
    for bad in ["0", "-1", "1e9", "NaN", "", "1000001", "99999999999999999999"] {
        assert_eq!(mistakes(&with_listen(&["--limit", bad]), &[]).len(), 1, "flag {bad}");
        assert_eq!(mistakes(&LISTEN, &[("TIDEGATE_LIMIT", bad)]).len(), 1, "environment {bad}");
        let (_file, path) = file(&format!("limit: {bad}\n"));
        assert_eq!(mistakes(&with_listen(&["--config", &path]), &[]).len(), 1, "file {bad}");
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let mut typed = run(&LISTEN);
    let key = crate::settings::find("limit").expect("a key");
    typed.settings.0.push((key, OsString::from_vec(vec![0xff])));
    let environment = vec![("TIDEGATE_QUEUE_LENGTH".into(), OsString::from_vec(vec![0x35, 0xfe]))];
    let said = Layers::from_cli(&typed, environment).expect_err("not UTF-8").to_string();
    assert_eq!(said.matches("is not UTF-8").count(), 2, "{said}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().to_str().expect("ascii");
    assert!(mistakes(&with_listen(&["--config", dir]), &[])[0].contains("is a directory"));
    let missing = format!("{dir}/no.yaml");
    assert!(mistakes(&with_listen(&["--config", &missing]), &[])[0].contains("cannot be read"));
    let (_file, broken) = file("limit: [1\n");
    assert!(mistakes(&with_listen(&["--config", &broken]), &[])[0].contains("not YAML"));
    let (_file, list) = file("- limit\n");
    assert!(mistakes(&with_listen(&["--config", &list]), &[])[0].contains("mapping"));
    let (_file, twice) = file("limit: 1\nlimit: 2\n");
    assert_eq!(mistakes(&with_listen(&["--config", &twice]), &[]).len(), 1);
    let (_file, empty) = file("");
    config(&with_listen(&["--config", &empty]), &[]);
}

#[test]
fn addresses_that_collide_or_come_back_are_refused() {
    assert!(mistakes(&[], &[])[0].contains("is missing"));
    for listen in [
        "127.0.0.1:8080=127.0.0.1:8080",
        "0.0.0.0:8080=127.0.0.1:8080",
        "[::]:8080=127.0.0.1:8080",
        "0.0.0.0:8080=localhost:8080",
        "127.0.0.1:8080=127.0.0.1:15820",
        "127.0.0.1:8080=127.0.0.1:15822",
    ] {
        let said = mistakes(&["--listen", listen], &[]);
        assert_eq!(said.len(), 1, "{listen}: {said:?}");
        assert!(said[0].contains("forward to itself"), "{said:?}");
    }
    let said = mistakes(&with_listen(&["--listen", "0.0.0.0:8080=127.0.0.1:1"]), &[]);
    assert!(said[0].contains("collides"), "{said:?}");
    let said = mistakes(&with_listen(&["--probe", "127.0.0.1:8080"]), &[]);
    assert!(said[0].contains("collides"), "{said:?}");
    // Port 0 is whatever is free.
    config(
        &["--listen", "127.0.0.1:0=127.0.0.1:3000", "--listen", "127.0.0.1:0=127.0.0.1:3000"],
        &[],
    );
}

#[test]
fn enforcing_nothing_is_a_mistake() {
    let said = mistakes(&with_listen(&["--mode", "enforce"]), &[]);
    assert_eq!(
        said,
        ["mode.8080 \"enforce\" (flag) needs a `limit` or a `per-client-limit` to enforce"]
    );
}

#[test]
fn variables_of_a_kubernetes_service_are_not_ours() {
    config(
        &LISTEN,
        &[
            ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
            ("TIDEGATE_SERVICE_PORT_HTTP", "80"),
            ("TIDEGATE_PORT", "tcp://10.0.0.1:80"),
            ("TIDEGATE_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("TIDEGATE_LIMIT_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ],
    );
    let by_environment =
        config(&[], &[("TIDEGATE_LISTEN", "127.0.0.1:1=127.0.0.1:3, 127.0.0.1:2=127.0.0.1:3")]);
    assert_eq!(by_environment.ports.len(), 2);
}

#[test]
fn live_changes_are_all_or_nothing() {
    let two = ["--listen", "127.0.0.1:8081=127.0.0.1:3000", "--limit", "5"];
    let start = layers(&with_listen(&two), &[]).expect("fine");
    let wrong =
        changes(&[("limit", "7"), ("queue-length", "-1"), ("engine", "epoll"), ("limit.99", "1")]);
    let said = start.set_live(wrong).expect_err("three mistakes").to_string();
    assert!(said.contains("engine \"epoll\" (live change) needs a restart"), "{said}");
    assert!(said.contains("queue-length \"-1\""), "{said}");
    assert_eq!(limit(&start.resolve().expect("fine"), 0), Some(5));

    let (one, config) =
        start.set_live(changes(&[("limit.8081", "9"), ("limit", "7")])).expect("fine");
    assert_eq!([0, 1].map(|port| limit(&config, port)), [Some(7), Some(9)]);
    let (all, config) = one.set_live(changes(&[("limit", "8")])).expect("fine");
    assert_eq!([0, 1].map(|port| limit(&config, port)), [Some(8), Some(8)], "the later word wins");
    let (_, config) = all.set_live(changes(&[("limit", "default")])).expect("fine");
    assert_eq!([0, 1].map(|port| limit(&config, port)), [Some(5), Some(5)], "taken back");
    start.set_live(changes(&[("limit.99", "1")])).expect_err("no such port");
    for text in ["info", "default"] {
        let said =
            start.set_live(changes(&[("log-level.8081", text)])).expect_err("no such setting");
        assert!(said.to_string().contains("belongs to the process"), "{said}");
    }
}

#[test]
fn the_file_can_be_read_again() {
    let text = "listen: [\"127.0.0.1:8080=127.0.0.1:3000\"]\nlimit: 5\n";
    let (handle, path) = file(text);
    let start = layers(&["--config", &path], &[]).expect("fine");
    fs::write(handle.path(), text.replace('5', "6")).expect("written");
    let (again, config) = start.reread_file().expect("fine");
    assert_eq!(limit(&config, 0), Some(6));

    fs::write(handle.path(), text.replace("3000", "3001") + "workers: 2\nlimits: 1\n")
        .expect("written");
    let said = again.reread_file().expect_err("three mistakes").to_string();
    assert!(said.contains("limits"), "{said}");
    assert!(said.contains("workers \"2\""), "{said}");
    fs::write(handle.path(), text.replace("3000", "3001")).expect("written");
    let said = again.reread_file().expect_err("a restart").to_string();
    assert!(said.contains("listen") && said.contains("needs a restart"), "{said}");
}

#[test]
fn what_is_in_force_says_who_said_so() {
    let start =
        layers(&with_listen(&["--limit", "8080=20"]), &[("TIDEGATE_GRACE", "60s")]).expect("fine");
    let find = |key: &str| {
        let setting = start.describe().into_iter().find(|setting| setting.key == key);
        setting.map(|s| (s.port, s.value, s.origin)).expect("every key is described")
    };
    assert_eq!(find("limit"), (Some(8080), "20".into(), "flag".into()));
    assert_eq!(find("grace"), (None, "60s".into(), "environment TIDEGATE_GRACE".into()));
    assert_eq!(find("queue-length"), (Some(8080), "20".into(), "default: max(limit, 16)".into()));
    assert_eq!(find("drain-timeout").1, "52s");
    assert_eq!(find("mode").1, "enforce");
    assert_eq!(find("admin").2, "default");
    for key in crate::settings::KEYS {
        assert!(!find(key.name).1.is_empty(), "{}", key.name);
    }
}

#[test]
fn the_admin_default_is_the_tables() {
    assert_eq!(config(&LISTEN, &[]).admin, admin_address([]));
}
