//! What the user typed, and nothing more: clap structs without decisions. Values stay raw text;
//! `config` judges them together with what the environment and the file say.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, value_parser};

use crate::settings::{KEYS, Key, Kind, Scope};

/// Admits only as much traffic at once as the application can carry.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What was typed. In a pod nobody types: flags of another version are passed over there, and kept in
    /// [`Run::ignored`].
    pub fn parse_words(mut words: Vec<OsString>) -> Result<Self, clap::Error> {
        let starts = |word: &OsString, with: &str| word.to_string_lossy().starts_with(with);
        let in_a_pod = words.get(1).is_some_and(|word| word == "run")
            && words.iter().any(|word| starts(word, "--annotations"));
        let mut ignored = Vec::new();
        loop {
            let error = match Self::try_parse_from(&words) {
                Ok(mut cli) => {
                    if let Command::Run(run) = &mut cli.command {
                        run.ignored = ignored;
                    }
                    return Ok(cli);
                }
                Err(error) => error,
            };
            let unknown = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(unknown)) if in_a_pod => unknown.clone(),
                _ => return Err(error),
            };
            let flag = format!("{unknown}=");
            let at = words.iter().position(|word| *word == *unknown || starts(word, &flag));
            match at {
                Some(at) if error.kind() == ErrorKind::UnknownArgument => words.remove(at),
                _ => return Err(error),
            };
            ignored.push(unknown);
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stand in front of an application
    Run(Run),
    /// Have the kernel redirect this network namespace's inbound connections to a gateway
    Capture(Capture),
    /// Start a drain of the gateway that runs here; exits 0 even if none does, for use in a hook
    Drain(Drain),
    /// Change settings of the gateway that runs here, all of them or none
    Set(Set),
    /// Show what the gateway that runs here is doing
    Status(Status),
    /// Say why a request or a connection was refused, or list what was refused last
    Explain(Explain),
    /// Put the gateway into the pods of manifests, or take it out again
    Inject(Inject),
    /// Check the annotations of manifests
    Lint(Lint),
    /// Answer a Kubernetes API server that asks what new pods need; HTTPS
    Webhook(Webhook),
    /// Say what works on this machine, what does not, and why
    Doctor(Doctor),
    /// See a surge with and without the gateway; needs nothing else
    Demo(Demo),
}

/// `tidegate run`
#[derive(Debug, Default, Args)]
pub struct Run {
    /// Listen on ADDR and forward to APP, which is host:port or unix:/path; repeatable
    #[arg(long, value_name = "ADDR=APP", value_parser = value_parser!(OsString))]
    pub listen: Vec<OsString>,
    /// Read settings from this YAML file; SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What a pod says about its settings.
    #[command(flatten)]
    pub pod: Pod,
    /// What the injector knows of the pod's containers.
    #[command(flatten)]
    pub injected: Injected,
    /// Every other flag.
    #[command(flatten)]
    pub settings: Settings,
    /// In a pod: flags that this version does not know.
    #[arg(skip)]
    pub ignored: Vec<String>,
}

/// `tidegate run …` in a pod: with any of these, mistakes in settings are reported and never end it.
#[derive(Debug, Default, Args)]
pub struct Pod {
    /// Take settings from the pod's annotations, in this file of the downward API
    #[arg(long, value_name = "FILE", help_heading = "In a pod")]
    pub annotations: Option<PathBuf>,
    /// Take settings from the namespace's ConfigMap, mounted here: keys _all and <workload>
    #[arg(long, value_name = "DIR", help_heading = "In a pod")]
    pub namespace_config: Option<PathBuf>,
    /// Which key of the ConfigMap is this workload's
    #[arg(long, value_name = "NAME", help_heading = "In a pod")]
    pub workload: Option<String>,
    /// What the pod template's annotations said, without the prefix, such as {"limit":"5"}
    #[arg(long, value_name = "JSON", help_heading = "In a pod")]
    pub template_annotations: Option<String>,
    /// What settings cannot exceed, whoever says so, such as {"limit":"500"}
    #[arg(long, value_name = "JSON", help_heading = "In a pod")]
    pub ceilings: Option<String>,
    /// The only settings that annotations and the ConfigMap may change, separated by commas, or none [default: all but the operator's own]
    #[arg(long, value_name = "KEYS", help_heading = "In a pod")]
    pub allowed_annotations: Option<String>,
    /// Have the API server tell at once about the pod's annotations and its deletion; wants RBAC
    #[arg(long, help_heading = "In a pod")]
    pub watch_own_pod: bool,
}

