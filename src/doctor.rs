//! `tidegate doctor`: what of this machine the gateway depends on, whether it is as it should be, and
//! what to do where it is not. Everything is tried or read; nothing is changed.
//!
//! Always true: every finding stands on its own; what cannot be read is said to be unknown, and is no
//! failure. `fail` is only what keeps the gateway from running at all.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

use rustix::process::{Resource, getegid, geteuid, getrlimit};
use serde::Serialize;
use serde_json::json;

use crate::capture::{self, CaptureError, Plan, PortSet};
use crate::client::{self, ClientError, Target};
use crate::config::{self, Config, Layers};
use crate::io::listen;
use crate::io::probe::{self, Step};
use crate::{admin, app, cli, settings};

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How it is.
    pub state: State,
    /// What was looked at.
    pub what: String,
    /// What was seen.
    pub value: String,
    /// What to do, or what it means.
    pub advice: Option<String>,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// The gateway runs, but less well than it could.
    Warn,
    /// The gateway cannot run.
    Fail,
}

/// Fewer local ports than this are used up by a few hundred short connections a second: each keeps
/// its port for a minute.
const FEW_PORTS: u32 = 10_000;

/// Fewer connections than this are soon used up by a surge that waits to be refused.
const FEW_CONNECTIONS: u32 = 1000;

/// Half-open connections a burst may leave before SYNs are dropped or answered with cookies.
const FEW_SYNS: u32 = 256;

/// What a gateway with everything on and some thousands of connections needs.
const LITTLE_MEMORY: u64 = 32 << 20;

/// Bits of the kernel's capability sets.
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;

/// Look at everything, what matters most first.
pub async fn examine() -> Vec<Finding> {
    let soft_before = getrlimit(Resource::Nofile).current;
    app::raise_open_files();
    let config = config();

    let mut findings = engines();
    findings.extend([kernel(), io_uring_disabled(), seccomp()]);
    findings.extend([open_files(soft_before, config.max_connections), locked_memory()]);
    findings.extend([somaxconn(), syn_backlog(), local_ports()]);
    findings.extend([processors(config.workers.get()), memory(), user(), low_ports()]);
    findings.extend(capture());
    findings.extend(gateway(&config).await);
    findings
}

/// The findings for people or for programs.
pub fn show(findings: &[Finding], json: bool) -> String {
    if json {
        return format!("{}\n", json!({ "findings": findings }));
    }
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { state, what, value, advice } in findings {
        let advice = advice.as_ref().map(|advice| format!("  -- {advice}")).unwrap_or_default();
        let (state, value) = (state.label(), value.replace('\n', "; "));
        // Writing to a String does not fail.
        let _ = writeln!(text, "{state:<4}  {what:<width$}  {value}{advice}");
    }
    text
}

/// What `tidegate run --workers auto` would come to here.
fn config() -> Config {
    let workers = settings::find("workers").expect("in the table");
    let run = cli::Run {
        listen: vec!["127.0.0.1:0=127.0.0.1:1".into()],
        settings: cli::Settings(vec![(workers, "auto".into())]),
        ..cli::Run::default()
    };
    let resolved = Layers::from_cli(&run, []).and_then(|layers| layers.resolve());
    resolved.expect("flags of our own are without mistakes")
}

/// Every rung of the ladder, and what `--engine auto` makes of it.
fn engines() -> Vec<Finding> {
    let epoll = probe::epoll();
    let broken = probe::ladder(false).err();
    let auto = match (&broken, &epoll) {
        (None, _) => ok("engine", "uring").advise("io_uring works here, and auto takes it"),
        (Some(_), Ok(())) => warn("engine", "epoll").advise("io_uring is not used; see below why"),
        (Some(_), Err(_)) => fail("engine", "none").advise("neither io_uring nor epoll works here"),
    };
    let mut findings = vec![auto];
    for step in Step::ALL {
        let what = format!("io_uring: {step}");
        match &broken {
            Some(unusable) if unusable.step == step => {
                findings.push(warn(what, &unusable.error).advise(unusable.advice()));
                break;
            }
            _ => findings.push(ok(what, "works")),
        }
    }
    findings.push(match epoll {
        Ok(()) => ok("epoll: a round trip over loopback", "works"),
        Err(error) => warn("epoll: a round trip over loopback", error)
            .advise("is loopback up, and may this user open sockets?"),
    });
    findings
}

