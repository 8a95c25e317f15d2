//! Parse, run, exit code; nothing else.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use tidegate::app;
use tidegate::capture::{self, place};
use tidegate::cli::{self, CaptureAction, Cli, Command};
use tidegate::client::{self, Screen, Target};
use tidegate::config::{self, Layers, Task};
use tidegate::demo::{self, End};
use tidegate::doctor;
use tidegate::inject::{Operator, PodSecurity};
use tidegate::manifest::{self, Source};
use tidegate::settings::{self, Value};
use tidegate::telemetry;
use tidegate::webhook;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How the process ends.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Exit {
    /// It did what it was asked for; for `run`: a drain that ended.
    Ok = 0,
    /// It could not.
    Failure = 1,
    /// What it was asked for makes no sense (EX_CONFIG of sysexits.h).
    Config = 78,
    /// Ctrl-C before it was done (128 + SIGINT, as shells have it).
    Interrupted = 130,
}

fn main() -> ExitCode {
    let exit = match Cli::parse_words(config::arguments()) {
        Ok(cli) => dispatch(cli.command),
        Err(error) => {
            // With stdout or stderr closed there is nobody to tell.
            let _ = error.print();
            if error.use_stderr() { Exit::Config } else { Exit::Ok }
        }
    };
    ExitCode::from(exit as u8)
}

fn dispatch(command: Command) -> Exit {
    match command {
        Command::Run(args) => run(&args),
        Command::Capture(args) => capture(&args.action),
        Command::Drain(args) => drain(&args),
        Command::Set(args) => set(&args),
        Command::Status(args) => status(&args),
        Command::Explain(args) => explain(&args),
        Command::Inject(args) => inject(&args),
        Command::Lint(args) => lint(&args.manifests),
        Command::Webhook(args) => webhook(&args),
        Command::Doctor(args) => doctor(&args),
        Command::Demo(args) => demo(&args),
    }
}

