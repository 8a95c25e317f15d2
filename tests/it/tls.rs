//! Collectors over TLS, by both protocols: who proves himself gets spans, who does not gets none, and the
//! log says why.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::support::collector::{Collector, Sink};
use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger::Client;
use crate::support::oracle::{Oracle, Script};
use crate::support::secured::{Authority, Secured};
use crate::support::{Engine, SOON, run, skip, until};

const CA: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
const KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";

/// A place for certificates.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What is known of an authority.
    fn of(&self, authority: &Authority) -> String {
        let path = self.path("ca.pem");
        authority.write(&path);
        path.display().to_string()
    }
}

fn gateway(
    app: SocketAddr,
    collector: SocketAddr,
    protocol: &str,
    more: &[(&str, &str)],
) -> Gateway {
    let setup = Setup::new(Engine::Epoll, app)
        .set("trace-sampling", 1)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://{collector}"))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        .env("OTEL_BSP_SCHEDULE_DELAY", 20);
    more.iter().fold(setup, |setup, (name, value)| setup.env(name, value)).start()
}

/// Traffic flows, whatever the collector is.
#[track_caller]
fn talk(gateway: &Gateway) {
    let mut client = Client::connect(gateway.address).expect("it listens").stream;
    client.write_all(b"hello").expect("sent");
    client.read_exact(&mut [0; 5]).expect("echoed");
}

#[test]
fn who_proves_himself_gets_spans() {
    run(Engine::Epoll, |_| {
        let (app, files) = (Oracle::start(Script::Echo), Files::new());
        let authority = Authority::new();
        let ca = files.of(&authority);
        let (certificate, key) = (files.path("mine.pem"), files.path("mine.key"));
        authority.vouch_for("gateway").write(&certificate, &key);
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        let mine = [(CA, ca.as_str()), (CERTIFICATE, &certificate), (KEY, &key)];

        let sink = Sink::start();
        let secured = Secured::start(sink.address, &authority.vouch_for("127.0.0.1"), None);
        let http = gateway(app.address, secured.address, "http/protobuf", &mine[..1]);
        talk(&http);
        sink.wait_for("over HTTP", |spans| spans.len() == 1);

        let sink = Sink::start();
        let identity = authority.vouch_for("127.0.0.1");
        let secured = Secured::start(sink.address, &identity, Some(&authority));
        let both = gateway(app.address, secured.address, "http/protobuf", &mine);
        talk(&both);
        sink.wait_for("with a certificate of ours", |spans| spans.len() == 1);

        let Some(collector) = Collector::start() else {
            return skip("tests/apps/setup has not run");
        };
        let secured = Secured::start(collector.grpc, &identity, Some(&authority));
        let grpc = gateway(app.address, secured.address, "grpc", &mine);
        talk(&grpc);
        collector.sink.wait_for("over gRPC", |spans| spans.len() == 1);
        for gateway in [http, both, grpc] {
            assert_eq!(gateway.metric("tidegate_trace_spans_dropped_total", ""), 0.0);
        }
    });
}

/// Each of these is another mistake, and its words are in the log.
#[test]
fn who_does_not_gets_none_and_the_log_says_why() {
    run(Engine::Epoll, |_| {
        let (app, files) = (Oracle::start(Script::Echo), Files::new());
        let (authority, other) = (Authority::new(), Authority::new());
        let ca = files.of(&authority);
        let nothing = files.path("nothing.pem");
        std::fs::write(&nothing, "no certificate\n").expect("written");
        let nothing = nothing.display().to_string();
        let sink = Sink::start();
        let behind = |identity, clients| Secured::start(sink.address, identity, clients);
        let ours = authority.vouch_for("127.0.0.1");
        let (impostor, namesake) =
            (other.vouch_for("127.0.0.1"), authority.vouch_for("collector.example"));
        let sound = behind(&ours, None);
        let stranger = behind(&impostor, None);
        let elsewhere = behind(&namesake, None);
        let asking = behind(&ours, Some(&authority));

        for (collector, more, words) in [
            (&stranger, &[(CA, ca.as_str())][..], "invalid peer certificate: BadSignature"),
            (&elsewhere, &[(CA, &ca)], "not valid for name"),
            (&asking, &[(CA, &ca)], "CertificateRequired"),
            (&sound, &[(CA, "/nowhere")], "OTEL_EXPORTER_OTLP_CERTIFICATE=/nowhere: "),
            (&sound, &[(CA, &nothing)], "no PEM block of the kind that is wanted"),
            (&sound, &[(CA, &ca), (CERTIFICATE, &ca), (KEY, &nothing)], KEY),
            (
                &sound,
                &[("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")],
                "no authorities are installed here",
            ),
        ] {
            for protocol in ["http/protobuf", "grpc"] {
                let gateway = gateway(app.address, collector.address, protocol, more);
                talk(&gateway);
                let what = format!("{words} over {protocol}");
                until(&what, SOON, || gateway.log().contains(words));
                until("its spans are dropped, and counted", SOON, || {
                    let failed = "reason=\"export_failed\"";
                    gateway.metric("tidegate_trace_spans_dropped_total", failed) >= 2.0
                });
                talk(&gateway);
            }
        }
        assert!(sink.spans().is_empty());
    });
}

/// What was not there at the start, or was renewed since, is read when it is needed.
#[test]
fn certificates_are_read_again_after_a_failure() {
    run(Engine::Epoll, |_| {
        let (app, files, sink) = (Oracle::start(Script::Echo), Files::new(), Sink::start());
        let (old, new) = (Authority::new(), Authority::new());
        let secured = Secured::start(sink.address, &new.vouch_for("127.0.0.1"), None);
        let ca = files.path("ca.pem").display().to_string();
        let more = [(CA, ca.as_str())];
        let gateway = gateway(app.address, secured.address, "http/protobuf", &more);
        until("there is none yet", SOON, || gateway.log().contains("does not take spans"));
        files.of(&old);
        let failed = || gateway.metric("tidegate_trace_spans_dropped_total", "export_failed");
        let before = failed();
        talk(&gateway);
        until("that one is too old", SOON, || failed() > before);
        files.of(&new);
        until("that one is right", SOON, || {
            talk(&gateway);
            !sink.spans().is_empty()
        });
        until("it is said", SOON, || gateway.log().contains("takes spans again"));
    });
}