fn kernel() -> Finding {
    ok("kernel", rustix::system::uname().release().to_string_lossy())
}

fn io_uring_disabled() -> Finding {
    let name = "kernel.io_uring_disabled";
    match sysctl(name).as_deref() {
        None => ok(name, "not there").advise("kernels before 6.6 have no such switch"),
        Some("0") => ok(name, "0"),
        Some("1") => warn(name, "1")
            .advise("only kernel.io_uring_group may use io_uring: set it to 0, or join"),
        Some(value) => {
            warn(name, value).advise("io_uring is off: sysctl -w kernel.io_uring_disabled=0")
        }
    }
}

fn seccomp() -> Finding {
    match process_status("Seccomp").as_deref() {
        Some("0") => ok("seccomp", "none"),
        Some("1") => fail("seccomp", "strict").advise("sockets cannot be opened in this mode"),
        Some(_) => ok("seccomp", "a filter").advise(
            "if io_uring fails with EPERM or ENOSYS, it has to allow io_uring_setup, \
             io_uring_enter and io_uring_register",
        ),
        None => unknown("seccomp"),
    }
}

fn open_files(soft_before: Option<u64>, max_connections: u32) -> Finding {
    let of = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let hard = getrlimit(Resource::Nofile).maximum;
    let value = format!(
        "soft {}, hard {}: max-connections is {max_connections}",
        of(soft_before),
        of(hard)
    );
    if max_connections < FEW_CONNECTIONS {
        return warn("open files", value).advise("raise the hard limit (ulimit -Hn, LimitNOFILE=)");
    }
    ok("open files", value)
}

fn locked_memory() -> Finding {
    let value = getrlimit(Resource::Memlock).current.map_or("unlimited".to_owned(), bytes);
    ok("locked memory", value)
}

fn somaxconn() -> Finding {
    let name = "net.core.somaxconn";
    let wanted = listen::BACKLOG;
    match sysctl(name).and_then(|value| value.parse::<i32>().ok()) {
        Some(most) if most < wanted => {
            let advice = format!("bursts beyond it wait a second: sysctl -w {name}={wanted}");
            warn(name, most).advise(advice)
        }
        Some(most) => ok(name, format!("{most}, of which the gateway asks for {wanted}")),
        None => unknown(name),
    }
}

fn syn_backlog() -> Finding {
    let name = "net.ipv4.tcp_max_syn_backlog";
    match sysctl(name).and_then(|value| value.parse::<u32>().ok()) {
        Some(most) if most < FEW_SYNS => {
            warn(name, most).advise(format!("few for a burst: sysctl -w {name}=4096"))
        }
        Some(most) => ok(name, most),
        None => unknown(name),
    }
}

fn local_ports() -> Finding {
    let name = "net.ipv4.ip_local_port_range";
    let text = sysctl(name);
    let mut ends = text.iter().flat_map(|text| text.split_whitespace()).map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return unknown(name);
    };
    let ports = (last + 1).saturating_sub(first);
    let value = format!("{first}-{last}: {ports} connections to one address of the application");
    if ports < FEW_PORTS {
        return warn(name, value).advise(format!("sysctl -w {name}=\"10240 65535\""));
    }
    ok(name, value)
}

fn processors(workers: usize) -> Finding {
    let quota = match cgroup("cpu.max") {
        Some(text) => text.split_once(' ').and_then(|(quota, period)| ratio(quota, period)),
        None => cgroup("cpu.cfs_quota_us")
            .zip(cgroup("cpu.cfs_period_us"))
            .and_then(|(quota, period)| ratio(&quota, &period)),
    };
    let quota = quota.map_or("no quota".to_owned(), |cpus| format!("a quota of {cpus:.2} CPUs"));
    ok("processors", format!("{quota}: workers=auto is {workers}"))
}

