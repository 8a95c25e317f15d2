//! The loads wrk and h2load have not, and the application that can be overloaded. One JSON line each on standard output.
//!
//! churn ADDR THREADS SECONDS                          new connections, served and refused told apart (churn.rs)
//! churn storm ADDR RATE WARM SECONDS PATIENCE_MS      an open loop of clients that give up (storm.rs)
//! churn app SLOTS MILLIS ADDR                         works for clients that have left, too (app.rs)

mod app;
mod churn;
mod storm;

use std::net::SocketAddr;
use std::process::exit;
use std::str::FromStr;
use std::time::Duration;

use crate::storm::Storm;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["storm", addr, rate, warm, seconds, patience] => storm::run(Storm {
            addr: parsed::<SocketAddr>(addr),
            rate: parsed(rate),
            warm: Duration::from_secs_f64(parsed(warm)),
            measured: Duration::from_secs_f64(parsed(seconds)),
            patience: Duration::from_millis(parsed(patience)),
        }),
        ["app", slots, millis, addr] => app::run(parsed(slots), Duration::from_millis(parsed(millis)), parsed(addr)),
        [addr, threads, seconds] => churn::run(parsed(addr), parsed(threads), parsed(seconds)),
        _ => usage(),
    }
}

fn parsed<T: FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| usage())
}

fn percentile(values: &mut [u32], percent: usize) -> u32 {
    values.sort_unstable();
    if values.is_empty() { 0 } else { values[(values.len() - 1) * percent / 100] }
}

fn usage() -> ! {
    eprintln!("usage: churn ADDR THREADS SECONDS | churn storm ADDR RATE WARM SECONDS PATIENCE_MS | churn app SLOTS MILLIS ADDR");
    exit(2)
}
