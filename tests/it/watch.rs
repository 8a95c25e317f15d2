//! `tidegate status --watch` on a real terminal: it draws, it follows what happens and how large the
//! terminal is, and leaves the terminal as it found it, however it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, LocalModes, Winsize};

use crate::support::gateway::{Gateway, Setup, binary};
use crate::support::ledger::Client;
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, Stopwatch, process, run, skip, until};

const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// A terminal, and a watch on it.
struct Watch {
    person: File,
    /// The program's side, to ask how it is set.
    line: OwnedFd,
    written: Arc<Mutex<String>>,
    child: Child,
}

impl Watch {
    fn start(gateway: &Gateway, columns: u16, rows: u16) -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&person).and_then(|()| unlockpt(&person)).expect("ours");
        let name = ptsname(&person, Vec::new()).expect("a name").into_string().expect("UTF-8");
        let line = File::options().read(true).write(true).open(name).expect("its other side");
        let person = File::from(person);
        resize(&person, columns, rows);
        let side = || Stdio::from(line.try_clone().expect("a handle"));
        // The terminal is its controlling one, so that keys and sizes become signals.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(binary()).args(["status", "--watch", "--control"]);
        command.arg(gateway.control()).env("LANG", "C.UTF-8").env("TERM", "xterm");
        command.env_remove("LC_ALL").env_remove("NO_COLOR");
        command.stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().expect("setsid runs");
        let written = Arc::<Mutex<String>>::default();
        let (mut from, kept) = (person.try_clone().expect("a handle"), written.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]);
                kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { person, line: line.into(), written, child }
    }

    fn resize(&self, columns: u16, rows: u16) {
        resize(&self.person, columns, rows);
    }

    fn written(&self) -> String {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lines of the last whole look, without colours.
    fn lines(&self) -> Vec<String> {
        let written = self.written();
        let Some((before, _)) = written.rsplit_once("\u{1b}[J") else { return Vec::new() };
        let frame = before.rsplit_once("\u{1b}[H").map_or(before, |(_, frame)| frame);
        frame.lines().map(|line| plain(line).trim_end().to_owned()).collect()
    }

    #[track_caller]
    fn shows(&self, what: &str) {
        until(what, SOON, || self.lines().concat().contains(what));
    }

    fn reads_keys(&self) -> bool {
        let modes = termios::tcgetattr(self.line.as_fd()).expect("a terminal").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn press(&mut self, keys: &[u8]) {
        self.person.write_all(keys).expect("pressed");
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, signal).expect("it runs");
    }

    /// It has ended well, and the terminal is as it was.
    #[track_caller]
    fn assert_gone(&mut self, why: &str) {
        let mut status = None;
        until(why, SOON, || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{why}: {status:?}");
        assert!(!self.reads_keys(), "{why}");
        until("the terminal is given back", SOON, || self.written().trim_end().ends_with(LEAVE));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    termios::tcsetwinsize(terminal, size).expect("a new size");
}

/// Without what colours it and moves the cursor.
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += part.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).get(1..).unwrap_or("");
    }
    text
}

#[test]
fn it_draws_follows_and_gives_the_terminal_back() {
    run(Engine::Epoll, |engine| {
        if !process::installed("setsid") {
            return skip("setsid is not installed");
        }
        let app = Oracle::start(Script::Echo);
        let mut gateway = Setup::new(engine, app.address).set("limit", 4).start();
        let mut watch = Watch::start(&gateway, 100, 30);
        watch.shows("0 of 4 in flight");
        assert!(watch.written().starts_with(ENTER), "{:?}", watch.written());
        assert!(watch.reads_keys());
        let is_wide = |lines: &[String]| lines.iter().any(|line| line.chars().count() > 45);
        assert!(is_wide(&watch.lines()), "{:#?}", watch.lines());

        let client = Client::connect(gateway.address).expect("it listens");
        watch.shows("1 of 4 in flight");
        watch.resize(40, 9);
        until("it fits", SOON, || {
            let lines = watch.lines();
            !lines.is_empty()
                && lines.len() < 9
                && lines.iter().all(|line| line.chars().count() < 40)
                && lines.concat().contains("1 of 4")
        });
        watch.resize(100, 30);
        until("there is room again", SOON, || is_wide(&watch.lines()));
        drop(client);

        // Stopped and continued, as by Ctrl-Z and fg.
        watch.signal(Signal::TSTP);
        until("it gives the terminal back while it is stopped", SOON, || {
            watch.written().ends_with(LEAVE) && !watch.reads_keys()
        });
        let so_far = watch.written().len();
        watch.signal(Signal::CONT);
        until("it takes the terminal again", SOON, || {
            watch.written()[so_far..].starts_with(ENTER) && watch.reads_keys()
        });
        watch.press(b"q");
        watch.assert_gone("q");

        let mut interrupted = Watch::start(&gateway, 80, 24);
        interrupted.shows("in flight");
        interrupted.press(b"\x03");
        interrupted.assert_gone("Ctrl-C");
        for signal in [Signal::TERM, Signal::HUP] {
            let mut ended = Watch::start(&gateway, 80, 24);
            ended.shows("in flight");
            ended.signal(signal);
            ended.assert_gone("a signal");
        }

        let mut alone = Watch::start(&gateway, 80, 24);
        alone.shows("in flight");
        gateway.signal(Signal::KILL);
        let _ = gateway.wait_exit(SOON);
        alone.shows("no answer");
        alone.shows("in flight"); // what was known last is still there
        alone.press(b"q");
        alone.assert_gone("q without a gateway");
    });
}

/// A gateway that takes the question and says nothing does not keep anybody from leaving.
#[test]
fn who_leaves_does_not_wait_for_an_answer() {
    run(Engine::Epoll, |engine| {
        if !process::installed("setsid") {
            return skip("setsid is not installed");
        }
        let app = Oracle::start(Script::Echo);
        let gateway = Setup::new(engine, app.address).start();
        let mut watch = Watch::start(&gateway, 80, 24);
        watch.shows("in flight");
        gateway.paused(|| {
            // Long enough for a question that is not answered.
            std::thread::sleep(Duration::from_millis(1500));
            watch.press(b"q");
            let start = Stopwatch::start();
            watch.assert_gone("q");
            assert!(start.own() < Duration::from_secs(3), "{start:?}");
        });
    });
}