fn memory() -> Finding {
    let limit = cgroup("memory.max").or_else(|| cgroup("memory.limit_in_bytes"));
    // cgroup v1 says "no limit" with a number no machine has.
    match limit.and_then(|limit| limit.parse().ok()).filter(|limit| *limit < 1 << 60) {
        Some(limit) if limit < LITTLE_MEMORY => warn("memory", bytes(limit))
            .advise(format!("little: {} are enough for most", bytes(2 * LITTLE_MEMORY))),
        Some(limit) => ok("memory", bytes(limit)),
        None => ok("memory", "no limit"),
    }
}

fn user() -> Finding {
    let has = |bit| if capable(bit) { "yes" } else { "no" };
    let value = format!(
        "uid {}, gid {}; NET_BIND_SERVICE {}, NET_ADMIN {}",
        geteuid().as_raw(),
        getegid().as_raw(),
        has(CAP_NET_BIND_SERVICE),
        has(CAP_NET_ADMIN),
    );
    ok("user", value)
}

fn low_ports() -> Finding {
    let first = sysctl("net.ipv4.ip_unprivileged_port_start").and_then(|text| text.parse().ok());
    match first.unwrap_or(1024_u32) {
        _ if capable(CAP_NET_BIND_SERVICE) => ok("ports to listen on", "all"),
        first @ ..=1 => ok("ports to listen on", format!("from {first} on")),
        first => ok("ports to listen on", format!("from {first} on"))
            .advise("for lower ones grant NET_BIND_SERVICE"),
    }
}

/// Whether `tidegate capture install` would work here: the kernel judges its rules and does not put
/// them in force. Serving captured traffic takes no capability.
fn capture() -> Vec<Finding> {
    let what = "capture";
    let plan = Plan::new(PortSet::all(), &PortSet::default(), capture::REDIRECT_PORT);
    let mut findings = vec![match capture::try_rules(&plan) {
        Ok(()) => ok(what, "the kernel takes the rules")
            .advise("tidegate capture install proves that they work"),
        Err(CaptureError::NotPermitted) => ok(what, "unknown").advise(
            "to install rules takes NET_ADMIN; `run --capture` and `run --listen` take none",
        ),
        Err(error) => warn(what, error).advise("use `tidegate run --listen` here"),
    }];
    match capture::installed() {
        Ok(plan) => findings.push(ok("captured ports", plan.redirected())),
        Err(CaptureError::Missing) => findings.push(ok("captured ports", "none")),
        Err(CaptureError::NotPermitted | CaptureError::NoNftables(_)) => {}
        Err(error) => findings.push(
            warn("captured ports", error).advise("see `tidegate capture check`, and install again"),
        ),
    }
    // Every redirected connection has an entry there; when it is full, new ones are dropped.
    let number =
        |name: &str| sysctl(&format!("net.netfilter.nf_conntrack_{name}"))?.parse::<u64>().ok();
    if let (Some(count), Some(max)) = (number("count"), number("max")) {
        let (what, value) = ("connection tracking", format!("{count} of {max} entries"));
        let nearly_full = max / 10 * 9;
        findings.push(if count > nearly_full {
            warn(what, value).advise(
                "when it is full, new connections are dropped: raise net.netfilter.nf_conntrack_max",
            )
        } else {
            ok(what, value)
        });
    }
    if capture::has_legacy_nat() {
        findings.push(
            warn("iptables-legacy", "NAT rules are here")
                .advise("they may take connections before ours do: see iptables-legacy -t nat -S"),
        );
    }
    findings
}

