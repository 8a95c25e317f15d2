//! The status page, in a browser: it says what the status says, it does so while things change, and
//! everybody can read it.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{Client, End};
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, apps, run, run_beside, skip, slack, until};

const NO_CHROMIUM: &str = "chromium is not installed";

/// An application's name is the operator's to choose.
const HOSTILE: &str = "unix:/tmp/<img src=x onerror=alert(1)>\"'&amp;</script>.sock";

/// The first port: 4 at once, 8 wait.
fn start(oracle: &Oracle) -> Gateway {
    Setup::new(Engine::Epoll, oracle.address)
        .port(HOSTILE)
        .set("limit", 4)
        .set("queue-length", 8)
        .set("queue-timeout", "10m")
        .set("grace", "10m")
        .start()
}

fn status(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.call("GET", "/status.json", "").body).expect("JSON")
}

fn address(gateway: &Gateway) -> String {
    format!("http://{}/", status(gateway)["admin"].as_str().expect("an address"))
}

/// 4 in flight, 8 waiting, 5 refused.
fn overload(gateway: &Gateway, oracle: &Oracle) -> Vec<Client> {
    let ask = || Client::asking(gateway.address, Duration::ZERO);
    let mut clients: Vec<_> = (0..4).map(|_| ask()).collect();
    until("4 in flight", SOON, || oracle.count() == 4);
    clients.extend((0..8).map(|_| ask()));
    until("8 wait", SOON, || gateway.port().queued == 8);
    for _ in 0..5 {
        assert_eq!(ask().end(), End::Refused);
    }
    clients
}

/// What the page shows of a port, and what the status says of it.
#[track_caller]
fn assert_agree(browser: &mut Browser, gateway: &Gateway) {
    let status = status(gateway);
    for port in status["ports"].as_array().expect("ports") {
        let listen = port["listen"].as_str().expect("an address");
        for key in [
            "listen",
            "app",
            "protocol",
            "mode",
            "limit",
            "active",
            "queued",
            "queue_length",
            "peak_active",
            "admitted",
        ] {
            let said = port[key].as_str().map_or_else(|| port[key].to_string(), str::to_owned);
            let shown = browser.text(&format!("[data-port=\"{listen}\"] [data-is={key}]"));
            assert_eq!(shown, Some(said), "{key} of {listen}");
        }
        for (reason, n) in port["refused"].as_object().expect("reasons") {
            let cell = format!("[data-port=\"{listen}\"] [data-is=\"refused.{reason}\"]");
            let shown = browser.text(&cell).map_or(0, |text| text.parse().expect("a number"));
            assert_eq!(json!(shown), *n, "{reason}");
        }
    }
    assert_eq!(
        browser.text("[data-is='engine.reason']").as_deref(),
        status["engine"]["reason"].as_str()
    );
    assert_eq!(browser.text("[data-port] [data-setting=limit]").as_deref(), Some("4"));
    assert_eq!(browser.evaluate("document.querySelectorAll('[data-port] svg').length"), 12);
}

/// Nobody but the gateway was asked for anything, and nothing was complained about.
#[track_caller]
fn assert_quiet(browser: &mut Browser, home: &str) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let requests = browser.requests();
    let own = |url: &String| url.starts_with(home) || url.starts_with("data:image/svg");
    assert!(!requests.is_empty() && requests.iter().all(own), "{requests:#?}");
    assert_eq!(browser.evaluate("document.images.length"), 0, "something broke out");
}

/// The page says what the status says, without scripts and with them, and follows within 2 s.
#[test]
fn it_shows_what_the_status_says_while_it_changes() {
    run(Engine::Epoll, |_| {
        let Some(mut browser) = Browser::start() else {
            return skip(NO_CHROMIUM);
        };
        let oracle = Oracle::start(Script::Held);
        let gateway = start(&oracle);
        let home = address(&gateway);
        let first = format!("[data-port=\"{}\"]", gateway.address);
        browser.resize(1280, 900);
        browser.open(&home);
        assert_agree(&mut browser, &gateway);
        assert_eq!(browser.text("h1 b").as_deref(), Some("idle"));

        let clients = overload(&gateway, &oracle);
        until("the page follows", slack(Duration::from_secs(2)), || {
            browser.text(&format!("{first} [data-is=queued]")).as_deref() == Some("8")
                && browser.text("h1 b").as_deref() == Some("full")
                && browser.text(&format!("{first} [data-is='refused.queue_full']")).as_deref()
                    == Some("5")
        });
        assert_agree(&mut browser, &gateway);
        let sentence = browser.text("h1").expect("a heading");
        assert!(sentence.contains("4 of 4 in flight, 8 wait"), "{sentence}");
        // The one who listens is told the word, and only when it changes.
        let heard = browser.text("#news").expect("a live region");
        assert!(heard.ends_with(": full"), "{heard}");
        // It is about the last seconds: somebody has to be refused in them.
        until("it says that some are refused", SOON, || {
            let more = Client::asking(gateway.address, Duration::ZERO).end();
            assert_eq!(more, End::Refused);
            let sentence = browser.text("h1").expect("a heading");
            sentence.contains("4 of 4 in flight, 8 wait, ")
                && sentence.contains("/s refused (queue_full)")
        });
        assert_quiet(&mut browser, &home);

        browser.evaluate("document.getElementById('pause').click()");
        oracle.release(12);
        assert!(clients.into_iter().all(|mut client| client.end() == End::Answered));
        until("nobody is left", SOON, || gateway.port().active == 0);
        assert_eq!(browser.text("#live").as_deref(), Some("paused, as of"));
        browser.evaluate("document.getElementById('pause').click()");
        until("it goes on", slack(Duration::from_secs(2)), || {
            browser.text(&format!("{first} [data-is=active]")).as_deref() == Some("0")
        });

        browser.scripts(false);
        browser.open(&format!("{home}?reload=5"));
        assert_agree(&mut browser, &gateway);
        assert_eq!(browser.text("#live").as_deref(), Some("as of"));
        let drawn =
            "document.querySelector('[data-port] path.line').getAttribute('d').startsWith('M1')";
        assert_eq!(browser.evaluate(drawn), true, "the plots are there without scripts");
        browser.scripts(true);
        browser.open(&home);

        // What is shown stays, and is said to be old.
        let mut gateway = gateway;
        browser.forget();
        gateway.signal(Signal::KILL);
        gateway.wait_exit(SOON);
        until("it says that nobody answers", 2 * SOON, || {
            browser.text("#live").as_deref() == Some("no answer since")
        });
        assert!(browser.text(&format!("{first} [data-is=active]")).is_some());
    });
}

