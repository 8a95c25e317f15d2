//! The metrics: their sums are the books of those who made the load, a real Prometheus reads both formats
//! and answers the dashboard, the alerts are what promtool expects, and scraping disturbs nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::client::{self as http, Http1};
use crate::http::oracle::HttpOracle;
use crate::support::collector::Sink;
use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{self, Client, End, Ledger};
use crate::support::oracle::{Oracle, Script};
use crate::support::prometheus::{self, Relay, promtool, root, scrape};
use crate::support::{Engine, Over, SOON, Stopwatch, engines, process, run, scale, skip, until};

engines!(
    sums_are_the_books_of_the_load,
    backlog_settings_and_phase_are_shown,
    bytes_are_counted_as_they_go,
    scraping_stalls_nobody_and_does_not_grow,
    what_clients_say_is_no_label,
);

const DASHBOARD: &str = "charts/tidegate/dashboards/tidegate.json";
const RULES: &str = "charts/tidegate/rules/tidegate.yaml";
const INJECTOR_RULES: &str = "charts/tidegate/rules/injector.yaml";
const RULE_TESTS: [&str; 2] = ["tests/prometheus/rules.yaml", "tests/prometheus/injector.yaml"];

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
const CLASSIC: &str = "text/plain;version=0.0.4,application/openmetrics-text;q=0.5";

/// A gateway with three ports: requests, connections, and connections that are only watched.
struct Three {
    gateway: Gateway,
    requests: u16,
    connections: u16,
    watched: u16,
    _apps: (HttpOracle, Oracle),
    _collector: Sink,
}

/// What the clients saw.
struct Load {
    requests: Ledger,
    connections: Ledger,
    watched: Ledger,
}

impl Three {
    fn start(engine: Engine) -> Self {
        let (http, tcp) = (HttpOracle::start(), Oracle::start(Script::Work));
        let collector = Sink::start();
        // The kernel gives the same port to nobody else for a while.
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let [requests, connections, watched] = [(); 3].map(|()| free().expect("a port").port());
        let ports = [(requests, http.address), (connections, tcp.address), (watched, tcp.address)];
        let setup = ports.into_iter().fold(Setup::without_port(engine), |setup, (port, app)| {
            setup.port_at(format!("127.0.0.1:{port}"), app)
        });
        let gateway = setup
            .set("protocol", "auto")
            .also("protocol", format!("{requests}=http")) // a client that is slow to speak is one of HTTP
            .set("limit", 2)
            .set("queue-length", 2)
            .set("mode", format!("{watched}=observe"))
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))
            .start();
        let (_apps, _collector) = ((http, tcp), collector);
        Self { gateway, requests, connections, watched, _apps, _collector }
    }

    /// Far more than fits, `times` over, on all three ports: at first one after the other, so that the gates
    /// are certainly full and more than full, then all at once.
    fn load(&self, times: usize) -> Load {
        let (work, at) =
            (Duration::from_millis(10), |port| SocketAddr::from(([127, 0, 0, 1], port)));
        let full = [
            http::overfill(&self.gateway, at(self.requests), 2, 2),
            ledger::overfill(&self.gateway, at(self.connections), 2, 2),
            self.crowd(at(self.watched)),
        ];
        let of_connections = |port: u16| {
            let to = at(port);
            ledger::closed_loop(8, 40 * times, move |_, _| ledger::exchange(to, work, SOON))
        };
        std::thread::scope(|scope| {
            let connections = scope.spawn(|| of_connections(self.connections));
            let watched = scope.spawn(|| of_connections(self.watched));
            let to = at(self.requests);
            let requests =
                ledger::closed_loop(8, 40 * times, |_, _| http::exchange(to, "/work?ms=10", SOON));
            let join = |thread: std::thread::ScopedJoinHandle<'_, Ledger>| {
                thread.join().expect("no client panicked")
            };
            let many = [requests, join(connections), join(watched)];
            let both =
                full.into_iter().zip(many).map(|(full, many)| [full, many].into_iter().sum());
            let [requests, connections, watched] =
                both.collect::<Vec<_>>().try_into().expect("three ports");
            Load { requests, connections, watched }
        })
    }

    /// One more at once than the watched port would have room for, waiting ones too; none is refused.
    fn crowd(&self, to: SocketAddr) -> Ledger {
        let silent = |_| Client::connect(to).expect("the gateway listens");
        let mut clients: Vec<_> = (0..5).map(silent).collect();
        until("all are in", SOON, || self.gateway.port_at(to.port()).active == 5);
        clients.iter_mut().for_each(|client| client.ask(Duration::from_millis(10)));
        clients.iter_mut().map(Client::end).collect()
    }

    fn metrics_address(&self) -> SocketAddr {
        metrics_address(&self.gateway)
    }
}

