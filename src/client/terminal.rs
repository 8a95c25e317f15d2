//! The terminal that `tidegate status --watch` draws on: its second screen, so that what was there comes
//! back; no cursor; and keys that are read as they are pressed.
//!
//! Always true: whatever ends the watch, a panic too, the terminal is as it was when this is dropped;
//! and it is while the watch is stopped (Ctrl-Z).

use std::io::{self, IsTerminal, Read, Write};
use std::thread;

use rustix::process::{self, Signal};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc;

/// What whoever watches wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// No more.
    End,
    /// All of it anew: the terminal has another size, or is ours again.
    Redraw,
}

/// Who watches, and on what.
pub(super) struct Watcher {
    /// `None`: what is written goes to a file or another program.
    screen: Option<SecondScreen>,
    keys: mpsc::Receiver<u8>,
    end: [unix::Signal; 3],
    stop: unix::Signal,
    size: unix::Signal,
}

/// The terminal while it is ours.
struct SecondScreen {
    /// How keys were read before, if they come from a terminal.
    before: Option<Termios>,
}

const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

impl Watcher {
    /// `drawing`: on a terminal, in place.
    pub(super) fn new(drawing: bool) -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        let stop = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
        let size = signal(SignalKind::window_change())?;
        let (pressed, keys) = mpsc::channel(16);
        let screen = drawing.then(SecondScreen::enter).transpose()?;
        if screen.as_ref().is_some_and(|screen| screen.before.is_some()) {
            thread::Builder::new().name("keys".into()).spawn(move || read_keys(&pressed))?;
        }
        Ok(Self { screen, keys, end: [interrupt?, terminate?, hangup?], stop, size })
    }

    /// Waits until there is one.
    pub(super) async fn wish(&mut self) -> Wish {
        let [interrupt, terminate, hangup] = &mut self.end;
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Wish::End,
                _ = terminate.recv() => return Wish::End,
                _ = hangup.recv() => return Wish::End,
                _ = self.size.recv() => return Wish::Redraw,
                _ = self.stop.recv() => {
                    let drawing = self.screen.take().is_some();
                    // Goes on when somebody continues us.
                    let _ = process::kill_process(process::getpid(), Signal::STOP);
                    self.screen = drawing.then(SecondScreen::enter).and_then(Result::ok);
                    return Wish::Redraw;
                }
                Some(key) = self.keys.recv() => {
                    if matches!(key, b'q' | b'Q') {
                        return Wish::End;
                    }
                }
            }
        }
    }
}

/// Ends with the process, or when nobody listens any more.
fn read_keys(pressed: &mpsc::Sender<u8>) {
    for key in io::stdin().lock().bytes() {
        let Ok(key) = key else { return };
        if pressed.blocking_send(key).is_err() {
            return;
        }
    }
}

impl SecondScreen {
    fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = if stdin.is_terminal() { Some(termios::tcgetattr(&stdin)?) } else { None };
        let screen = Self { before };
        if let Some(before) = &screen.before {
            let mut modes = before.clone();
            // Signals still come from Ctrl-C and Ctrl-Z.
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            termios::tcsetattr(&stdin, OptionalActions::Now, &modes)?;
        }
        write(ENTER)?;
        Ok(screen)
    }
}

impl Drop for SecondScreen {
    fn drop(&mut self) {
        // A terminal that has gone has nothing to be put back.
        let _ = write(LEAVE);
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn write(control: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(control)?;
    out.flush()
}
