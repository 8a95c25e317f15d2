//! Applications of the rig as processes of their own: this test binary, started in a container.
//!
//! They know nothing of a gateway, and have no manners: at SIGTERM they end at once, whatever is under way;
//! at SIGUSR1 they stop to serve, and stay.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;

use tokio::signal::unix::{SignalKind, signal};

use crate::http::oracle::HttpOracle;
use crate::support::oracle::{Oracle, Script};

/// `work 0.0.0.0:8080`, and what else there is to do; several with commas between.
pub(super) const WHAT: &str = "TIDEGATE_TEST_POD_APPLICATION";

/// Where those of HTTP write down the id of every request when it comes, a line each.
pub(super) const IDS: &str = "/tmp/ids";

/// What it says once it can be called.
pub(super) const LISTENS: &str = "the application listens";

/// Not a test: the application's `main`, which does nothing unless it finds in its environment what to be.
#[test]
fn main() {
    let Ok(what) = std::env::var(WHAT) else {
        return;
    };
    let mut running: (Vec<Oracle>, Vec<HttpOracle>) = Default::default();
    for one in what.split(',') {
        let (script, address) = one.split_once(' ').expect("a script and an address");
        let address: SocketAddr = address.parse().expect("an address");
        match script {
            "http" => {
                let ids = File::options().create(true).append(true).open(IDS);
                running.1.push(HttpOracle::noting(address, ids.expect("it has a place to write")));
            }
            "work" => running.0.push(Oracle::start_at(address, Script::Work)),
            "echo" => running.0.push(Oracle::start_at(address, Script::Echo)),
            other => panic!("no script is called {other}"),
        }
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut told = signal(SignalKind::terminate()).expect("a handler");
        let mut broken = signal(SignalKind::user_defined1()).expect("a handler");
        // Past the harness, which would keep it to itself.
        writeln!(std::io::stdout(), "{LISTENS}").expect("there is a log");
        tokio::select! {
            _ = told.recv() => return,
            _ = broken.recv() => drop(running),
        }
        told.recv().await;
    });
}
