//! The house keeps its shape: who may import whom, and which words stay where.
//!
//! Every `src/**/*.rs` is read as words, without comments, texts and `#[cfg(test)]` items, and every
//! path in it is held against the two tables below. They are the rule; ARCHITECTURE.md shows the first.
//!
//! `make check` runs this. A breach reads `src/limit/gate.rs:12: …: the rule`.

#[path = "layers/paths.rs"]
mod paths;

use paths::Source;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A module, and the modules it may import, in layer order: nothing imports from further down.
const LAYERS: &[(&str, &[&str])] = &[
    ("outcome", &[]),
    ("escape", &[]),
    ("capture", &[]),
    ("journal", &["capture", "escape", "outcome"]),
    ("access", &["escape", "outcome"]),
    ("telemetry", &[]),
    // A drain is a span.
    ("lifecycle", &["telemetry"]),
    ("io", &[]),
    ("probes", &[]),
    ("metrics", &["outcome"]),
    ("limit", &["outcome"]),
    // Hands in what it records for traces; of capture only where a connection was going.
    (
        "conn",
        &[
            "access",
            "capture",
            "io",
            "journal",
            "lifecycle",
            "limit",
            "metrics",
            "outcome",
            "telemetry",
        ],
    ),
    ("worker", &["conn", "io", "lifecycle", "limit", "metrics"]),
    // Knows the API server and the kubelet's files, and no setting.
    ("cluster", &[]),
    // How many shadow limits the gate can try at once is the gate's to say; what a list of ports is, capture's.
    ("settings", &["capture", "limit"]),
    ("cli", &["settings"]),
    // Listens as the data plane does.
    ("admin", &["escape", "io", "journal", "lifecycle", "limit", "metrics", "outcome", "probes"]),
    // Shows the status as the admin page does.
    ("client", &["admin"]),
    // Judges annotations as settings; what a list of ports is, is capture's to say.
    ("inject", &["capture", "settings"]),
    ("manifest", &["inject"]),
    // Writes its metrics page as `admin` does.
    ("webhook", &["admin", "cluster", "inject", "io", "metrics"]),
    // Builds the Config of every module.
    (
        "config",
        &[
            "access",
            "admin",
            "capture",
            "cli",
            "cluster",
            "conn",
            "io",
            "lifecycle",
            "limit",
            "probes",
            "settings",
            "telemetry",
            "webhook",
        ],
    ),
    (
        "app",
        &[
            "admin",
            "capture",
            "cluster",
            "config",
            "conn",
            "io",
            "journal",
            "lifecycle",
            "limit",
            "metrics",
            "outcome",
            "probes",
            "settings",
            "telemetry",
            "worker",
        ],
    ),
    // Asks the machine what `run` would ask it.
    ("doctor", &["admin", "app", "capture", "cli", "client", "config", "io", "settings"]),
    // Runs the code of `run` in front of an application of its own.
    ("demo", &["app", "cli", "config", "io", "lifecycle", "outcome", "settings"]),
    (
        "main",
        &[
            "app",
            "capture",
            "cli",
            "client",
            "config",
            "demo",
            "doctor",
            "inject",
            "manifest",
            "settings",
            "telemetry",
            "webhook",
        ],
    ),
];

/// Paths that only some files may have.
struct Rule {
    /// Files the rule is about.
    within: &'static str,
    /// Files in which the paths are allowed all the same; each has to need it.
    except: &'static [&'static str],
    /// A path breaks the rule if one of these is part of it. A leading `::` means: at its beginning.
    paths: &'static [&'static str],
    /// Why.
    rule: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        within: "src/",
        except: &["src/config"],
        paths: &["::std::env", "env::var", "env::var_os", "env::vars", "env::vars_os"],
        rule: "only config reads the environment",
    },
    Rule {
        within: "src/",
        except: &["src/app", "src/demo"],
        paths: &["::anyhow"],
        rule: "an error has a small type where it happens; anyhow is for the top",
    },
    Rule {
        within: "src/limit/",
        except: &[],
        paths: &["Instant::now", "SystemTime::now", ".elapsed"],
        rule: "the gate has no clock: `now` is an argument",
    },
    Rule {
        within: "src/limit/",
        except: &[],
        paths: &[
            "::tokio",
            "::tokio_util",
            "::tokio_uring",
            "::io_uring",
            "::mio",
            "::hyper",
            "::socket2",
            "::rustix",
            "::libc",
            "::std::os",
            "::std::fs",
            "::std::thread",
            "net::TcpStream",
            "net::TcpListener",
            "net::UdpSocket",
        ],
        rule: "the gate has no socket, no runtime and no thread of its own",
    },
    Rule {
        within: "src/conn/",
        except: &[],
        paths: &["io::epoll", "io::uring", "io::probe", "Epoll", "Uring"],
        rule: "the story of a connection does not know which engine it runs on",
    },
    Rule {
        within: "src/conn/",
        except: &[],
        paths: &["capture::install", "capture::remove", "capture::Plan", "capture::try_rules"],
        rule: "rules are written beside the data plane; a connection only asks where it was going",
    },
    Rule {
        within: "src/conn/",
        except: &[],
        paths: &[
            "::tokio_uring",
            "tokio::spawn",
            "tokio::time",
            "tokio::net",
            "tokio::task::spawn_local",
        ],
        rule: "a connection spawns, sleeps and dials through its engine, which may bring a loop of its own",
    },
    Rule {
        within: "src/",
        except: &["src/io/", "src/capture/"],
        paths: &["::tokio_uring", "::io_uring", "::libc"],
        rule: "system calls that are only Linux's stay inside io and capture",
    },
];

