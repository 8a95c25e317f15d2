//! The documents say what the code says. `UPDATE_README=1 cargo test --test documents` writes the
//! README's tables of settings and of annotations anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- settings: written by UPDATE_README=1 cargo test --test documents -->\n";
const END: &str = "<!-- end of settings -->";
const BEGIN_ANNOTATIONS: &str =
    "<!-- annotations: written by UPDATE_README=1 cargo test --test documents -->\n";
const END_ANNOTATIONS: &str = "<!-- end of annotations -->";

#[test]
fn the_readme_has_the_table_of_settings() {
    holds_table(BEGIN, END, &tidegate::settings::settings_table());
}

#[test]
fn the_readme_has_the_table_of_annotations() {
    holds_table(BEGIN_ANNOTATIONS, END_ANNOTATIONS, &tidegate::inject::annotations_table());
}

fn holds_table(begin: &str, end: &str, table: &str) {
    // Two tests write the same file.
    static WRITING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _writing = WRITING.lock();
    let readme = read("README.md");
    let (before, rest) =
        readme.split_once(begin).expect("README.md has the marker before the table");
    let (found, after) = rest.split_once(end).expect("README.md has the marker after the table");
    if found == table {
        return;
    }
    if std::env::var_os("UPDATE_README").is_some() {
        return fs::write(path("README.md"), [before, begin, table, end, after].concat())
            .expect("README.md can be written");
    }
    let first = table.lines().zip(found.lines()).find(|(ours, theirs)| ours != theirs);
    panic!(
        "README.md shows another table than the code; UPDATE_README=1 cargo test --test documents\n{first:?}"
    );
}

/// Promises name the tests that prove them: `strict::a_storm_under_a_changing_limit` is that function
/// in tests/it/strict.rs or a directory there, tests/strict.rs, tests/loom/strict.rs, src/strict.rs or
/// src/strict/mod.rs.
#[test]
fn every_test_that_is_named_exists() {
    let mut missing = BTreeSet::new();
    let mut named = 0;
    for document in ["README.md", "ARCHITECTURE.md", "SECURITY.md"] {
        let text = read(document);
        for (module, test) in text.split('`').filter_map(|code| code.split_once("::")) {
            let is_name = |s: &str| {
                !s.is_empty()
                    && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            if !is_name(module) || !is_name(test) {
                continue;
            }
            named += 1;
            let files = [
                format!("tests/it/{module}.rs"),
                format!("tests/it/http/{module}.rs"),
                format!("tests/it/capture/{module}.rs"),
                format!("tests/it/live/{module}.rs"),
                format!("tests/it/pod/{module}.rs"),
                format!("tests/{module}.rs"),
                format!("tests/loom/{module}.rs"),
                format!("src/{module}.rs"),
                format!("src/{module}/mod.rs"),
            ];
            let exists = files
                .iter()
                .filter_map(|file| fs::read_to_string(path(file)).ok())
                .any(|code| code.contains(&format!("fn {test}(")));
            if !exists {
                missing.insert(format!("{document}: `{module}::{test}`"));
            }
        }
    }
    assert!(named > 20, "only {named} tests are named: this test does not find them");
    assert!(missing.is_empty(), "no such test:\n{missing:#?}");
}

/// Files that the documents name in backticks or link to.
#[test]
fn every_file_that_is_named_exists() {
    let mut missing = BTreeSet::new();
    for document in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md"]
    {
        let text = read(document);
        let linked =
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        let named = text.split('`').filter(|code| {
            ["src/", "tests/", "bench/", "benches/"].iter().any(|dir| code.starts_with(dir))
        });
        for file in linked.filter(|link| !link.contains("://")).chain(named) {
            let is_path = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
            // What is hidden is made here and not kept: tests/apps/.venv.
            if is_path && !file.contains("/.") && !path(file).exists() {
                missing.insert(format!("{document}: {file}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such file:\n{missing:#?}");
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}
