//! Dial: how a collector is reached, over TLS if its address says `https`; and why it was not, which the
//! exporter keeps to itself.
//!
//! Always true: only who proves by a certificate to be the host that was asked for is spoken to;
//! certificates and keys are read when the exporter is made, which it is anew after a failure, so that
//! those that were renewed are used.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::net::TcpStream;
use tower::Service;

/// What TLS needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that are believed; without it, those the system believes.
    pub authorities: Option<Pem>,
    /// Our own certificate, with those that vouch for it, and its key; for collectors that ask.
    pub identity: Option<(Pem, Pem)>,
}

/// A file of certificates or with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pem {
    /// The variable that names it.
    pub variable: String,
    pub path: PathBuf,
}

/// TLS cannot be spoken as it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{}={}: {error}", .pem.variable, .pem.path.display())]
    File { pem: Pem, error: pem::Error },
    #[error("{}={}: no PEM block of the kind that is wanted is in it", .0.variable, .0.path.display())]
    Empty(Pem),
    #[error("{}={}: {error}", .pem.variable, .pem.path.display())]
    Unusable { pem: Pem, error: rustls::Error },
    #[error(
        "no authorities are installed here that could vouch for a collector ({0}); name a file of them in OTEL_EXPORTER_OTLP_CERTIFICATE"
    )]
    NoAuthorities(io::Error),
    #[error("{0}")]
    Other(#[from] rustls::Error),
}

/// Why the collector was not reached, or the conversation broke off, if it did.
#[derive(Clone, Debug, Default)]
pub(super) struct Why(Arc<Mutex<Option<String>>>);

/// Makes connections; each is TCP or TLS, as the address says.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    connector: HttpsConnector<HttpConnector>,
    why: Why,
}

/// One connection.
pub(super) struct Wire {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    why: Why,
}

/// Which HTTP is spoken over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

impl Tls {
    /// Whether somebody has named files, who may also renew them.
    pub(super) const fn has_files(&self) -> bool {
        self.authorities.is_some() || self.identity.is_some()
    }

    /// For addresses that do not ask for it.
    fn unused() -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }

    fn config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = match &self.authorities {
            Some(pem) => {
                let mut believed = RootCertStore::empty();
                for certificate in pem.certificates()? {
                    believed.add(certificate).map_err(|error| pem.unusable(error))?;
                }
                builder.with_root_certificates(believed)
            }
            None => builder.with_native_roots().map_err(TlsError::NoAuthorities)?,
        };
        match &self.identity {
            Some((certificate, key)) => builder
                .with_client_auth_cert(certificate.certificates()?, key.key()?)
                .map_err(|error| key.unusable(error)),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

impl Pem {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let all = CertificateDer::pem_file_iter(&self.path).and_then(Iterator::collect);
        let all: Vec<_> = all.map_err(|error| self.bad(error))?;
        if all.is_empty() { Err(TlsError::Empty(self.clone())) } else { Ok(all) }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_file(&self.path).map_err(|error| self.bad(error))
    }

    fn bad(&self, error: pem::Error) -> TlsError {
        match error {
            pem::Error::NoItemsFound => TlsError::Empty(self.clone()),
            error => TlsError::File { pem: self.clone(), error },
        }
    }

    fn unusable(&self, error: rustls::Error) -> TlsError {
        TlsError::Unusable { pem: self.clone(), error }
    }
}

impl Dial {
    /// `tls`: what it needs, if the address says so.
    pub(super) fn new(tls: Option<&Tls>, version: Version, why: Why) -> Result<Self, TlsError> {
        let config = tls.map_or_else(Tls::unused, Tls::config)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // A batch is written at once, and its end is not to wait for an acknowledgement.
        tcp.set_nodelay(true);
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let connector = match version {
            Version::One => builder.enable_http1().wrap_connector(tcp),
            Version::Two => builder.enable_http2().wrap_connector(tcp),
        };
        Ok(Self { connector, why })
    }
}

impl Why {
    /// Said once.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, error: &(dyn Error + 'static)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(innermost(error));
    }

    fn heard<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.note(error))
    }
}

/// What really went wrong: what is around it says only where.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    loop {
        // An I/O error hands out its own inner error's source, not that error.
        let custom = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let custom = custom.map(|inner| inner as &(dyn Error + 'static));
        match custom.or_else(|| error.source()) {
            Some(inner) => error = inner,
            None => return error.to_string(),
        }
    }
}

impl Service<Uri> for Dial {
    type Response = Wire;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (reached, why) = (self.connector.call(to), self.why.clone());
        Box::pin(async move {
            match reached.await {
                Ok(stream) => Ok(Wire { stream, why }),
                Err(error) => {
                    why.note(&*error);
                    Err(error)
                }
            }
        })
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        // Also where a collector says that it wants a certificate of ours: after it was reached.
        Poll::Ready(self.why.heard(read))
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