impl Load {
    /// Nobody was lost, and there was something of everything.
    #[track_caller]
    fn assert_mixed(&self) {
        for ledger in [&self.requests, &self.connections] {
            let (answered, refused) = (ledger.of(End::Answered), ledger.of(End::Refused));
            assert_eq!(answered + refused, ledger.total(), "{ledger:?}");
            assert!(answered > 0 && refused > 0, "{ledger:?}");
        }
        assert_eq!(self.watched.of(End::Answered), self.watched.total(), "{:?}", self.watched);
    }

    /// What `tidegate_admission_decisions_total` has to be, by port and outcome.
    fn decisions(&self, three: &Three) -> BTreeMap<(u16, &'static str), f64> {
        let ports = [
            (three.requests, &self.requests),
            (three.connections, &self.connections),
            (three.watched, &self.watched),
        ];
        let of = |(port, ledger): (u16, &Ledger)| {
            [("admitted", End::Answered), ("refused", End::Refused)]
                .map(|(outcome, end)| ((port, outcome), ledger.of(end) as f64))
        };
        ports.into_iter().flat_map(of).collect()
    }
}

/// Where `/metrics` is for scrapers.
fn metrics_address(gateway: &Gateway) -> SocketAddr {
    let status: Value =
        serde_json::from_str(&gateway.call("GET", "/status.json", "").body).expect("JSON");
    status["metrics"].as_str().and_then(|text| text.parse().ok()).expect("an address")
}

/// The samples of a page, by name and labels as written.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        (series.to_owned(), value.parse().expect("a number"))
    });
    samples.collect()
}

/// The sum of a metric's samples that have all of these labels.
fn sum(samples: &BTreeMap<String, f64>, name: &str, labels: &[String]) -> f64 {
    let of_name = |series: &str| series.split('{').next() == Some(name);
    let wanted = samples.iter().filter(|(series, _)| {
        of_name(series) && labels.iter().all(|label| series.contains(label.as_str()))
    });
    wanted.map(|(_, value)| value).sum()
}

fn label(name: &str, value: impl ToString) -> String {
    format!("{name}=\"{}\"", value.to_string())
}

/// Counters and histograms: what may only grow.
fn only_grows(series: &str) -> bool {
    let name = series.split('{').next().unwrap_or_default();
    ["_total", "_count", "_sum", "_bucket"].iter().any(|suffix| name.ends_with(suffix))
}