/// Calm, overloaded and draining; wide and narrow; dark and light: nothing has to be scrolled
/// sideways, and axe finds nothing that shuts somebody out.
#[test]
fn everybody_can_read_it() {
    run_beside(Engine::Epoll, |_| {
        let Some(mut browser) = Browser::start() else {
            return skip(NO_CHROMIUM);
        };
        let Some(axe) = apps::file("axe_playwright_python/axe.min.js") else {
            return skip("tests/apps/setup has not been run");
        };
        let axe = std::fs::read_to_string(axe).expect("text");
        let oracle = Oracle::start(Script::Held);
        let mut gateway = start(&oracle);
        let home = address(&gateway);
        let look = |browser: &mut Browser, state: &str| {
            for width in [1280, 390] {
                browser.resize(width, 900);
                for scheme in ["light", "dark"] {
                    browser.prefer(scheme);
                    browser.open(&home);
                    browser.evaluate(
                        "document.querySelectorAll('details').forEach((d) => d.open = true)",
                    );
                    browser.picture(&format!("{state}-{width}-{scheme}"));
                    assert_fits(browser, width);
                    assert_accessible(browser, &axe, &format!("{state} {width} {scheme}"));
                }
            }
        };
        look(&mut browser, "calm");
        let mut clients = overload(&gateway, &oracle);
        look(&mut browser, "overloaded");

        gateway.drain();
        until("it drains", SOON, || status(&gateway)["phase"] == "closing");
        oracle.release(4);
        let mut rest = clients.split_off(4);
        assert!(clients.iter_mut().all(|client| client.end() == End::Answered));
        until("four have ended", SOON, || status(&gateway)["draining"]["finished"] == 4);
        look(&mut browser, "draining");
        let progress =
            "[...document.querySelectorAll('progress')].map((bar) => [bar.value, bar.max])";
        let bars = browser.evaluate(progress);
        assert_eq!(bars[0], json!([4, 12]), "{bars}");
        let part = bars[1][0].as_f64().expect("a number") / bars[1][1].as_f64().expect("a number");
        assert!(part > 0.0 && part < 1.0, "{bars}");
        assert_eq!(browser.text("h1 b").as_deref(), Some("draining"));
        let shown = browser.text("[data-is=in_flight_at_start]");
        assert_eq!(shown.as_deref(), Some("4"));
        assert_quiet(&mut browser, &home);
        oracle.release(8);
        assert!(rest.iter_mut().all(|client| client.end() == End::Answered));
        gateway.wait_exit(SOON);
    });
}

#[track_caller]
fn assert_fits(browser: &mut Browser, width: u32) {
    let wide = "[...document.querySelectorAll('body *')]\
        .filter((node) => node.getBoundingClientRect().right > innerWidth + 0.5)\
        .map((node) => node.tagName + '.' + node.className + ' ' + node.textContent.slice(0, 40))";
    assert_eq!(browser.evaluate(wide), json!([]), "wider than {width}");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), width);
}

#[track_caller]
fn assert_accessible(browser: &mut Browser, axe: &str, where_: &str) {
    browser.evaluate(&format!("{axe}; true"));
    let looked = browser.evaluate(
        "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })\
         .then((all) => [all.passes.length, all.violations.map(\
         (v) => [v.id, v.help, v.nodes.map((n) => n.html + n.failureSummary)])])",
    );
    assert_eq!(looked[1], json!([]), "{where_}");
    assert!(looked[0].as_u64() > Some(10), "axe looked at nothing: {looked}");
}
