//! In front of servers that people run: nginx, PostgreSQL and Redis from Debian packages, with their own
//! benchmarks, and the server's own word on how many connections it has (P1, P9).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::{End, Ledger};
use crate::support::server::Server;
use crate::support::{Engine, Over, SOON, engines, process, scale, skip, sockets, until};

engines!(nginx, postgresql, redis);

const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";

/// The narrow gate of the issue: 4 at once, 4 waiting.
fn narrow(engine: Engine, server: &Server) -> Gateway {
    Setup::new(engine, server.address()).set("limit", 4).set("queue-length", 4).start()
}

/// A gate wide enough for a benchmark.
fn wide(engine: Engine, server: &Server) -> Gateway {
    Setup::new(engine, server.address()).set("limit", 200).start()
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("it runs")
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said.into_owned()
}

/// 50 clients of a [`narrow`] gate. Four hold a connection each, four wait for one, and only then come the 42
/// others, all at once, each one call of `client`; when these are over the eight have their work done. Beside
/// them `ask_server` says how many connections the server has, again and again. Answers the clients' ledger
/// and the most it said.
fn fifty<Held>(
    gateway: &Gateway,
    hold: impl Fn() -> Held,
    finish: impl Fn(Held) -> End,
    client: impl Fn() -> End + Sync,
    ask_server: impl Fn() -> u64 + Sync,
) -> (Ledger, u64) {
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(ask_server(), Ordering::Relaxed);
            }
        });
        let over = Over(&over);
        let mut held: Vec<_> = (0..4).map(|_| hold()).collect();
        until("the server has four", SOON, || most.load(Ordering::Relaxed) == 4);
        held.extend((0..4).map(|_| hold()));
        until("four more wait", SOON, || gateway.port().queued == 4);
        let clients: Vec<_> = (0..42).map(|_| scope.spawn(&client)).collect();
        let ends = clients.into_iter().map(|client| client.join().expect("no panic"));
        let mut ledger: Ledger = ends.collect();
        held.into_iter().for_each(|held| ledger.enter(finish(held)));
        drop(over);
        (ledger, most.load(Ordering::Relaxed))
    })
}