/// In both formats: what was admitted and refused is what the clients saw, every connection is in each sum
/// once, histograms have seen as many as the counters, and while the load runs nothing ever shrinks.
fn sums_are_the_books_of_the_load(engine: Engine) {
    let three = Three::start(engine);
    let from = three.metrics_address();
    let over = AtomicBool::new(false);
    let (load, pages) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut pages = Vec::new();
            while !over.load(Ordering::Relaxed) || pages.len() < 2 {
                pages.push(samples(&scrape(from, CLASSIC).1));
            }
            pages
        });
        let load = {
            let _over = Over(&over);
            three.load(2)
        };
        (load, watching.join().expect("every page was read"))
    });
    load.assert_mixed();
    for (before, after) in pages.iter().zip(&pages[1..]) {
        for (series, value) in before.iter().filter(|(series, _)| only_grows(series)) {
            assert!(after[series] >= *value, "{series} went from {value} to {}", after[series]);
        }
    }

    until("all connections are closed", SOON, || three.gateway.status().connections == 0);
    let (kind, classic) = scrape(from, CLASSIC);
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let (kind, modern) = scrape(from, OPENMETRICS);
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(modern.ends_with("\n# EOF\n"));
    for page in [classic, modern.trim_end_matches("# EOF\n").to_owned()] {
        let page = samples(&page);
        for ((port, outcome), count) in load.decisions(&three) {
            let labels = [label("port", port), label("outcome", outcome)];
            let counted = sum(&page, "tidegate_admission_decisions_total", &labels);
            assert_eq!(counted, count, "{outcome} on {port}");
        }
        for port in [three.requests, three.connections, three.watched] {
            let port = [label("port", port)];
            let accepted = sum(&page, "tidegate_connections_accepted_total", &port);
            let ended = sum(&page, "tidegate_connections_total", &port);
            assert_eq!(accepted, ended, "{port:?}");
            let open = [port[0].clone(), label("direction", "in")];
            assert_eq!(sum(&page, "tidegate_connections_active", &open), 0.0);
        }
        let requests = [label("port", three.requests), label("outcome", "served")];
        let served = load.requests.of(End::Answered) as f64;
        assert_eq!(sum(&page, "tidegate_requests_total", &requests), served);
        assert_eq!(sum(&page, "tidegate_request_duration_seconds_count", &requests[..1]), served);
        let http = [label("port", three.requests), label("outcome", "http")];
        let all = load.requests.total() as f64;
        assert_eq!(sum(&page, "tidegate_connections_total", &http), all);
        let connections = [label("port", three.connections)];
        let served = load.connections.of(End::Answered) as f64;
        let lasted = "tidegate_connection_duration_seconds";
        assert_eq!(sum(&page, &format!("{lasted}_count"), &connections), served);
        // Each took 10 ms at least.
        assert!(sum(&page, &format!("{lasted}_sum"), &connections) >= 0.01 * served);
        let would = sum(&page, "tidegate_would_refuse_total", &[label("port", three.watched)]);
        assert!(would > 0.0, "eight at once are more than two");
        let demand = |port| sum(&page, "tidegate_admission_demand_ratio", &[label("port", port)]);
        assert!(demand(three.connections) > 0.0 && demand(three.requests) > 0.0, "{page:?}");
    }
}

