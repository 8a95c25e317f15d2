//! TLS in front of a collector that speaks none: certificates of an authority of the test's own, and
//! whoever is reached behind them.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto::ring};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Who vouches for others.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

/// A listener that speaks TLS and hands on what is inside.
pub(crate) struct Secured {
    pub(crate) address: SocketAddr,
    _running: DropGuard,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// For a host or an address.
    pub(crate) fn vouch_for(&self, name: &str) -> Identity {
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Identity { certificate, key }
    }

    pub(crate) fn write(&self, file: &Path) {
        std::fs::write(file, self.0.pem()).expect("written");
    }
}

impl Identity {
    pub(crate) fn write(&self, certificate: &Path, key: &Path) {
        std::fs::write(certificate, self.certificate.pem()).expect("written");
        std::fs::write(key, self.key.serialize_pem()).expect("written");
    }
}

impl Secured {
    /// `clients`: the authority that has to vouch for them, if one has to.
    pub(crate) fn start(
        behind: SocketAddr,
        identity: &Identity,
        clients: Option<&Authority>,
    ) -> Self {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().expect("TLS 1.2 and 1.3");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone()).expect("an authority");
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = PrivatePkcs8KeyDer::from(identity.key.serialize_der());
        let chain: Vec<CertificateDer<'static>> = vec![identity.certificate.der().clone()];
        let config = builder.with_single_cert(chain, PrivateKeyDer::from(key));
        let mut config = config.expect("they belong together");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let stopping = CancellationToken::new();
        let stopped = stopping.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let serving = stopped.run_until_cancelled(serve(listener, behind, config.into()));
            runtime.expect("a runtime").block_on(serving);
        });
        Self { address, _running: stopping.drop_guard() }
    }
}

async fn serve(listener: TcpListener, behind: SocketAddr, config: Arc<ServerConfig>) {
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let acceptor = TlsAcceptor::from(config);
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut client = match acceptor.accept(client).into_fallible().await {
                Ok(client) => client,
                // Who does not prove himself has been told so by the handshake. In TLS 1.3 he may
                // have gone on talking by then: closing with that unread would be a reset, which
                // can overtake what he was told.
                Err((_, mut client)) => {
                    let _ = client.shutdown().await;
                    let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
                    return;
                }
            };
            let Ok(mut server) = tokio::net::TcpStream::connect(behind).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