/// A connection on which nothing was said yet.
fn silent(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(gateway.address).expect("the gateway listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream
}

/// What the clients say, what the status says and what the metrics say is the same.
#[track_caller]
fn assert_books_agree(gateway: &Gateway, ledger: &Ledger, server_saw: u64) {
    assert_eq!(server_saw, 4, "the most that the server saw");
    let (answered, refused) =
        (ledger.of(End::Answered), ledger.of(End::Refused) + ledger.of(End::Reset));
    assert_eq!((answered, refused), (8, 42), "those who were in, and those who waited: {ledger:?}");
    gateway.assert_clean();
    let port = gateway.port();
    assert_eq!(port.admitted, answered, "{port:?}");
    assert_eq!(port.refused.values().sum::<u64>(), refused, "{port:?}");
    assert_eq!(port.refused("queue_full"), refused, "{port:?}");
    assert!(port.peak_active <= 4, "{port:?}");
    let decisions = gateway.metric("tidegate_admission_decisions_total", "");
    assert_eq!(decisions, 50.0, "{:?}", gateway.metrics());
    let full = gateway.metric("tidegate_admission_decisions_total", "queue_full");
    assert_eq!(full as u64, port.refused("queue_full"), "{:?}", gateway.metrics());
}

/// wrk through a wide gate; then 50 downloads through a narrow one, those that are let in slow.
fn nginx(engine: Engine) {
    if !process::installed("nginx") || !process::installed("wrk") || !process::installed("curl") {
        return skip("nginx, wrk or curl is not installed");
    }
    let server = Server::start(|dir, port| {
        let text = format!(
            "daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
             events {{ worker_connections 1024; }}
             http {{
                 access_log off; root {dir};
                 client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
                 uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
                 server {{
                     listen 127.0.0.1:{port};
                     location / {{ return 200 'ok'; }}
                     location /slow {{ limit_rate 20k; sendfile on; sendfile_max_chunk 2k; }}
                 }}
                 server {{
                     listen unix:{dir}/status.sock;
                     keepalive_timeout 0;
                     location / {{ stub_status; }}
                 }}
             }}",
            dir = dir.display()
        );
        std::fs::write(dir.join("nginx.conf"), text).expect("writes");
        std::fs::write(dir.join("slow"), vec![b'x'; 4_000]).expect("writes"); // 2 KiB, 100 ms, the rest
        for (path, mode) in [(dir.to_path_buf(), 0o755), (dir.join("slow"), 0o644)] {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::Permissions::from_mode(mode); // its worker is not root
            std::fs::set_permissions(path, mode).expect("ours");
        }
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf"));
        command
    });

    let gateway = wide(engine, &server);
    let url = format!("http://{}/", gateway.address);
    let seconds = format!("{}s", scale(1, 10));
    let said = succeed(Command::new("wrk").args([
        "-t1",
        "-c32",
        "--timeout",
        "60s",
        "-d",
        &seconds,
        &url,
    ]));
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    gateway.assert_clean();

    let gateway = narrow(engine, &server);
    let url = format!("http://{}/slow", gateway.address);
    let client = || {
        let mut curl = Command::new("curl");
        let output = run(curl.args(["-s", "--no-keepalive", "-H", "Connection: close", &url]));
        match output.status.code() {
            Some(0) if output.stdout.len() == 4_000 => End::Answered,
            Some(52) => End::Refused, // an empty answer
            Some(56) => End::Reset,
            _ => End::Lost,
        }
    };
    let download = |mut stream: TcpStream| {
        stream.write_all(b"GET /slow HTTP/1.0\r\n\r\n").expect("it is open");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let whole = answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&[b'x'; 4_000]);
        if whole { End::Answered } else { End::Lost }
    };
    // The server's own word; it counts the connection on which it is asked, too.
    let status = server.dir.path().join("status.sock");
    let server_side = || {
        let mut curl = Command::new("curl");
        let output = run(curl.args(["-s", "http://status/", "--unix-socket"]).arg(&status));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let active = said
            .strip_prefix("Active connections: ")
            .and_then(|rest| rest.split_whitespace().next());
        active.map_or(0, |active| active.parse::<u64>().expect("a number") - 1)
    };
    let (ledger, most) = fifty(&gateway, || silent(&gateway), download, client, server_side);
    assert_books_agree(&gateway, &ledger, most);
}

/// pgbench through a wide gate; then 50 psql through a narrow one, counted in `pg_stat_activity`.
fn postgresql(engine: Engine) {
    if !process::installed(&format!("{POSTGRES_BIN}/postgres")) || !process::installed("pgbench") {
        return skip("PostgreSQL is not installed");
    }
    if !rustix::process::geteuid().is_root() || !process::installed("setpriv") {
        return skip("starting PostgreSQL as another user needs root and setpriv");
    }
    let as_postgres = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(format!("{POSTGRES_BIN}/{program}")).current_dir("/");
        command
    };
    let server = Server::start(|dir, port| {
        succeed(Command::new("chown").args(["-R", "postgres"]).arg(dir));
        let data = dir.join("data");
        succeed(as_postgres("initdb").args(["--auth=trust", "--no-sync", "-D"]).arg(&data));
        let mut command = as_postgres("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(dir);
        command.args([
            "-p",
            &port.to_string(),
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=127.0.0.1",
        ]);
        command
    });
    let direct = server.dir.path().to_str().expect("UTF-8").to_owned();
    let server_port = server.port.to_string();
    let query = |sql: &str| {
        let mut command = Command::new("psql");
        let run =
            run(command.args(["-h", &direct, "-p", &server_port, "-U", "postgres", "-Atqc", sql]));
        String::from_utf8_lossy(&run.stdout).trim().to_owned()
    };
    until("PostgreSQL is ready", SOON, || query("select 1") == "1");

    let gateway = wide(engine, &server);
    let through = |gateway: &Gateway, program: &str| {
        let mut command = Command::new(program);
        let port = gateway.address.port().to_string();
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"]);
        command.env("PGGSSENCMODE", "disable").env("PGSSLMODE", "disable");
        command
    };
    succeed(through(&gateway, "pgbench").args(["-i", "-q", "-s", "1", "postgres"]));
    let seconds = scale(2, 10).to_string();
    let said = succeed(through(&gateway, "pgbench").args(["-c", "16", "-T", &seconds, "postgres"]));
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    // -C: a new connection for each transaction
    let said = succeed(
        through(&gateway, "pgbench").args(["-C", "-S", "-c", "8", "-T", &seconds, "postgres"]),
    );
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    gateway.assert_clean();

    let gateway = narrow(engine, &server);
    let client = || {
        let mut psql = through(&gateway, "psql");
        let output = run(psql.args(["-Atqc", "select 'served'", "postgres"]));
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) if output.stdout.ends_with(b"served\n") => End::Answered,
            _ if said.contains("reset by peer") => End::Reset,
            _ if said.contains("closed the connection unexpectedly") => End::Refused,
            _ => End::Lost,
        }
    };
    // It connects, and then reads what to ask.
    let hold = || {
        let mut psql = through(&gateway, "psql");
        let psql = psql.args(["-Atq", "postgres"]).stdin(Stdio::piped());
        psql.stdout(Stdio::piped()).spawn().expect("it runs")
    };
    let ask = |mut psql: Child| {
        let told = psql.stdin.take().expect("a pipe").write_all(b"select 'served';\n");
        told.expect("it reads");
        let output = psql.wait_with_output().expect("it ends");
        if output.stdout == b"served\n" { End::Answered } else { End::Lost }
    };
    // The server's own word, asked over its unix socket; a backend is gone a moment after its socket, so
    // those who are just leaving are told apart by the socket table.
    let server_side = || {
        let sql = "select count(*) from pg_stat_activity where client_addr is not null";
        let backends: u64 = query(sql).parse().unwrap_or(0);
        backends.min(sockets::open_at(server.port).len() as u64)
    };
    let (ledger, most) = fifty(&gateway, hold, ask, client, server_side);
    assert_books_agree(&gateway, &ledger, most);
}