/// Connections that are held wait in the kernel, where they are seen; so are changes of settings, what was
/// asked for, and the phase.
fn backlog_settings_and_phase_are_shown(engine: Engine) {
    let oracle = Oracle::start(Script::Held);
    let setup = Setup::new(engine, oracle.address).set("limit", 1).set("queue-length", 0);
    let gateway = setup.set("tcp-refuse", "hold").start();
    let mut clients: Vec<_> =
        (0..6).map(|_| Client::asking(gateway.address, Duration::ZERO)).collect();
    until("one is in", SOON, || oracle.count() == 1);
    // The accept loop may have taken one more before it looked.
    until("the rest waits in the kernel", SOON, || {
        gateway.metric("tidegate_listen_backlog", "") >= 4.0
    });
    assert!(gateway.metric("tidegate_listen_backlog_capacity", "") >= 128.0);
    let both = |direction| gateway.metric("tidegate_connections_active", direction);
    until("it is relayed", SOON, || both("\"out\"") == 1.0);
    assert!((1.0..=2.0).contains(&both("\"in\"")), "{}", both("\"in\""));
    assert_eq!(
        gateway.metric("tidegate_admission_demand_ratio", ""),
        1.0,
        "one of one, none refused"
    );

    gateway.set("limit", 8);
    assert_eq!(gateway.metric("tidegate_admission_limit", ""), 8.0);
    assert!(gateway.call("POST", "/set", r#"{"limit":"many"}"#).code >= 400);
    gateway.signal(rustix::process::Signal::HUP);
    let changes = |labels| gateway.metric("tidegate_config_changes_total", labels);
    until("the file was read again", SOON, || changes("source=\"file\",result=\"applied\"") == 1.0);
    assert_eq!(changes("source=\"live\",result=\"applied\""), 1.0);
    assert_eq!(changes("source=\"live\",result=\"refused\""), 1.0);
    gateway.set("mode", "observe");
    assert_eq!(gateway.metric("tidegate_admission_limit", ""), f64::INFINITY, "none is enforced");

    oracle.release(6);
    clients.iter_mut().for_each(|client| assert_eq!(client.end(), End::Answered));
    assert_eq!(gateway.metric("tidegate_phase", "serving"), 1.0);
    until("all are closed", SOON, || both("") == 0.0);
    assert_eq!(gateway.metric("tidegate_listen_backlog", ""), 0.0);
    gateway.assert_clean();
}

/// A connection that is kept shows what it carries before it closes.
fn bytes_are_counted_as_they_go(engine: Engine) {
    let oracle = HttpOracle::start();
    let gateway = Setup::new(engine, oracle.address).set("protocol", "http").start();
    let mut client = Http1::connect(gateway.address);
    let carried = |direction| gateway.metric("tidegate_bytes_total", direction);
    for turn in 1..=3 {
        assert_eq!(client.get("/down?n=100000").body.len(), 100_000);
        until("the answer is counted", SOON, || carried("\"out\"") >= f64::from(turn * 100_000));
        assert!(carried("\"in\"") > 0.0);
    }
    let listed: Value =
        serde_json::from_str(&gateway.call("GET", "/connections.json", "").body).expect("JSON");
    assert!(listed[0]["bytes_out"].as_u64().is_some_and(|bytes| bytes >= 300_000), "{listed}");
    let before = carried("");
    drop(client);
    until("it is closed", SOON, || gateway.status().connections == 0);
    assert_eq!(carried(""), before, "and nothing was counted twice");
}

/// Sixteen ports, thousands of connections open, a scraper that never rests: an echo takes about as long
/// as without it, the page is as long as for no connection at all, and memory does not grow.
fn scraping_stalls_nobody_and_does_not_grow(engine: Engine) {
    const SCRAPES: usize = 400;
    let fds =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = (fds.min(1 << 20) as usize - 1_000) / 2;
    let count = scale(1_600, 10_000).min(most);
    let oracle = Oracle::start(Script::Echo);
    let setup = (0..16).fold(Setup::without_port(engine), |s, _| s.port(oracle.address));
    let gateway = setup.start();
    let from = metrics_address(&gateway);
    let empty = scrape(from, OPENMETRICS).1.len();
    let ports = gateway.listens.iter().cycle();
    let idle: Vec<_> =
        ports.take(count).map(|to| Client::connect(*to).expect("connects")).collect();
    until("all are there", 3 * SOON, || oracle.count() == count);
    let full = scrape(from, OPENMETRICS).1.len();
    // Numbers have more digits, and that is all.
    assert!(full < empty + empty / 10, "the page grew from {empty} to {full} bytes");

    let mut busy = Client::connect(gateway.address).expect("connects");
    let mut echoes = || {
        let mut took = hdrhistogram::Histogram::<u64>::new(3).expect("3 digits");
        for _ in 0..2_000 {
            let start = Stopwatch::start();
            busy.stream.write_all(b"x").expect("writes");
            busy.stream.read_exact(&mut [0]).expect("an echo");
            took.record(start.own().as_micros() as u64).expect("in range");
        }
        [0.5, 0.99].map(|q| Duration::from_micros(took.value_at_quantile(q)))
    };
    let (over, rests) = (AtomicBool::new(false), AtomicBool::new(true));
    let (without, with, scrapes, grown) = std::thread::scope(|scope| {
        let scraping = scope.spawn(|| {
            (0..50).for_each(|_| drop(scrape(from, CLASSIC)));
            let (before, mut scrapes) = (process::rss(gateway.pid), 0);
            while !over.load(Ordering::Relaxed) || scrapes < SCRAPES {
                if rests.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1)); // between two looks
                    continue;
                }
                assert!(scrape(from, CLASSIC).1.len() > empty / 2);
                scrapes += 1;
            }
            (scrapes, process::rss(gateway.pid).saturating_sub(before))
        });
        // In turns: whatever else this machine has to do, both have it.
        let [mut without, mut with] = [[Duration::MAX; 2]; 2];
        {
            let _over = Over(&over);
            for _ in 0..3 {
                for (best, at_rest) in [(&mut without, true), (&mut with, false)] {
                    rests.store(at_rest, Ordering::Relaxed);
                    *best = echoes().min(*best);
                }
            }
        }
        let (scrapes, grown) = scraping.join().expect("every page was read");
        (without, with, scrapes, grown)
    });
    eprintln!(
        "{count} open: an echo without {without:?}, with {with:?}; {scrapes} scrapes of {full} bytes, {grown} bytes more"
    );
    // The scraper, the gateway's two threads and the application share the cores.
    let bound = |quiet: Duration| 5 * quiet + Duration::from_millis(5);
    assert!(with[0] <= bound(without[0]), "{with:?} instead of {without:?}");
    assert!(with[1] <= bound(without[1]) + Duration::from_millis(20), "{with:?}: {without:?}");
    // Nothing of a page stays: a tenth of them would. The allocator keeps up to 2 MiB for a while.
    assert!(grown < (scrapes * full / 10) as u64, "{grown} bytes more after {scrapes} scrapes");
    drop((idle, busy));
    gateway.assert_clean();
}

