//! Connections to the application, for probes only.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Finding, Target, Verdict};

/// A connection to a port of the application.
pub(super) async fn connect(target: &Target, port: u16) -> Result<TcpStream, Verdict> {
    if target.ours.contains(&port) {
        let why = format!("port {port} is one of the gateway's own, not the application's");
        return Err(Verdict::new(Finding::Broken, why));
    }
    let address = SocketAddr::new(target.ip, port);
    let refused = |error: std::io::Error| {
        Verdict::new(Finding::Refused, format!("no connection to {address}: {error}"))
    };
    let stream = TcpStream::connect(address).await.map_err(refused)?;
    // TCP can connect a socket to itself, where nobody listens.
    let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
    let (local, peer) = ends.map_err(refused)?;
    if local == peer {
        // Closed with a FIN it would keep the port for a minute from the application it waits for.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return Err(Verdict::new(Finding::Refused, format!("nobody listens on {address}")));
    }
    // A request that is written in two parts is not to wait for the first one's acknowledgement.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The same, over TLS, with whoever answers.
pub(super) async fn connect_tls(
    target: &Target,
    port: u16,
) -> Result<TlsStream<TcpStream>, Verdict> {
    let stream = connect(target, port).await?;
    let name = ServerName::IpAddress(target.ip.into());
    let connected = TlsConnector::from(trusting()).connect(name, stream).await;
    connected
        .map_err(|error| Verdict::new(Finding::Broken, format!("no TLS with port {port}: {error}")))
}

/// Speaks with anybody: a probe asks whether something answers, not who, and the kubelet does not look at
/// certificates either. Nothing is sent that would be worth protecting.
fn trusting() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has the ciphers of both versions");
        let trust = Arc::new(Trust(provider));
        let mut config =
            config.dangerous().with_custom_certificate_verifier(trust).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    });
    config.clone()
}

/// Accepts every certificate.
#[derive(Debug)]
struct Trust(Arc<CryptoProvider>);

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
