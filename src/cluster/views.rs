//! Two views of the same annotations, the kubelet's file and the API server's watch: which is the newer?
//!
//! Neither carries a time that can be compared with the other's. What is known: the watch runs ahead, the
//! file follows some 100 ms later and may skip steps, and the watch may stop without anybody noticing.
//!
//! Always true: what the API server says holds at once. What the file says holds at once, too, unless it
//! is something the watch has already said and taken back: then the file is only behind, and gets
//! [`BEHIND`] to catch up before it counts. So an edit is never undone by its own echo, and a watch that
//! has died hides a change for no longer than that.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// A pod's annotations.
pub type Annotations = BTreeMap<String, String>;

/// How far the file may be behind the watch.
const BEHIND: Duration = Duration::from_secs(2);

/// How many steps of the watch are remembered: more than can be made in [`BEHIND`] is a script at play,
/// and the last one still wins.
const REMEMBERED: usize = 64;

/// Both views.
#[derive(Debug, Default)]
pub struct Views {
    /// What holds.
    current: Annotations,
    /// What the watch said and then took back.
    superseded: VecDeque<(Annotations, Instant)>,
    /// What the file says, that is probably old news, and when it counts all the same.
    doubtful: Option<(Annotations, Instant)>,
}

impl Views {
    /// What holds before anybody has spoken.
    pub fn new(current: Annotations) -> Self {
        Self { current, ..Self::default() }
    }

    /// The annotations that hold.
    pub fn current(&self) -> &Annotations {
        &self.current
    }

    /// The API server says so.
    pub fn watch_says(&mut self, seen: Annotations, now: Instant) {
        self.superseded.retain(|(_, at)| now.saturating_duration_since(*at) < BEHIND);
        if seen != self.current {
            self.superseded.truncate(REMEMBERED - 1);
            self.superseded.push_front((std::mem::replace(&mut self.current, seen), now));
        }
        // What the file said before this, the API server knew.
        self.doubtful = None;
    }

    /// The file says so.
    pub fn file_says(&mut self, seen: Annotations, now: Instant) {
        self.doubtful = None;
        if seen == self.current {
            return;
        }
        let echo = self
            .superseded
            .iter()
            .any(|(old, at)| *old == seen && now.saturating_duration_since(*at) < BEHIND);
        if echo {
            self.doubtful = Some((seen, now + BEHIND));
        } else {
            self.current = seen;
        }
    }

    /// When [`Views::settle`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.doubtful.as_ref().map(|(_, due)| *due)
    }

    /// What the file has said for so long that it cannot be old news holds.
    pub fn settle(&mut self, now: Instant) {
        if let Some((seen, _)) = self.doubtful.take_if(|(_, due)| *due <= now) {
            self.current = seen;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(value: &str) -> Annotations {
        [("limit".to_owned(), value.to_owned())].into()
    }

    #[test]
    fn an_edit_is_not_undone_by_its_echo() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut views = Views::new(limit("1"));
        views.watch_says(limit("2"), after(0));
        views.watch_says(limit("3"), after(50));
        views.file_says(limit("2"), after(100));
        assert_eq!(*views.current(), limit("3"), "the file is behind");
        views.file_says(limit("3"), after(150));
        assert_eq!((views.current(), views.due()), (&limit("3"), None));
    }

    #[test]
    fn a_watch_that_has_died_hides_nothing() {
        let start = Instant::now();
        let mut views = Views::new(limit("1"));
        views.watch_says(limit("2"), start);
        views.file_says(limit("2"), start);
        // Back to what the watch once said, and the watch says nothing any more.
        views.file_says(limit("1"), start + Duration::from_millis(500));
        let due = views.due().expect("it waits");
        assert!(due <= start + Duration::from_millis(500) + BEHIND);
        views.settle(due - Duration::from_millis(1));
        assert_eq!(*views.current(), limit("2"));
        views.settle(due);
        assert_eq!((views.current(), views.due()), (&limit("1"), None));
        // Something new counts at once, and so does what was said long ago.
        views.file_says(limit("9"), due);
        assert_eq!(*views.current(), limit("9"));
        views.file_says(limit("2"), start + BEHIND * 4);
        assert_eq!(*views.current(), limit("2"));
    }

    #[test]
    fn without_a_watch_the_file_holds_and_without_a_file_the_watch() {
        let start = Instant::now();
        let mut views = Views::default();
        for (at, value) in ["1", "2", "1", "2"].into_iter().enumerate() {
            views.file_says(limit(value), start);
            assert_eq!(*views.current(), limit(value), "step {at}");
        }
        for value in ["1", "2", "1"] {
            views.watch_says(limit(value), start);
            assert_eq!(*views.current(), limit(value));
        }
    }
}
