//! The program as a person or a hook starts it: what it says and how it ends.

mod skip;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// Bad configuration (EX_CONFIG of sysexits.h).
const CONFIG: Option<i32> = Some(78);

fn tidegate(arguments: &[&str]) -> Output {
    command(arguments).output().expect("started")
}

fn command(arguments: &[&str]) -> Command {
    let ours = std::env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_"))
        .map(|(name, _)| name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for name in ours {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert_eq!(tidegate(arguments).status.code(), Some(0), "{arguments:?}");
    }
    let help = tidegate(&["run", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout);
    for flag in ["--listen", "--limit", "--queue-timeout", "--uring-sqpoll", "--control"] {
        assert!(help.contains(flag), "{flag} is not in:\n{help}");
    }
}

#[test]
fn bad_input_is_told_and_nothing_is_started() {
    let listen = "--listen=127.0.0.1:0=127.0.0.1:3000";
    for (arguments, says) in [
        (&[][..], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["run", "--frobnicate"], "--frobnicate"),
        (&["run"], "listen"),
        (&["run", listen, "--limit", "0"], "limit \"0\" (flag) must be an integer"),
        (&["run", listen, "--limit", "-1"], "limit \"-1\""),
        (&["run", listen, "--limit", "1e9"], "limit \"1e9\""),
        (&["run", listen, "--limit", "NaN"], "limit \"NaN\""),
        (&["run", listen, "--config", "/no/such/file"], "No such file"),
        (&["run", listen, "--config", "/"], "directory"),
        (&["run", "--listen", "localhost"], "ADDR=APP"),
        (&["set", "limit"], "KEY=VALUE"),
        (&["status", "--admin", "nowhere"], "--admin"),
    ] {
        let output = tidegate(arguments);
        assert_eq!(output.status.code(), CONFIG, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn two_mistakes_are_told_at_once() {
    let output = tidegate(&["run", "--limit", "0", "--queue-timeout", "5"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), CONFIG);
    assert!(said.contains("limit \"0\"") && said.contains("queue-timeout \"5\""), "{said}");
}

#[test]
fn without_a_gateway_a_hook_succeeds_and_says_so() {
    let nowhere = "--control=/no/such/control.sock";
    let drain = tidegate(&["drain", "--wait", nowhere]);
    assert_eq!(drain.status.code(), Some(0));
    assert!(stderr(&drain).contains("no gateway answers at /no/such/control.sock"));
    let bad = tidegate(&["drain", "--timeout=soon", nowhere]);
    assert_eq!(bad.status.code(), Some(0));
    assert!(stderr(&bad).contains("soon"), "{}", stderr(&bad));
    for other in [&["status", nowhere][..], &["set", "limit=8", nowhere]] {
        let output = tidegate(other);
        assert_eq!(output.status.code(), Some(1), "{other:?}");
        assert!(stderr(&output).contains("Is it running?"), "{}", stderr(&output));
    }
}

/// A hook that may not drain has not drained, and somebody has to learn of it.
#[test]
fn who_may_not_open_the_control_socket_is_told_whose_it_is() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("to become another user takes root");
    }
    let dir = tempfile::tempdir().expect("a directory that is root's");
    let socket = dir.path().join("control.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let control = format!("--control={}", socket.display());
    let open = || fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("ours");
    let places: [&dyn Fn(); 2] = [&|| {}, &open];
    for place in places {
        place();
        fs::set_permissions(&socket, Permissions::from_mode(0o600)).expect("ours");
        for asked in [&["drain"][..], &["drain", "--wait"], &["set", "limit=8"], &["status"]] {
            let mut command = command(&[asked, &[control.as_str()]].concat());
            let output = command.uid(12_345).gid(12_345).output().expect("started");
            assert_eq!(output.status.code(), Some(1), "{asked:?}: {}", stderr(&output));
            let said = format!("{} is not for uid 12345, but for uid 0", socket.display());
            assert!(stderr(&output).contains(&said), "{asked:?}: {}", stderr(&output));
        }
    }
}