fn run(args: &cli::Run) -> Exit {
    let process = match app::Process::new() {
        Ok(process) => process,
        Err(error) => return fail(&format!("{error:#}")),
    };
    app::raise_open_files();
    let resolved = Layers::from_cli(args, config::environment())
        .and_then(|layers| layers.resolve().map(|config| (layers, config)));
    let (layers, config) = match resolved {
        Ok(resolved) => resolved,
        Err(mistakes) => return misconfigured(&mistakes.to_string()),
    };
    let telemetry = match telemetry::start(&config.log, config.export.is_some()) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error.to_string()),
    };
    match process.run(config, layers, &telemetry) {
        Ok(_) => Exit::Ok,
        Err(error @ app::StartError::Addresses(_)) => misconfigured(&error.to_string()),
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn capture(action: &CaptureAction) -> Exit {
    let told = match config::capture(action, config::environment()) {
        Ok(told) => told,
        Err(mistakes) => return misconfigured(&mistakes.to_string()),
    };
    if !matches!(told.task, Task::Print(_))
        && let Some(wrong) = told.places.iter().find_map(|place| place::verify(place).err())
    {
        return fail(&wrong.to_string());
    }
    let done = match &told.task {
        Task::Install(plan) => capture::install(plan).map(|done| format!("{done}\n")),
        Task::Print(plan) => Ok(plan.to_string()),
        Task::Check(plan) => capture::check(plan.as_ref()).map(|found| format!("{found}\n")),
        Task::Remove => capture::remove().map(|removed| format!("{removed}\n")),
    };
    match done {
        Ok(said) => {
            print(&said);
            Exit::Ok
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// Nothing is printed unless everything can be read; what cannot have a gateway is printed as it is.
fn inject(args: &cli::Inject) -> Exit {
    let (sources, operator, level) = match manifests(&args.manifests) {
        Ok(read) => read,
        Err(problems) => return misconfigured(&problems.join("\n")),
    };
    let task = if args.remove { manifest::Task::Remove } else { manifest::Task::Inject(&operator) };
    match manifest::rewrite(&sources, task, level) {
        Ok(done) => {
            done.said.iter().for_each(|line| complain(line));
            print(&done.text);
            if done.refused == 0 { Exit::Ok } else { Exit::Failure }
        }
        Err(unreadable) => misconfigured(&unreadable.to_string()),
    }
}

fn lint(args: &cli::Manifests) -> Exit {
    let read = manifests(args).and_then(|(sources, operator, level)| {
        manifest::lint(&sources, &operator, level).map_err(|manifest::Unreadable(all)| all)
    });
    match read {
        Ok(mistakes) if mistakes.is_empty() => Exit::Ok,
        Ok(mistakes) => {
            mistakes.iter().for_each(|mistake| print(&format!("{mistake}\n")));
            Exit::Failure
        }
        Err(problems) => misconfigured(&problems.join("\n")),
    }
}

/// Every file, or every reason why one cannot be read.
fn manifests(args: &cli::Manifests) -> Result<(Vec<Source>, Operator, PodSecurity), Vec<String>> {
    let mut problems = Vec::new();
    let mut sources = Vec::new();
    for path in &args.files {
        let name = if path == Path::new("-") { "stdin".into() } else { path.display().to_string() };
        let mut text = String::new();
        let read = match path == Path::new("-") {
            true => std::io::stdin().read_to_string(&mut text).map(|_| text),
            false => std::fs::read_to_string(path),
        };
        match read {
            Ok(text) => sources.push(Source { name, text }),
            Err(error) => problems.push(format!("{name} cannot be read: {error}")),
        }
    }
    let mut operator = Operator::default();
    if let Some(path) = &args.operator {
        let read =
            std::fs::read_to_string(path).map_err(|error| vec![format!("cannot be read: {error}")]);
        match read.and_then(|text| Operator::from_yaml(&text).map_err(|error| error.0)) {
            Ok(read) => operator = read,
            Err(wrong) => problems.extend(wrong.iter().map(|w| format!("{}: {w}", path.display()))),
        }
    }
    if let Some(version) = &args.kubernetes {
        operator.kubernetes.clone_from(version);
        problems.extend(operator.mistakes());
    }
    let level = PodSecurity::of_label(Some(&args.pod_security));
    if problems.is_empty() { Ok((sources, operator, level)) } else { Err(problems) }
}

fn webhook(args: &cli::Webhook) -> Exit {
    app::raise_open_files();
    let config = match config::webhook(args, config::environment()) {
        Ok(config) => config,
        Err(mistakes) => return misconfigured(&mistakes.to_string()),
    };
    // Until the last lines are written.
    let _telemetry = match telemetry::start(&config.log, false) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error.to_string()),
    };
    match block_on(webhook::run(config.server)) {
        Ok(Ok(())) => Exit::Ok,
        Ok(Err(error @ webhook::StartError::Unusable(_))) => misconfigured(&error.to_string()),
        Ok(Err(error)) => fail(&error.to_string()),
        Err(error) => fail(&error.to_string()),
    }
}

fn doctor(args: &cli::Doctor) -> Exit {
    match block_on(doctor::examine()) {
        Ok(findings) => {
            print(&doctor::show(&findings, args.json));
            let failed = findings.iter().any(|finding| finding.state == doctor::State::Fail);
            if failed { Exit::Failure } else { Exit::Ok }
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn demo(args: &cli::Demo) -> Exit {
    app::raise_open_files();
    match demo::run(args) {
        Ok(End::Kept) => Exit::Ok,
        Ok(End::Broken) => fail("the gateway did not keep its promises; see above"),
        Ok(End::Interrupted) => Exit::Interrupted,
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Always 0: a hook that fails would only be reported, and the pod would end without a drain.
fn drain(args: &cli::Drain) -> Exit {
    let limit = args.timeout.as_deref().and_then(|text| {
        match settings::find("drain-timeout").map(|key| key.kind.parse(text)) {
            Some(Ok(Value::Duration(limit))) => limit,
            _ => {
                complain(&format!("--timeout {text:?} is no duration such as 30s, and is ignored"));
                None
            }
        }
    });
    let control = config::control_to_ask(args.control.as_deref(), config::environment());
    match block_on(client::drain(&control, args.wait, limit)) {
        Ok(Ok(report)) => print(&format!("{report}\n")),
        // Nobody can be drained any more: no reason for a hook to fail.
        Ok(Err(error)) if error.is_absence() => complain(&error.to_string()),
        Ok(Err(error)) => return fail(&error.to_string()),
        Err(error) => return fail(&error.to_string()),
    }
    Exit::Ok
}

fn set(args: &cli::Set) -> Exit {
    let control = config::control_to_ask(args.control.as_deref(), config::environment());
    match block_on(client::set(&control, &args.changes)) {
        Ok(Ok(applied)) => {
            applied.iter().for_each(|line| print(&format!("{line}\n")));
            Exit::Ok
        }
        Ok(Err(error @ client::ClientError::Refused(_))) => misconfigured(&error.to_string()),
        Ok(Err(error)) => fail(&error.to_string()),
        Err(error) => fail(&error.to_string()),
    }
}

fn status(args: &cli::Status) -> Exit {
    let targets = match targets(args.admin.as_deref(), args.control.as_deref()) {
        Ok(targets) => targets,
        Err(problem) => return misconfigured(&problem),
    };
    let shown = block_on(async {
        if args.watch {
            let screen = Screen::new(std::io::stdout().is_terminal(), config::environment());
            client::watch(&targets, args.json, screen, &mut std::io::stdout())
                .await
                .map_err(|e| e.to_string())
        } else {
            let status = client::status(&targets).await.map_err(|e| e.to_string())?;
            print(&client::show(&status, args.json));
            Ok(())
        }
    });
    match shown {
        Ok(Ok(())) => Exit::Ok,
        Ok(Err(problem)) => fail(&problem),
        Err(error) => fail(&error.to_string()),
    }
}

fn explain(args: &cli::Explain) -> Exit {
    let targets = match targets(args.admin.as_deref(), args.control.as_deref()) {
        Ok(targets) => targets,
        Err(problem) => return misconfigured(&problem),
    };
    match block_on(client::explain(&targets, args.id.as_deref(), args.last, args.json)) {
        Ok(Ok(text)) => {
            print(&text);
            Exit::Ok
        }
        Ok(Err(error)) => fail(&error.to_string()),
        Err(error) => fail(&error.to_string()),
    }
}

/// Whom to ask: what is named, else the usual admin address and then the control socket.
fn targets(admin: Option<&str>, socket: Option<&Path>) -> Result<Vec<Target>, String> {
    let control = || Target::Control(config::control_to_ask(socket, config::environment()));
    match (admin, socket) {
        (None, Some(_)) => Ok(vec![control()]),
        (Some(text), _) => match text.parse() {
            Ok(address) => Ok(vec![Target::Admin(address)]),
            Err(_) => Err(format!(
                "--admin {text:?} must be an IP address and a port such as 127.0.0.1:15820"
            )),
        },
        (None, None) => {
            Ok(vec![Target::Admin(config::admin_address(config::environment())), control()])
        }
    }
}

/// The commands are clients; one thread is enough.
fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn print(text: &str) {
    // A reader that has left, such as `head`, is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn complain(problem: &str) {
    let _ = writeln!(std::io::stderr(), "tidegate: {problem}");
}

fn fail(problem: &str) -> Exit {
    complain(problem);
    Exit::Failure
}

fn misconfigured(problem: &str) -> Exit {
    complain(problem);
    Exit::Config
}