/// The control socket, the addresses of the faces, and whether somebody is there already.
async fn gateway(config: &Config) -> Vec<Finding> {
    let control = config::control_path(None, config::environment());
    let admin = config::admin_address(config::environment());
    let usable = match admin::try_control(&control) {
        Ok(()) => ok("control socket", control.display()),
        Err(error) => warn("control socket", format!("{}: {error}", control.display()))
            .advise("name another place with --control"),
    };
    let mut findings = vec![usable];
    for target in [Target::Admin(admin), Target::Control(control)] {
        match client::status(std::slice::from_ref(&target)).await {
            Ok(status) => {
                let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
                let (phase, engine) = (text(&status["phase"]), text(&status["engine"]["name"]));
                let value = format!("one answers at {target}: {phase}, engine {engine}");
                findings.push(ok("gateway", value));
                return findings;
            }
            Err(ClientError::Unreachable(..)) => {}
            Err(error @ ClientError::Forbidden { .. }) => findings.push(warn("gateway", error)),
            Err(error) => findings.push(
                warn("gateway", error).advise("is that something else, or a gateway that hangs?"),
            ),
        }
    }
    findings.push(ok("gateway", "none answers"));
    findings.extend(free("admin", config.admin));
    findings.extend(free("probe", config.probe));
    findings.extend(free("metrics", config.metrics));
    findings
}

/// A complaint, if the address cannot be listened on.
fn free(flag: &str, address: SocketAddr) -> Option<Finding> {
    let error = listen::open(address).err()?;
    let what = format!("{flag} address");
    Some(warn(what, format!("{address}: {error}")).advise(format!("name another with --{flag}")))
}

/// What the kernel says of itself.
fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.trim().to_owned())
}

/// A field of /proc/self/status.
fn process_status(field: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned())
}

fn capable(bit: u32) -> bool {
    let effective = process_status("CapEff").and_then(|set| u64::from_str_radix(&set, 16).ok());
    effective.is_some_and(|set| set >> bit & 1 == 1)
}

/// A file of this process's control group: version 2, or the controller of version 1 that the file
/// is named after; inside a container the group is mounted as the root.
fn cgroup(file: &str) -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let controller = file.split('.').next()?;
    let places = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => Some(("/sys/fs/cgroup".to_owned(), path)),
            list if list.split(',').any(|one| one == controller) => {
                Some((format!("/sys/fs/cgroup/{controller}"), path))
            }
            _ => None,
        }
    });
    let read = |path: String| fs::read_to_string(path).ok();
    let mut found = places.filter_map(|(root, path)| {
        let own = format!("{root}/{}/{file}", path.trim_matches('/'));
        read(own).or_else(|| read(format!("{root}/{file}")))
    });
    found.next().map(|text| text.trim().to_owned())
}

/// CPUs, unless there is no quota: "max", or in version 1 -1.
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

fn finding(state: State, what: impl ToString, value: impl ToString) -> Finding {
    Finding { state, what: what.to_string(), value: value.to_string(), advice: None }
}

fn ok(what: impl ToString, value: impl ToString) -> Finding {
    finding(State::Ok, what, value)
}

fn warn(what: impl ToString, value: impl ToString) -> Finding {
    finding(State::Warn, what, value)
}

fn fail(what: impl ToString, value: impl ToString) -> Finding {
    finding(State::Fail, what, value)
}

fn unknown(what: &str) -> Finding {
    ok(what, "unknown").advise("it cannot be read here")
}

impl Finding {
    fn advise(mut self, advice: impl ToString) -> Self {
        self.advice = Some(advice.to_string());
        self
    }
}

impl State {
    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_of_both_cgroup_versions_are_understood() {
        assert_eq!(ratio("50000", "100000"), Some(0.5));
        assert_eq!(ratio("max", "100000"), None);
        assert_eq!(ratio("-1", "100000"), None);
    }

    #[test]
    fn one_line_each() {
        let findings = [ok("a", 1), warn("longer", 2).advise("do it")];
        assert_eq!(show(&findings, false), "ok    a       1\nwarn  longer  2  -- do it\n");
    }
}