/// Other addresses, paths, methods, hosts and names than ever before: the series are the same as for nobody.
fn what_clients_say_is_no_label(engine: Engine) {
    let app = HttpOracle::start();
    let setup = crate::http::gate(engine, app.address).set("limit", 1).set("queue-length", 0);
    let gateway = setup.set("per-client-header", "x-tenant").start();
    let from = metrics_address(&gateway);
    let series =
        || -> BTreeSet<String> { samples(&scrape(from, OPENMETRICS).1).into_keys().collect() };
    let before = series();
    let mut held = Http1::asking(gateway.address, "/held");
    until("it is full", SOON, || app.in_progress() == 1);
    for n in 0..50_u8 {
        let source = std::net::IpAddr::from([127, 0, 1, n + 1]);
        let mut client = Http1::connect_from(source, gateway.address);
        let more = format!(
            "User-Agent: forged{n}\r\nX-Request-Id: forged{n}\",port=\"x\r\nX-Tenant: forged{n}\r\n"
        );
        client.begin(&format!("FORGED{n}"), &format!("/forged/{n}?forged={n}"), &more);
        assert_eq!(client.answer().expect("an answer").status, 503);
        let two = format!("GET /forged{n} HTTP/1.1\r\nHost: forged{n}\r\nHost: forged\r\n\r\n");
        client.send(two.as_bytes());
        assert_eq!(client.answer().expect("an answer").status, 400);
    }
    app.release(1);
    assert_eq!(held.end(), End::Answered);
    let after = series();
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.is_empty(), "series that a client has made: {new:?}");
    assert!(before.len() < 400, "{} series of one port", before.len());
}

/// Every metric that the dashboard and the alerts name is on the page of a living gateway.
#[test]
fn dashboard_and_alerts_name_only_what_there_is() {
    run(Engine::Epoll, |engine| {
        let three = Three::start(engine);
        three.load(1).assert_mixed();
        let page = samples(&scrape(three.metrics_address(), CLASSIC).1);
        let there: BTreeSet<_> =
            page.keys().map(|series| series.split('{').next().expect("a name")).collect();
        let mut named = 0;
        for file in [DASHBOARD, RULES] {
            let text = std::fs::read_to_string(root().join(file)).expect("the file is there");
            // A rule speaks of metrics also in its description.
            for name in names(&text) {
                let is_family = there.iter().any(|t| t.strip_prefix(name) == Some("_bucket"));
                assert!(there.contains(name) || is_family, "{file} names {name}: {there:?}");
                named += 1;
            }
        }
        assert!(named > 50, "only {named} names were found");
        for query in queries() {
            assert!(!names(&query).is_empty(), "a panel that shows no metric of ours: {query}");
        }
    });
}

