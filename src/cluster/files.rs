//! Files that others change under our hands, as the kubelet does (a symbolic link `..data` is swapped), as
//! `mv` does, or an editor in place.
//!
//! inotify says when to look; a slow poll is the net under it, and all there is where it is denied: its
//! instances are counted per user, and all sidecars of a node are the same user.
//!
//! Always true: a file counts once it has been read twice alike, [`SETTLE`] apart, so that nobody's
//! half-written file does; what is read is bounded; what is no plain file is never opened to be read, so
//! that a pipe cannot hold us up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Absent,
    /// This.
    Text(String),
    /// Something that cannot be used, to be read after the path.
    Unusable(String),
}

/// Files that are watched. The directory a file is in may come later, too.
#[derive(Debug)]
pub struct Files {
    files: Vec<(PathBuf, Look)>,
    inotify: Option<AsyncFd<OwnedFd>>,
    /// Directories, and the numbers inotify has given them.
    watched: BTreeMap<PathBuf, i32>,
    /// Something has happened that has not been looked at yet.
    unseen: bool,
    next_poll: Instant,
    poll: Duration,
}

/// A change is made of several steps within milliseconds.
const SETTLE: Duration = Duration::from_millis(30);

/// The net: changes that inotify does not tell, such as of a directory that did not exist.
const POLL: Duration = Duration::from_secs(2);

/// Without inotify.
const POLL_ALONE: Duration = Duration::from_millis(500);

/// Of annotations Kubernetes allows 256 KiB, which quotation can make four times as much; of a ConfigMap
/// 1 MiB.
const MOST: u64 = 1 << 20;

/// The name the kubelet swaps.
const SWAPPED: &str = "..data";

/// What is there now.
pub fn look(path: &Path) -> Look {
    match read(path) {
        Ok(look) => look,
        // A part of the path that is no directory is as absent as one that is not there.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Look::Absent
        }
        Err(error) => Look::Unusable(format!("cannot be read: {error}")),
    }
}

fn read(path: &Path) -> io::Result<Look> {
    let unusable = |problem: &str| Ok(Look::Unusable(problem.to_owned()));
    // Opening a pipe would wait for whoever writes to it.
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return unusable("is no file");
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return unusable("is larger than 1 MiB");
    }
    String::from_utf8(bytes).map_or_else(|_| unusable("is not UTF-8"), |text| Ok(Look::Text(text)))
}

impl Files {
    /// Watch these. `seen`: what was there when somebody looked last; what is different by now is a change.
    pub fn new(seen: Vec<(PathBuf, Look)>) -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let inotify = inotify.map_err(io::Error::from).and_then(register);
        if let Err(error) = &inotify
            && !seen.is_empty()
        {
            tracing::info!(%error, "no inotify: files with settings are looked at twice a second");
        }
        let inotify = inotify.ok();
        let poll = if inotify.is_some() { POLL } else { POLL_ALONE };
        let watched = BTreeMap::new();
        Self { files: seen, inotify, watched, unseen: true, next_poll: Instant::now(), poll }
    }

    /// The next changes: which file, by its place in the list, and what it is now. May be dropped at any
    /// time and asked again.
    pub async fn changed(&mut self) -> Vec<(usize, Look)> {
        if self.files.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            if !self.unseen {
                self.something().await;
                self.unseen = true;
            }
            // Before looking: what changes from here on is told.
            self.watch_directories();
            let first: Vec<_> = self.files.iter().map(|(path, _)| look(path)).collect();
            if first.iter().zip(&self.files).all(|(now, (_, seen))| now == seen) {
                self.unseen = false;
                continue;
            }
            sleep(SETTLE).await;
            let mut changes = Vec::new();
            let mut settled = true;
            for (at, (before, (path, seen))) in first.into_iter().zip(&mut self.files).enumerate() {
                let now = look(path);
                if now != before {
                    settled = false;
                } else if now != *seen {
                    seen.clone_from(&now);
                    changes.push((at, now));
                }
            }
            self.unseen = !settled;
            if !changes.is_empty() {
                return changes;
            }
        }
    }

    /// Until there is a reason to look.
    async fn something(&mut self) {
        let poll = self.next_poll;
        loop {
            let told = async {
                match &self.inotify {
                    Some(inotify) => inotify.readable().await.map(|mut ready| {
                        let told = self.is_told(inotify.get_ref());
                        ready.clear_ready();
                        told
                    }),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = told => match told {
                    Ok(false) => {}
                    Ok(true) => return,
                    // It cannot be asked any more; the poll is left.
                    Err(_) => { self.inotify = None; self.poll = POLL_ALONE; return }
                },
                () = sleep_until(poll) => {
                    self.next_poll = Instant::now() + self.poll;
                    return;
                }
            }
        }
    }

    /// Read what inotify tells, and whether it is about us.
    fn is_told(&self, inotify: &OwnedFd) -> bool {
        let mut memory = [MaybeUninit::<u8>::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut memory);
        let mut ours = false;
        // Until it says that there are no more.
        while let Ok(event) = events.next() {
            ours |= event.file_name().is_none_or(|name| {
                let name = name.to_bytes();
                name == SWAPPED.as_bytes()
                    || self.files.iter().any(|(path, _)| is_called(path, name))
            });
        }
        ours
    }

    /// Where it exists, watch the directory each file is in; it may have been replaced by another.
    fn watch_directories(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        for (path, _) in &self.files {
            let directory = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => continue,
            };
            let before = self.watched.get(directory).copied();
            let now = inotify::add_watch(inotify.get_ref(), directory, flags).ok();
            if before == now {
                continue;
            }
            if let Some(before) = before {
                // Gone already, unless the directory was only moved away.
                let _ = inotify::remove_watch(inotify.get_ref(), before);
                self.watched.remove(directory);
            }
            if let Some(now) = now {
                self.watched.insert(directory.to_owned(), now);
            }
        }
    }
}

