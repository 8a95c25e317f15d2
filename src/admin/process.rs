//! The `process_*` metrics every exporter has, read from /proc when asked.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// This process, now. What cannot be read is left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) threads: u64,
    pub(super) start_time_seconds: f64,
    pub(super) open_fds: u64,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// Read /proc/self.
    pub(super) fn now() -> Option<Self> {
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
}