/// Where `unsafe` may be written, and why there is no other way.
const UNSAFE: &[(&str, &str)] = &[
    ("src/cluster/files.rs", "as in io/epoll.rs, for inotify"),
    ("src/io/epoll.rs", "tokio registers a descriptor only against a promise that it stays open"),
    ("src/io/sock.rs", "SIOCOUTQ, SO_RCVLOWAT and TCP_INFO have no safe interface"),
    ("src/io/uring/buffers.rs", "memory that the kernel writes to has no safe interface"),
    ("src/io/uring/ring.rs", "a ring cannot know what the operations pushed to it point to"),
    ("src/io/uring/relay.rs", "msghdr, and descriptors whose owners the ring does not know"),
];

#[test]
fn imports_go_one_way() {
    check(breaches_of_layers);
}

#[test]
fn words_stay_where_they_belong() {
    check(|source| RULES.iter().flat_map(|rule| breaches_of_rule(source, rule)).collect());
}

#[test]
fn unsafe_stays_where_it_is_argued() {
    check(breaches_of_unsafe);
}

/// An exception that nobody needs any more would hide the next breach.
#[test]
fn every_exception_is_needed() {
    let sources = sources();
    for (file, _) in UNSAFE {
        let needed = sources.iter().any(|s| s.file == *file && !s.words("unsafe").is_empty());
        assert!(needed, "{file} needs no unsafe any more: take it out of UNSAFE");
    }
    for rule in RULES {
        // Those that are not built yet may come.
        let exceptions =
            rule.except.iter().filter(|e| sources.iter().any(|s| s.file.starts_with(**e)));
        for except in exceptions {
            let strict = Rule { within: except, except: &[], ..*rule };
            let needed = sources.iter().any(|s| !breaches_of_rule(s, &strict).is_empty());
            assert!(needed, "{except} needs no exception from “{}” any more", rule.rule);
        }
    }
}

/// The table itself goes one way: a module only names modules above it.
#[test]
fn the_table_is_in_layer_order() {
    for (at, (module, allowed)) in LAYERS.iter().enumerate() {
        for other in *allowed {
            let above = LAYERS[..at].iter().any(|(name, _)| name == other);
            assert!(above, "the table lets {module} import {other}, which is not above it");
        }
    }
}

#[test]
fn architecture_md_shows_this_table() {
    let text = read("ARCHITECTURE.md");
    for (module, allowed) in LAYERS {
        let row = match allowed {
            [] => format!("| `{module}` | nothing |"),
            some => format!("| `{module}` | {} |", some.join(", ")),
        };
        assert!(text.contains(&row), "ARCHITECTURE.md lacks this row of the import table:\n{row}");
    }
}

#[test]
fn a_breach_is_found_wherever_it_is_written() {
    for code in [
        "use crate::conn::Port;",
        "use crate::{outcome::Reason, conn::{self, Port}};",
        "use super::conn::Port;",
        "use super::{conn, outcome};",
        "fn f() -> crate::conn::Port { todo!() }",
        "pub use tidegate::conn as other;",
        "/* crate::x */ type P = &'static crate::conn::Port; // '",
        "use crate::*;",
        "use crate::unheard_of::Thing;",
    ] {
        let source = Source::new("src/limit/mod.rs", code);
        assert_eq!(breaches_of_layers(&source).len(), 1, "{code}");
    }
    let deeper = Source::new("src/limit/gate.rs", "\nuse super::super::conn;\nuse super::line;");
    let found = breaches_of_layers(&deeper);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("src/limit/gate.rs:2: `crate::conn`: limit may import outcome"),
        "{}",
        found[0]
    );
    let stranger = Source::new("src/unheard_of.rs", "");
    assert!(breaches_of_layers(&stranger)[0].contains("not in the table"));
}