/// promtool, and a Prometheus that scrapes both formats for some seconds of load: the alerts are as they
/// should be and evaluate, every query of the dashboard is answered with something, counters only grew,
/// and what Prometheus knows in the end is what the clients saw.
#[test]
fn a_real_prometheus_reads_both_formats() {
    run(Engine::Epoll, |engine| {
        if !["prometheus", "promtool"].into_iter().all(process::installed) {
            return skip("prometheus and promtool are not installed");
        }
        promtool(&["check", "rules", RULES, INJECTOR_RULES], "");
        promtool(&["test", "rules", RULE_TESTS[0], RULE_TESTS[1]], "");

        let three = Three::start(engine);
        let classic = Relay::start(three.metrics_address(), CLASSIC);
        let targets = [("openmetrics", three.metrics_address()), ("classic", classic.address)];
        let server = prometheus::start(RULES, &targets);
        let asked = |query: &str| prometheus::ask(&server, query);
        until("both are scraped", SOON, || asked("count(up == 1)") == [2.0]);
        // Long enough for several scrapes of each.
        let start = Instant::now();
        let mut loads = Vec::new();
        while start.elapsed() < Duration::from_secs(4) {
            loads.push(three.load(2));
        }
        let page = scrape(three.metrics_address(), CLASSIC).1;
        promtool(&["check", "metrics"], &page);

        let mut books = BTreeMap::new();
        for load in &loads {
            load.assert_mixed();
            for (key, count) in load.decisions(&three) {
                *books.entry(key).or_insert(0.0) += count;
            }
        }
        for job in ["classic", "openmetrics"] {
            for ((port, outcome), count) in &books {
                let query = format!(
                    "sum(tidegate_admission_decisions_total{{job=\"{job}\",port=\"{port}\",outcome=\"{outcome}\"}})"
                );
                until(&format!("{query} is {count}"), SOON, || asked(&query) == [*count]);
            }
        }
        let page = samples(&page);
        let counters = page.keys().filter(|series| only_grows(series));
        let counters: BTreeSet<_> = counters.filter_map(|s| s.split('{').next()).collect();
        assert!(counters.len() > 15, "{counters:?}");
        for counter in counters {
            let shrunk = asked(&format!("resets({counter}[10m])"));
            assert!(!shrunk.is_empty() && shrunk.iter().all(|n| *n == 0.0), "{counter} {shrunk:?}");
        }

        let queries = queries();
        assert!(queries.len() > 40, "only {} queries were found", queries.len());
        for query in &queries {
            let mut query = query.replace("$__rate_interval", "1m");
            for variable in ["$job", "$instance", "$port"] {
                query = query.replace(variable, ".+");
            }
            let what = format!("the dashboard shows something for {query}");
            until(&what, SOON, || !asked(&query).is_empty());
        }
        until("every alert was evaluated", SOON, || {
            let rules = prometheus::get(&server, "/api/v1/rules");
            let rules = rules["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
            let broken = rules.iter().find(|rule| rule["health"] == "err");
            assert!(broken.is_none(), "{broken:?}");
            !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
        });
    });
}

/// Every name of a metric in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = |word: &&str| word.starts_with("tidegate_") || word.starts_with("process_");
    words.filter(ours).collect()
}

/// Every query of the dashboard.
fn queries() -> Vec<String> {
    let text = std::fs::read_to_string(root().join(DASHBOARD)).expect("the dashboard is there");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect()
}
