//! Bad input: every mistake is named, in one message, with exit code 78; nothing is started (T50).

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::probes::ask;
use crate::support::gateway::{Setup, binary};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, run, until};

const APP: &str = "127.0.0.1:1";

/// Starts with these flags and expects one message, code 78, that has every one of `words`.
#[track_caller]
fn refused(flags: &[(&str, &str)], words: &[&str]) {
    let setup = Setup::new(Engine::Epoll, APP);
    let setup = flags.iter().fold(setup, |setup, (key, value)| setup.set(key, value));
    let (status, log) = setup.start_in_vain();
    assert_eq!(status.code(), Some(78), "{flags:?}: {log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in the message for {flags:?}:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() <= 8 + 2 * flags.len(), "short, not the whole help:\n{log}");
}

/// T50: numbers that cannot be meant.
#[test]
fn limits_that_cannot_be_meant() {
    run(Engine::Epoll, |_| {
        for limit in ["0", "-1", "1e9", "1000000000000", "NaN", "", "five", "4.5"] {
            refused(&[("limit", limit)], &["limit"]);
        }
        refused(&[("queue-length", "-1")], &["queue-length"]);
        refused(&[("queue-length", "NaN")], &["queue-length"]);
        refused(&[("per-client-limit", "0")], &["per-client-limit"]);
        refused(&[("max-connections", "0")], &["max-connections"]);
        refused(&[("workers", "0")], &["workers"]);
        refused(&[("shadow-limits", "1,two,3")], &["shadow-limits", "two"]);
    });
}

/// T50: durations that cannot be meant.
#[test]
fn durations_that_cannot_be_meant() {
    run(Engine::Epoll, |_| {
        for duration in ["-1s", "soon", "5", "NaNs", "1e99s"] {
            refused(&[("queue-timeout", duration)], &["queue-timeout"]);
        }
        refused(&[("connect-timeout", "0s")], &["connect-timeout"]);
    });
}

/// Words that are not one of the choices: the message lists the choices.
#[test]
fn choices_that_do_not_exist() {
    run(Engine::Epoll, |_| {
        refused(&[("mode", "enforced")], &["mode", "enforce", "observe", "off"]);
        refused(&[("engine", "kqueue")], &["engine", "auto", "epoll", "uring"]);
        refused(&[("tcp-refuse", "politely")], &["tcp-refuse", "close", "reset", "hold"]);
        refused(&[("queued-half-close", "maybe")], &["queued-half-close", "gone", "keep"]);
    });
}

/// A flag nobody knows is named.
#[test]
fn an_unknown_flag() {
    run(Engine::Epoll, |_| refused(&[("limmit", "5")], &["limmit"]));
}

/// Addresses that are none.
#[test]
fn bad_addresses() {
    run(Engine::Epoll, |_| {
        for listen in [
            "127.0.0.1:0",
            "127.0.0.1=127.0.0.1:80",
            "nonsense",
            "127.0.0.1:99999=127.0.0.1:80",
            "=",
            ":0=127.0.0.1:",
        ] {
            let setup = Setup::without_port(Engine::Epoll).set("listen", listen);
            let (status, log) = setup.start_in_vain();
            assert_eq!(status.code(), Some(78), "{listen}: {log}");
            assert!(log.contains("listen"), "{listen}: {log}");
        }
        refused(&[("metrics", "nowhere")], &["metrics", "nowhere"]);
    });
}

/// Two mistakes, one message.
#[test]
fn every_mistake_at_once() {
    run(Engine::Epoll, |_| {
        let flags = [("limit", "0"), ("queue-timeout", "soon"), ("metrics", "nowhere")];
        refused(&flags, &["limit", "queue-timeout", "soon", "metrics"]);
    });
}

/// A port that is taken: said with the address, and nothing else is left running.
#[test]
fn a_port_in_use() {
    run(Engine::Epoll, |_| {
        let oracle = Oracle::start(Script::Work);
        let taken = oracle.address;
        for engine in [Engine::Epoll, Engine::Uring] {
            let setup = Setup::without_port(engine).set("listen", format!("{taken}={APP}"));
            let (status, log) = setup.start_in_vain();
            assert!(status.code().is_some_and(|code| code != 0), "{status}");
            assert!(log.contains(&taken.to_string()), "{log}");
            assert!(log.to_lowercase().contains("in use"), "{log}");
        }
    });
}

/// A settings file that is missing, cannot be read, is no YAML, or has a key nobody knows.
#[test]
fn bad_files() {
    run(Engine::Epoll, |_| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("writes");
            path.to_str().expect("UTF-8").to_owned()
        };
        let missing = dir.path().join("missing.yaml");
        let missing = missing.to_str().expect("UTF-8");
        refused(&[("config", missing)], &[missing]);
        let directory = dir.path().to_str().expect("UTF-8"); // root may read any file, but not a directory
        refused(&[("config", directory)], &[directory]);
        refused(&[("config", &file("bad.yaml", "limit: [1"))], &["bad.yaml"]);
        refused(&[("config", &file("unknown.yaml", "limmit: 5\n"))], &["unknown.yaml", "limmit"]);
        refused(&[("config", &file("zero.yaml", "limit: 0\n"))], &["limit"]);
        let both = file("two.yaml", "queue-timeout: soon\n");
        refused(&[("config", &both), ("limit", "0")], &["queue-timeout", "limit"]);
    });
}