#[test]
fn what_is_no_breach_is_left_alone() {
    let code = r##"
        //! `use crate::conn::Port;`
        use crate::limit::line;          // its own module
        use crate::outcome::{self, Reason as Why};
        pub(crate) fn f<'a>(quote: char) -> bool { quote == '"' || quote == '\'' }
        const TEXT: &str = "use crate::conn;\" use crate::conn;";
        const RAW: &str = r#"use crate::conn; " std::env::var"#;
        #[cfg(test)]
        mod tests { use crate::conn::Port; fn g() { let _ = std::time::Instant::now(); } }
        #[cfg(all(test, not(miri)))]
        use crate::conn;
    "##;
    let source = Source::new("src/limit/gate.rs", code);
    assert_eq!(breaches_of_layers(&source), [""; 0]);
    assert!(RULES.iter().all(|rule| breaches_of_rule(&source, rule).is_empty()));
    let not_a_test = Source::new("src/limit/gate.rs", "#[cfg(not(test))] use crate::conn;");
    assert_eq!(breaches_of_layers(&not_a_test).len(), 1);
}

#[test]
fn a_word_out_of_place_is_found() {
    for (file, code) in [
        ("src/conn/mod.rs", "fn f() { std::env::var(\"X\"); }"),
        ("src/conn/mod.rs", "use std::{env, io};"),
        ("src/conn/mod.rs", "use anyhow::Context;"),
        ("src/conn/mod.rs", "fn f() { anyhow::bail!(\"x\") }"),
        ("src/conn/mod.rs", "fn f() { tokio::time::sleep(d) }"),
        ("src/conn/mod.rs", "use crate::io::{Engine, uring::Uring};"),
        ("src/limit/gate.rs", "fn f() { let now = std::time::Instant::now(); }"),
        ("src/limit/gate.rs", "fn f() { let now = Instant::now(); }"),
        ("src/limit/gate.rs", "fn f() { since.elapsed() }"),
        ("src/limit/gate.rs", "use std::net::{IpAddr, TcpStream};"),
        ("src/limit/gate.rs", "use tokio::sync::Semaphore;"),
        ("src/worker.rs", "fn f() { libc::getpid() }"),
    ] {
        let source = Source::new(file, code);
        let found: Vec<_> = RULES.iter().flat_map(|rule| breaches_of_rule(&source, rule)).collect();
        assert!(!found.is_empty(), "{file}: {code}");
    }
    let source = Source::new("src/limit/gate.rs", "fn f() {\n    unsafe { g() }\n}");
    assert_eq!(
        breaches_of_unsafe(&source),
        ["src/limit/gate.rs:2: `unsafe`: only where tests/layers.rs says why"]
    );
}

fn breaches_of_layers(source: &Source) -> Vec<String> {
    let module = source.module();
    if module == "lib" {
        return Vec::new(); // it declares the modules
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{}: the module `{module}` is not in the table of tests/layers.rs",
            source.file
        )];
    };
    let may = match allowed {
        [] => "nothing of ours".to_owned(),
        some => some.join(", "),
    };
    let mut found = Vec::new();
    for path in &source.paths {
        let Some(imported) = source.imported(path) else { continue };
        if imported != module && !allowed.contains(&imported) {
            let what = format!("`crate::{imported}`: {module} may import {may}");
            found.push(source.at(path.line, &what));
        }
    }
    found.dedup(); // a tree has many paths
    found
}

fn breaches_of_rule(source: &Source, rule: &Rule) -> Vec<String> {
    let concerned = source.file.starts_with(rule.within);
    if !concerned || rule.except.iter().any(|except| source.file.starts_with(except)) {
        return Vec::new();
    }
    let broken = source.paths.iter().filter(|path| rule.paths.iter().any(|part| path.has(part)));
    broken.map(|path| source.at(path.line, &format!("`{path}`: {}", rule.rule))).collect()
}

fn breaches_of_unsafe(source: &Source) -> Vec<String> {
    if UNSAFE.iter().any(|(file, _)| source.file == *file) {
        return Vec::new();
    }
    let lines = source.words("unsafe").into_iter();
    lines.map(|line| source.at(line, "`unsafe`: only where tests/layers.rs says why")).collect()
}

/// Fails with all breaches at once.
fn check(breaches: impl Fn(&Source) -> Vec<String>) {
    let mut report = String::new();
    for line in sources().iter().flat_map(breaches) {
        writeln!(report, "{line}").expect("a String takes everything");
    }
    assert!(report.is_empty(), "\n{report}");
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    walk("src", &mut files);
    assert!(files.len() > 10, "the sources are not where this test looks for them");
    let sources: Vec<_> = files.iter().map(|file| Source::new(file, &read(file))).collect();
    // `#[cfg(test)] mod tests;` in a file of its own
    let tests: Vec<_> = sources.iter().flat_map(Source::test_files).collect();
    sources.into_iter().filter(|source| !tests.contains(&source.file)).collect()
}

fn walk(dir: &str, files: &mut Vec<String>) {
    let entries = fs::read_dir(root().join(dir)).expect("a directory of the package");
    for entry in entries {
        let entry = entry.expect("a readable directory");
        let path = format!("{dir}/{}", entry.file_name().to_str().expect("names are ASCII here"));
        if entry.file_type().expect("a file or a directory").is_dir() {
            walk(&path, files);
        } else if path.ends_with(".rs") {
            files.push(path);
        }
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
