//! Files of the Python packages that `tests/apps/setup` has installed.

use std::path::{Path, PathBuf};

/// A file of a package; `None` when `tests/apps/setup` has not run.
pub(crate) fn file(path: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/.venv");
    let versions = std::fs::read_dir(venv.join("lib")).ok()?.flatten();
    let mut places = versions.map(|python| python.path().join("site-packages").join(path));
    places.find(|place| place.exists() && venv.join("done").exists())
}