/// `tidegate run …`, as the injector writes it.
#[derive(Debug, Default, Args)]
pub struct Injected {
    /// Probes of the application to be done beside the gate, at /app-probe/CONTAINER/KIND of --probe, such
    /// as {"app/liveness":{"httpGet":{"path":"/healthz","port":8080},"timeoutSeconds":1}}
    #[arg(long, value_name = "JSON", help_heading = "In a pod")]
    pub app_probes: Option<String>,
    /// Say in the status that some container may end before the drain does: it has a hook of its own
    #[arg(long, help_heading = "In a pod")]
    pub drain_partial: bool,
}

/// The flags of the table in `settings`, in the order of the table and then as typed.
#[derive(Debug, Default)]
pub struct Settings(pub Vec<(&'static Key, OsString)>);

/// `tidegate capture`
#[derive(Debug, Args)]
pub struct Capture {
    /// What to do with the rules
    #[command(subcommand)]
    pub action: CaptureAction,
}

/// `tidegate capture …`
#[derive(Debug, Subcommand)]
pub enum CaptureAction {
    /// Write the rules in one transaction, read them back, and prove that they work; again changes nothing
    Install(CaptureRules),
    /// Show the rules as nft would, and change nothing
    Print(CaptureRules),
    /// Say whether the rules are there and work; with ports, whether they are the rules for these
    Check(CaptureRules),
    /// Remove the rules; those of others stay as they are
    Remove(CaptureRules),
}

/// What the rules are about.
#[derive(Debug, Default, Args)]
pub struct CaptureRules {
    /// Redirect connections to these ports, such as 8080,9000-9100, or all
    #[arg(long, value_name = "PORTS")]
    pub include_inbound_ports: Option<String>,
    /// But not to these; those of the gateway are never redirected
    #[arg(long, value_name = "PORTS")]
    pub exclude_inbound_ports: Option<String>,
    /// The port of `tidegate run --capture` [default: 15801]
    #[arg(long, value_name = "PORT")]
    pub redirect_port: Option<String>,
    /// By hand: the network namespace this is, as a name of `ip netns`, a path, net:[…] or host
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// `tidegate drain`
#[derive(Debug, Args)]
pub struct Drain {
    /// Wait until the drain is over and print its report
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// The gateway's control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// `tidegate set`
#[derive(Debug, Args)]
pub struct Set {
    /// Such as limit=8, limit.8080=8, or limit=default to take a live change back
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub changes: Vec<String>,
    /// The gateway's control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// `tidegate status`
#[derive(Debug, Args)]
pub struct Status {
    /// Show it again every second, until q or Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// Print the status as JSON
    #[arg(long)]
    pub json: bool,
    /// The gateway's admin address; without it 127.0.0.1:15820, then the control socket, is asked
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The gateway's control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// `tidegate explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// A request's x-request-id, or the number of a connection as log lines have it; without: the last
    /// refusals
    #[arg(value_name = "REQUEST-ID")]
    pub id: Option<String>,
    /// How many to list
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u64).range(1..=1000))]
    pub last: u64,
    /// Print what is known as JSON
    #[arg(long)]
    pub json: bool,
    /// The gateway's admin address; without it 127.0.0.1:15820, then the control socket, is asked
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The gateway's control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// `tidegate inject`
#[derive(Debug, Args)]
pub struct Inject {
    /// Manifests and the operator's values.
    #[command(flatten)]
    pub manifests: Manifests,
    /// Take it out again: the manifests are as they were before
    #[arg(long)]
    pub remove: bool,
}

/// `tidegate lint`
#[derive(Debug, Args)]
pub struct Lint {
    /// Manifests and the operator's values.
    #[command(flatten)]
    pub manifests: Manifests,
}

/// Manifests, and what holds where they are applied.
#[derive(Debug, Args)]
pub struct Manifests {
    /// YAML or JSON, - for stdin; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", default_value = "-")]
    pub files: Vec<PathBuf>,
    /// What the cluster's operator decides, as YAML; without it, what is built in
    #[arg(long, value_name = "FILE")]
    pub operator: Option<PathBuf>,
    /// The oldest Kubernetes of the cluster, such as 1.28, whatever the operator's file says
    #[arg(long, value_name = "VERSION")]
    pub kubernetes: Option<String>,
    /// What Pod Security enforces, in namespaces that the manifests do not define
    #[arg(long, value_name = "LEVEL", default_value = "privileged", value_parser = ["privileged", "baseline", "restricted"])]
    pub pod_security: String,
}

/// `tidegate webhook`
#[derive(Debug, Default, Args)]
pub struct Webhook {
    /// The certificate, with those between it and the CA, as PEM; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, as PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// What the operator has decided, as YAML; read again when it changes [default: what is built in]
    #[arg(long, value_name = "FILE")]
    pub operator: Option<PathBuf>,
    /// Answer /inject/LEVEL, /livez and /readyz here [default: [::]:10250]
    #[arg(long, alias = "listen", value_name = "ADDR")]
    pub address: Option<String>,
    /// Answer /metrics, /livez and /readyz here, without TLS [default: 0.0.0.0:15822]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// How long to go on answering when told to go, until the news has spread [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub drain_delay: Option<String>,
    /// How long what is under way may take after that [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// What a log line looks like: text, json [default: text]
    #[arg(long, value_name = "VALUE")]
    pub log_format: Option<String>,
    /// How much is logged: off, error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "VALUE")]
    pub log_level: Option<String>,
}

/// `tidegate doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// `tidegate demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// How long each act takes; longer ones would use up the local ports
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u64).range(1..=20))]
    pub seconds: u64,
    /// How the gateway moves bytes
    #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = ["auto", "uring", "epoll"])]
    pub engine: String,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        KEYS.iter().fold(command, |command, key| command.arg(flag(key)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let typed = |key: &'static Key| {
            let values = matches.get_many::<OsString>(key.name).unwrap_or_default();
            values.map(move |value| (key, value.clone()))
        };
        Ok(Self(KEYS.iter().flat_map(typed).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn flag(key: &'static Key) -> Arg {
    let arg = Arg::new(key.name)
        .long(key.name)
        .help(format!("{} [default: {}]", key.help, key.default))
        .value_name(match key.scope {
            Scope::Port => "[PORT=]VALUE",
            Scope::Process => "VALUE",
        })
        .value_parser(value_parser!(OsString))
        .action(ArgAction::Append)
        // `--limit -5` and `--queue-timeout -1s` are mistakes about values, not about flags.
        .allow_negative_numbers(true);
    match key.kind {
        Kind::Switch => arg.num_args(0..=1).default_missing_value("true"),
        _ => arg.allow_hyphen_values(true),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stay_raw_and_repeat() {
        let typed = [
            "tidegate",
            "run",
            "--listen",
            "a=b",
            "--limit",
            "5",
            "--limit",
            "8080=-1",
            "--uring-sqpoll",
        ];
        let Command::Run(run) = Cli::try_parse_from(typed).expect("parses").command else {
            panic!("not run")
        };
        let settings: Vec<_> =
            run.settings.0.iter().map(|(k, v)| (k.name, v.to_str().expect("ascii"))).collect();
        assert_eq!(settings, [("limit", "5"), ("limit", "8080=-1"), ("uring-sqpoll", "true")]);
    }

    #[test]
    fn unknown_flags_are_clap_errors_and_passed_over_in_a_pod() {
        let words = |words: &[&str]| Cli::parse_words(words.iter().map(OsString::from).collect());
        words(&["tidegate", "run", "--frobnicate"]).expect_err("unknown");
        words(&["tidegate", "drain", "--frobnicate", "--annotations=a"]).expect_err("no pod's");
        let pod = ["tidegate", "run", "--annotations=a", "--x=1", "--y", "2", "--limit=5", "--z"];
        let Command::Run(run) = words(&pod).expect("parses").command else { panic!("not run") };
        assert_eq!(run.ignored, ["--x", "--y", "2", "--z"]);
        assert_eq!(run.settings.0.len(), 1);
    }
}
