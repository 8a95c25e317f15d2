//! What the kubelet does for a container's settings: a volume whose files are exchanged all at once, and the
//! downward API's file of annotations.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A mounted volume.
pub(crate) struct Volume(tempfile::TempDir);

impl Volume {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The volume has these files and no others from now on.
    pub(crate) fn put(&self, files: &[(&str, &str)]) {
        put(self.path(), files);
    }
}

/// The volume mounted from `dir` has these files and no others from now on, in the kubelet's steps: a new
/// directory, the link `..data` renamed onto the old one, links for people, what is gone and the old directory
/// removed.
pub(crate) fn put(dir: &Path, files: &[(&str, &str)]) {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let name = format!("..2026_11_22_20_00_00.{turn:010}");
    fs::create_dir(dir.join(&name)).expect("a new directory");
    for (file, text) in files {
        fs::write(dir.join(&name).join(file), text).expect("written");
    }
    let old = fs::read_link(dir.join("..data")).ok();
    symlink(&name, dir.join("..data_tmp")).expect("linked");
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("swapped");
    for (file, _) in files {
        let _ = symlink(format!("..data/{file}"), dir.join(file)); // it may be there
    }
    if let Some(old) = old {
        for entry in fs::read_dir(dir.join(&old)).expect("the old directory").flatten() {
            let gone = entry.file_name();
            if files.iter().all(|(file, _)| *gone != **file) {
                fs::remove_file(dir.join(gone)).expect("removed");
            }
        }
        fs::remove_dir_all(dir.join(old)).expect("removed");
    }
}

/// The file of the downward API: `strconv.Quote` of Go, sorted by key, no newline at the end.
pub(crate) fn annotations(all: &BTreeMap<String, String>) -> String {
    let quoted = |text: &str| {
        let escaped = text.chars().map(|c| match c {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            '\t' => "\\t".to_owned(),
            c if c.is_ascii_control() => format!("\\x{:02x}", c as u32),
            c => c.to_string(),
        });
        format!("\"{}\"", escaped.collect::<String>())
    };
    let lines: Vec<_> = all.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}
