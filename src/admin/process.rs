//! What the kernel knows of this process and of its network, read from /proc when asked: the
//! `process_*` metrics every exporter has, and the losses of listening sockets.

use std::{fmt, fs};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::exposition::{Families, Labels};

/// This process, now. What cannot be read is left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) threads: u64,
    pub(super) start_time_seconds: f64,
    pub(super) open_fds: u64,
    pub(super) max_fds: Option<u64>,
}

/// What the kernel did with connections to listening sockets of this network namespace (in a pod: of
/// the pod), since the namespace exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// The backlog of the listener was full.
    pub(super) listen_overflows: u64,
    /// For whatever reason, that one among them.
    pub(super) listen_drops: u64,
}

impl Network {
    /// Read /proc/net.
    pub(super) fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/net/netstat").ok()?)
    }

    /// Lines come in pairs, names over numbers.
    fn parse(text: &str) -> Option<Self> {
        let mut of_tcp = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, numbers) = (of_tcp.next()?, of_tcp.next()?);
        let named = |wanted: &str| {
            let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
            pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
        };
        Some(Self {
            listen_overflows: named("ListenOverflows")?,
            listen_drops: named("ListenDrops")?,
        })
    }
}

/// The kernel's connection tracking, which redirected connections need: when its table is full, new
/// connections are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tracking {
    /// Entries of this network namespace.
    pub(super) entries: u64,
    /// How many there may be.
    pub(super) most: u64,
}

impl Tracking {
    /// Read /proc/sys/net/netfilter, where there is one.
    pub(super) fn now() -> Option<Self> {
        let number = |name: &str| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        Some(Self { entries: number("count")?, most: number("max")? })
    }
}

impl Process {
    /// Read /proc/self.
    pub(crate) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may contain spaces; proc(5) counts fields from 1, and state, the
        // first after the name, is the third.
        let after_name = stat.rsplit_once(')')?.1;
        let fields: Vec<u64> =
            after_name.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            start_time_seconds: boot_time()? as f64 + field(22)? as f64 / ticks,
            resident_bytes: field(24)? * page_size() as u64,
            // The directory that is being read is one of them.
            open_fds: (fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1),
            max_fds: getrlimit(Resource::Nofile).current,
        })
    }

    /// As every exporter shows it.
    pub(crate) fn encode(self, out: &mut Families<'_>) -> fmt::Result {
        out.counters("process_cpu_seconds", "CPU time used", one(self.cpu_seconds))?;
        out.gauges("process_resident_memory_bytes", "Memory in use", one(self.resident_bytes))?;
        out.gauges("process_open_fds", "Open descriptors", one(self.open_fds))?;
        if let Some(max) = self.max_fds {
            out.gauges("process_max_fds", "Descriptors that may be open", one(max))?;
        }
        out.gauges(
            "process_start_time_seconds",
            "When the process started",
            one(self.start_time_seconds),
        )?;
        out.gauges("process_threads", "Threads", one(self.threads))
    }
}

fn one<V>(value: V) -> Vec<(Labels, V)> {
    vec![(Labels::new(), value)]
}

fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_plausible() {
        let process = Process::now().expect("/proc is mounted");
        assert!(process.resident_bytes > 100_000);
        assert!(process.threads >= 1);
        assert!(process.open_fds >= 3);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let age = now.expect("after 1970").as_secs_f64() - process.start_time_seconds;
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
    }

    #[test]
    fn the_kernels_losses_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops New\nTcpExt: 1 2 3 4\n\
                    IpExt: ListenDrops\nIpExt: 9\n";
        let expected = Network { listen_overflows: 2, listen_drops: 3 };
        assert_eq!(Network::parse(text), Some(expected));
        assert_eq!(Network::parse("TcpExt: ListenDrops\nTcpExt: 3\n"), None);
        assert!(Network::now().is_some());
    }
}
