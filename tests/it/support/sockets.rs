//! The kernel's socket table: the last word on how many connections an application has (P1).
//!
//! `/proc/net/tcp` is not a snapshot: while it is read, connections come and go. So a connection counts
//! only when it is in two readings that follow each other; all of those were there at once, at the
//! moment the first reading ended. Short-lived ones are missed; the oracle counts these itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Who a socket is, so that a new one with the same ports is not taken for the old one.
type Identity = (String, u64);

/// The connections whose local port is `port` and whose end towards the gateway is not closed:
/// established or half-closed by the peer, and half-closed by the application while it keeps the socket.
pub(crate) fn open_at(port: u16) -> HashSet<Identity> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| {
            let lines = table.lines().skip(1);
            let open = lines.filter_map(|line| open_socket(line, port));
            open.collect::<Vec<_>>()
        })
        .collect()
}

fn open_socket(line: &str, port: u16) -> Option<Identity> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, peer, state, inode) = (
        fields.get(1)?,
        fields.get(2)?,
        fields.get(3)?,
        fields.get(9)?,
    );
    let (_, local_port) = local.rsplit_once(':')?;
    let inode: u64 = inode.parse().ok()?;
    let open = match *state {
        "01" | "08" => true, // ESTABLISHED, CLOSE_WAIT: also those not yet accepted
        "04" | "05" => inode != 0, // FIN_WAIT: only while a process holds it
        _ => false,
    };
    (open && u16::from_str_radix(local_port, 16).ok()? == port).then(|| (peer.to_string(), inode))
}

/// Samples the table in its own thread until dropped.
pub(crate) struct Watch {
    peak: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(port: u16) -> Self {
        let peak = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (peak, stop) = (Arc::clone(&peak), Arc::clone(&stop));
            move || {
                let mut before = open_at(port);
                while !stop.load(Ordering::Relaxed) {
                    let now = open_at(port);
                    let together = before.intersection(&now).count();
                    peak.fetch_max(together, Ordering::Relaxed);
                    before = now;
                    std::thread::sleep(Duration::from_micros(500)); // leave the cores to the gateway
                }
            }
        });
        Self {
            peak,
            stop,
            thread: Some(thread),
        }
    }

    /// The most that were there at once.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
