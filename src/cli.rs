//! What the user typed, and nothing more: clap structs without decisions. Values stay raw text;
//! `config` judges them together with what the environment and the file say.

use std::ffi::OsString;
use std::path::PathBuf;

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
    /// Every other flag.
    #[command(flatten)]
    pub settings: Settings,
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
    /// Show it again every second, until Ctrl-C
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
    fn unknown_flags_are_clap_errors() {
        Cli::try_parse_from(["tidegate", "run", "--frobnicate"]).expect_err("unknown");
    }
}