/// Have the runtime watch it.
#[allow(unsafe_code, reason = "tokio asks for a promise that the descriptor stays open")]
fn register(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns its descriptor and moves into the AsyncFd, which never gives it out: it stays open,
    // and the same, until the AsyncFd is dropped.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}

fn is_called(path: &Path, name: &[u8]) -> bool {
    path.file_name().is_some_and(|own| own.as_encoded_bytes() == name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Swaps `..data`, as the kubelet does.
    fn swap(dir: &Path, turn: usize, name: &str, text: &str) {
        let data = dir.join(format!("..2026_11_22_20_00_00.{turn:010}"));
        fs::create_dir(&data).expect("a new directory");
        fs::write(data.join(name), text).expect("written");
        symlink(data.file_name().expect("it has one"), dir.join("..data_tmp")).expect("linked");
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("swapped");
        let _ = symlink(format!("..data/{name}"), dir.join(name));
    }

    async fn next(files: &mut Files) -> Vec<(usize, Look)> {
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, files.changed()).await.expect("a change is seen")
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let later = dir.path().join("later");
        let path = dir.path().join("annotations");
        let mut files =
            Files::new(vec![(path.clone(), Look::Absent), (later.join("_all"), Look::Absent)]);
        assert!(files.inotify.is_some(), "inotify works here");
        for turn in 0..3 {
            let text = format!("a=\"{turn}\"");
            swap(dir.path(), turn, "annotations", &text);
            assert_eq!(next(&mut files).await, [(0, Look::Text(text))]);
        }
        fs::remove_file(&path).expect("removed");
        assert_eq!(next(&mut files).await, [(0, Look::Absent)]);
        fs::write(&path, "in place").expect("written");
        assert_eq!(next(&mut files).await, [(0, Look::Text("in place".into()))]);
        fs::write(dir.path().join("new"), "renamed").expect("written");
        fs::rename(dir.path().join("new"), &path).expect("renamed");
        assert_eq!(next(&mut files).await, [(0, Look::Text("renamed".into()))]);
        fs::create_dir(&later).expect("created");
        fs::write(later.join("_all"), "mode: off").expect("written");
        assert_eq!(next(&mut files).await, [(1, Look::Text("mode: off".into()))]);
    }

    #[tokio::test]
    async fn without_inotify_the_poll_sees_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("annotations");
        let mut files = Files::new(vec![(path.clone(), Look::Absent)]);
        (files.inotify, files.poll) = (None, POLL_ALONE);
        fs::write(&path, "here").expect("written");
        assert_eq!(next(&mut files).await, [(0, Look::Text("here".into()))]);
    }

    #[test]
    fn what_is_no_text_of_a_sensible_size_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("binary"), [0xff, 0xfe, 0]).expect("written");
        fs::write(at("huge"), vec![b' '; MOST as usize + 1]).expect("written");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), 0o600.into()).expect("made");
        symlink("loop", at("loop")).expect("linked");
        for name in ["binary", "huge", "pipe", "loop", "."] {
            assert!(matches!(look(&at(name)), Look::Unusable(_)), "{name}: {:?}", look(&at(name)));
        }
        for name in ["nothing", "binary/below"] {
            assert_eq!(look(&at(name)), Look::Absent, "{name}");
        }
        fs::write(at("full"), vec![b' '; MOST as usize]).expect("written");
        assert!(matches!(look(&at("full")), Look::Text(_)));
    }
}
