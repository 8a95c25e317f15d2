//! What the kernel says about a process, and signals to it.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a child's pid is not 0");
    kill_process(pid, signal).expect("the child has not been reaped");
}

/// To one that somebody else reaps, perhaps at this moment.
pub(crate) fn signal_if_there(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("no process has the pid 0");
    let sent = kill_process(pid, signal);
    assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "{sent:?}");
}

/// Whether every thread of it has been stopped.
pub(crate) fn stands(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
}

pub(crate) fn open_fds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Threads of its own. The kernel's io_uring workers are listed too; the first one stays for good.
pub(crate) fn threads(pid: u32) -> usize {
    let names = thread_names(pid);
    names.iter().filter(|name| !name.starts_with("iou-wrk")).count()
}

pub(crate) fn thread_names(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// The names of the threads and of what is open, for a message.
pub(crate) fn details(pid: u32) -> String {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let open: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    format!("threads {:?}, open {open:?}", thread_names(pid))
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
    ticks(&stat)
}

/// The same of those of its threads whose names are wanted.
pub(crate) fn cpu_ticks_of(pid: u32, wanted: impl Fn(&str) -> bool) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs").flatten();
    let stats = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        wanted(name.trim()).then(|| ticks(&stat))
    });
    stats.sum()
}

fn ticks(stat: &str) -> u64 {
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
