//! Settings that change while the gateway serves: what files and the API server say is heard here, and put
//! in force. On the control plane's runtime; traffic meets none of it but new limits.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::admin::OwnPod;
use crate::cluster::files::{Files, Look};
use crate::cluster::{self, Views};
use crate::config::{Layers, Said, Source, of_annotations, of_annotations_file, of_config_file};
use crate::telemetry::control;

use super::running::{Running, differing};

/// Events of the watch that nobody has taken yet; it waits for us, and the API server for it.
const WAITING: usize = 16;

/// Follow whatever there is to follow, for as long as the process serves.
pub(super) async fn follow(running: Arc<Running>) {
    let places = running.lock().layers.places();
    let mut sources: Vec<_> = places.config;
    sources.extend(places.annotations.map(|path| (Source::Annotations, path)));
    // What was read before the start is read once more: it may have changed since.
    let files = sources.iter().map(|(_, path)| (path.clone(), Look::Absent)).collect();
    let mut files = Files::new(files);
    let (tell, mut events) = mpsc::channel(WAITING);
    if let Some(own) = places.watch {
        *running.own_pod() = Some(OwnPod::default());
        spawn_local(cluster::pod::watch(own, tell.clone()));
    }
    let mut views = Views::default();
    loop {
        let due = views.due();
        let doubtful = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changes = files.changed() => for (at, look) in changes {
                running.file_changed(sources[at].0, &look, &mut views);
            },
            // We hold a sender, too: it never ends.
            Some(event) = events.recv() => running.told(event, &mut views),
            () = doubtful => {
                views.settle(Instant::now());
                running.annotations_are(&views);
            }
        }
    }
}

impl Running {
    fn file_changed(&self, source: Source, look: &Look, views: &mut Views) {
        if source != Source::Annotations {
            return self.hear(source, of_config_file(look));
        }
        match of_annotations_file(look) {
            Ok(Some(annotations)) => views.file_says(annotations, Instant::now()),
            // A pod always has its file; where there is a watch, it knows better.
            Ok(None) if self.own_pod().is_some() => return,
            Ok(None) => views.file_says(cluster::Annotations::default(), Instant::now()),
            Err(problem) => return self.hear(source, Err(problem)),
        }
        self.annotations_are(views);
    }

    fn told(&self, event: cluster::pod::Event, views: &mut Views) {
        use cluster::pod::Event::{Annotations, Away, Deleted, Watching};
        match event {
            Watching => {
                tracing::info!("the pod is watched");
                self.watch_is(|watch| {
                    watch.watching = true;
                    watch.error = None;
                });
            }
            Away(failure) => self.watch_is(|watch| {
                let error = failure.to_string();
                // The same trouble again is no news.
                if watch.error.as_ref() != Some(&error) {
                    tracing::warn!(reason = failure.label(), "the pod is not watched: {error}");
                }
                watch.watching = false;
                watch.error = Some(error);
                *watch.failures.entry(failure.label()).or_default() += 1;
            }),
            Annotations(annotations) => {
                views.watch_says(annotations, Instant::now());
                self.annotations_are(views);
            }
            Deleted { left } => self.pod_is_deleted(left),
        }
    }

    fn watch_is(&self, change: impl FnOnce(&mut OwnPod)) {
        if let Some(watch) = self.own_pod().as_mut() {
            change(watch);
        }
    }

    /// The one place where a deletion that was seen begins a drain.
    fn pod_is_deleted(&self, left: Duration) {
        self.watch_is(|watch| watch.deleted = true);
        if self.life.deleted(Instant::now() + left) {
            let seconds = left.as_secs_f64();
            tracing::info!(seconds, "the pod is being deleted; draining within what is left");
        }
    }

    fn annotations_are(&self, views: &Views) {
        self.hear(Source::Annotations, Ok(of_annotations(views.current())));
    }

    /// Put in force what a source says, as far as it can be.
    fn hear(&self, source: Source, said: Said) {
        let mut settings = self.lock();
        if settings.layers.has_said(source, &said) {
            return;
        }
        let change = control::Change::by(source.label());
        let (layers, config) = settings.layers.hear(source, said);
        let keys = differing(&settings.layers.describe(), &layers.describe());
        let remarks = layers.remarks();
        say_what_is_new(&settings.layers, &layers);
        let failed = remarks.iter().any(|r| r.source == source && r.trouble.is_failure());
        let counted = match source {
            Source::Annotations => &mut settings.changes.annotations,
            _ => &mut settings.changes.namespace,
        };
        counted[usize::from(failed)] += 1;
        self.put_in_force(&config);
        settings.layers = layers;
        settings.config = config;
        if !failed {
            settings.last_success = SystemTime::now();
        }
        if !keys.is_empty() {
            tracing::info!(source = source.label(), ?keys, "settings changed");
        }
        if failed { change.refused(&keys) } else { change.applied(&keys) }
    }
}

/// A line for everything that does not hold as it was written, when it is new.
pub(super) fn say_what_is_new(before: &Layers, after: &Layers) {
    let (before, after) = (before.remarks(), after.remarks());
    say(after.iter().filter(|remark| !before.contains(remark)));
    if after.is_empty() && !before.is_empty() {
        tracing::info!("all settings hold as they are written");
    }
}

/// A line for each.
pub(super) fn say<'a>(remarks: impl Iterator<Item = &'a crate::config::Remark>) {
    for remark in remarks {
        let (source, reason) = (remark.source.label(), remark.trouble.label());
        if remark.trouble.is_failure() {
            tracing::warn!(source, reason, "setting not used, the last good one stays: {remark}");
        } else {
            tracing::warn!(source, reason, "setting does not hold as written: {remark}");
        }
    }
}