/// redis-benchmark through a wide gate; then 50 clients through a narrow one, counted in
/// `CLIENT LIST`.
fn redis(engine: Engine) {
    if !process::installed("redis-server") || !process::installed("redis-benchmark") {
        return skip("Redis is not installed");
    }
    let server = Server::start(|dir, port| {
        let mut command = Command::new("redis-server");
        command.current_dir(dir).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.arg("--unixsocket").arg(dir.join("direct.sock"));
        command.args(["--save", "", "--appendonly", "no"]);
        command
    });
    let gateway = wide(engine, &server);
    let port = gateway.address.port().to_string();
    let count = scale(20_000, 200_000).to_string();
    let mut benchmark = Command::new("redis-benchmark");
    let said = succeed(benchmark.args([
        "-p",
        &port,
        "-q",
        "-c",
        "50",
        "-n",
        &count,
        "-t",
        "set,get,lpush",
    ]));
    assert!(said.contains("requests per second") && !said.contains("Error"), "{said}");
    let count = scale(2_000, 20_000).to_string();
    let mut benchmark = Command::new("redis-benchmark"); // -k 0: a new connection for each request
    succeed(benchmark.args([
        "-p",
        &port,
        "-q",
        "-k",
        "0",
        "-c",
        "20",
        "-n",
        &count,
        "-t",
        "ping_mbulk",
    ]));
    gateway.assert_clean();

    let gateway = narrow(engine, &server);
    let port = gateway.address.port().to_string();
    let client = || {
        let mut cli = Command::new("redis-cli");
        let output = run(cli.args(["-p", &port, "ping"]));
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        match () {
            () if said.contains("reset by peer") => End::Reset,
            () if said.contains("Server closed the connection") => End::Refused,
            () if output.status.success() && !said.contains("rror") => End::Answered,
            () => End::Lost,
        }
    };
    let ping = |mut stream: TcpStream| {
        stream.write_all(b"PING\r\n").expect("it is open");
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).expect("an answer");
        if &answer == b"+PONG\r\n" { End::Answered } else { End::Lost }
    };
    let direct = server.dir.path().join("direct.sock");
    let server_side = || {
        let output = run(Command::new("redis-cli").arg("-s").arg(&direct).args(["client", "list"]));
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        list.lines().filter(|line| line.contains("addr=127.0.0.1:")).count() as u64
    };
    let (ledger, most) = fifty(&gateway, || silent(&gateway), ping, client, server_side);
    assert_books_agree(&gateway, &ledger, most);
}
