//! What the kernel says about a process, and signals to it.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a child's pid is not 0");
    kill_process(pid, signal).expect("the child has not been reaped");
}

pub(crate) fn open_fds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// The names of the threads and of what is open, for a message.
pub(crate) fn details(pid: u32) -> String {
    let entries =
        |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).into_iter().flatten().flatten();
    let threads =
        entries("task").filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    let threads: Vec<_> = threads.map(|name| name.trim().to_owned()).collect();
    let open: Vec<_> = entries("fd").filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    format!("threads {threads:?}, open {open:?}")
}

/// Resident memory in bytes.
pub(crate) fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a running process has VmRSS") * 1024
}

/// CPU time used so far, user and system, in clock ticks of 10 ms.
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, after_name) = stat.rsplit_once(") ").expect("stat has a name in brackets");
    let fields: Vec<&str> = after_name.split(' ').collect();
    [11, 12].iter().map(|&at| fields[at].parse::<u64>().expect("ticks")).sum()
}

/// Whether a program is installed.
pub(crate) fn installed(program: &str) -> bool {
    if program.contains('/') {
        return fs::exists(program).unwrap_or(false);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(program).exists())
}