/// The environment uses the same words; a mistake in it names the variable.
#[test]
fn a_bad_environment() {
    run(Engine::Epoll, |_| {
        let run = Command::new(binary())
            .args([
                "run",
                "--listen",
                &format!("127.0.0.1:0={APP}"),
                "--control",
                "/tmp/never.sock",
            ])
            .env("TIDEGATE_QUEUE_LENGTH", "many")
            .output()
            .expect("runs");
        let log = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(78), "{log}");
        assert!(log.contains("TIDEGATE_QUEUE_LENGTH") || log.contains("queue-length"), "{log}");
    });
}

/// A live change that cannot be meant is refused; the last good value stays.
#[test]
fn a_bad_live_change() {
    run(Engine::Epoll, |_| {
        let oracle = Oracle::start(Script::Work);
        let gateway = Setup::new(Engine::Epoll, oracle.address).set("limit", 3).start();
        for body in [
            r#"{"limit":"0"}"#,
            r#"{"limit":"many"}"#,
            r#"{"limmit":"5"}"#,
            r#"{"limit":"5","queue-timeout":"soon"}"#, // all or nothing
            r#"{"limit.1":"5"}"#,                      // no such port
            r#"{"workers":"2"}"#,                      // needs a restart
            "not json",
            "",
        ] {
            let reply = gateway.call("POST", "/set", body);
            assert!((400..500).contains(&reply.code), "{body}: {} {}", reply.code, reply.body);
            assert_eq!(gateway.port().limit, Some(3), "after {body}");
        }
        gateway.assert_clean();
    });
}

/// SIGHUP reads the file again; a file that cannot be used changes nothing, and it goes on serving.
#[test]
fn a_file_is_read_again() {
    run(Engine::Epoll, |engine| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("tidegate.yaml");
        let write = |text: &str| std::fs::write(&file, text).expect("writes");
        write("limit: 3\nqueue-length: 5\n");
        let oracle = Oracle::start(Script::Work);
        let setup = Setup::new(engine, oracle.address);
        let gateway = setup.set("config", file.display()).start();
        assert_eq!(gateway.port().limit, Some(3));
        write("limit: 7\nqueue-length: 5\n");
        gateway.signal(Signal::HUP);
        until("the new limit holds", SOON, || gateway.port().limit == Some(7));
        let before = gateway.log().len();
        write("limmit: 9\n");
        gateway.signal(Signal::HUP);
        until("it says what is wrong", SOON, || gateway.log()[before..].contains("limmit"));
        assert_eq!(gateway.port().limit, Some(7), "the last good settings stay");
        let face = gateway.status().probe;
        assert_eq!(ask(face, "GET /readyz", "").0, 200, "and it is no reason not to be ready");
        gateway.assert_clean();
    });
}

/// Flags win over the environment, the environment over the file.
#[test]
fn the_nearer_setting_wins() {
    run(Engine::Epoll, |engine| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("tidegate.yaml");
        std::fs::write(&file, "limit: 3\nqueue-length: 33\nper-client-limit: 30\n")
            .expect("writes");
        let setup = Setup::new(engine, "127.0.0.1:1").set("config", file.display());
        let launcher = ["env", "TIDEGATE_LIMIT=4", "TIDEGATE_QUEUE_LENGTH=44"];
        let gateway = setup.through(&launcher).set("limit", 5).start();
        let port = gateway.port();
        assert_eq!((port.limit, port.queue_length), (Some(5), 44));
    });
}

/// The command line does what the control socket does: `set`, `status`, `drain --wait`.
#[test]
fn the_command_line_changes_and_shows() {
    run(Engine::Epoll, |_| {
        let oracle = Oracle::start(Script::Work);
        let mut gateway = Setup::new(Engine::Epoll, oracle.address).set("limit", 3).start();
        let control = gateway.control();
        let tidegate = |words: &[&str]| {
            let run = Command::new(binary()).args(words).arg("--control").arg(&control).output();
            let run = run.expect("runs");
            let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
            (run.status.code(), said.into_owned())
        };
        assert_eq!(tidegate(&["set", "limit=7", "queue-timeout=200ms"]).0, Some(0));
        assert_eq!(gateway.port().limit, Some(7));
        let (code, said) = tidegate(&["set", "limit=0"]);
        assert!(code != Some(0) && said.contains("limit"), "{said}");
        let (code, said) = tidegate(&["status", "--json"]);
        assert_eq!(code, Some(0), "{said}");
        let status: serde_json::Value = serde_json::from_str(&said).expect("JSON alone");
        assert_eq!(status["ports"][0]["limit"], 7);
        let (code, said) = tidegate(&["drain", "--wait", "--timeout", "10s"]);
        assert_eq!(code, Some(0), "{said}");
        gateway.terminate(Duration::from_secs(3));
        let (code, _) = tidegate(&["drain", "--wait", "--timeout", "1s"]);
        assert_eq!(code, Some(0), "a hook never fails, even when the gateway has gone");
    });
}
