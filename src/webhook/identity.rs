//! Who the webhook is: a certificate with its key, checked as far as it can be before anybody sees it.
//!
//! Always true: key and certificate belong together; no text made here has anything of the key; clients
//! cannot resume a session, so that nobody lives on a certificate that was replaced.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, crypto};
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// A certificate with its key, ready to be shown.
pub(super) struct Identity {
    /// What a handshake needs.
    pub(super) tls: Arc<ServerConfig>,
    /// When the certificate begins to be valid, and when it ends.
    pub(super) validity: [SystemTime; 2],
    serial: String,
}

/// Why a pair of files is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// Nothing of the kind in it.
    #[error("the certificate's file has no certificate: it must be PEM with BEGIN CERTIFICATE")]
    NoCertificate,
    /// Not in the form that certificates have.
    #[error("the certificate cannot be read: {0}")]
    Certificate(x509_cert::der::Error),
    /// Nothing of the kind in it.
    #[error(
        "the key's file has no private key: it must be PEM with BEGIN PRIVATE KEY, unencrypted"
    )]
    NoKey,
    /// Of two different pairs, or of a kind that is not known.
    #[error("the key cannot be used with the certificate: {0}")]
    Key(rustls::Error),
    /// Only if there were no cipher at all.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

impl Identity {
    /// Of two files' contents.
    pub(super) fn of_pem(cert: &str, key: &str) -> Result<Self, IdentityError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert.as_bytes()).collect();
        let chain = chain.map_err(|_| IdentityError::NoCertificate)?;
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let leaf = Certificate::from_der(leaf).map_err(IdentityError::Certificate)?;
        let validity = leaf.tbs_certificate().validity();
        let validity = [validity.not_before, validity.not_after]
            .map(|time| UNIX_EPOCH + time.to_unix_duration());
        let serial = leaf.tbs_certificate().serial_number().to_string();

        // Its error could quote the file.
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| IdentityError::NoKey)?;
        let provider = Arc::new(crypto::ring::default_provider());
        let pair = CertifiedKey::from_der(chain, key, &provider).map_err(IdentityError::Key)?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        tls.alpn_protocols = [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).into();
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(Self { tls: Arc::new(tls), validity, serial })
    }

    /// Whether clients with the right time will take it, or why not.
    pub(super) fn is_valid_at(&self, now: SystemTime) -> Result<(), String> {
        let [from, until] = self.validity;
        if now < from {
            return Err(format!("the certificate is not valid before {}", At(from)));
        }
        if now > until {
            return Err(format!("the certificate has expired at {}", At(until)));
        }
        Ok(())
    }

    /// Say which it is, and whether it will not do for long.
    pub(super) fn describe(&self) {
        let now = SystemTime::now();
        let [from, until] = self.validity;
        let (serial, expires) = (&self.serial, At(until));
        if let Err(why) = self.is_valid_at(now) {
            tracing::error!(serial, %expires, "{why}: the API server will not talk to us, and pods start without a sidecar (or not, with failurePolicy Fail)");
            return;
        }
        let life = until.duration_since(from).unwrap_or_default();
        let left = until.duration_since(now).unwrap_or_default();
        if left < life / 5 {
            tracing::warn!(serial, %expires, "this certificate should have been replaced by now: less than a fifth of its life is left");
        } else {
            tracing::info!(serial, %expires, "certificate in use");
        }
    }

    /// Both ends of its validity, in seconds since 1970.
    pub(super) fn seconds(&self) -> [f64; 2] {
        self.validity.map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
    }
}

/// A moment for people, to the second.
struct At(SystemTime);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 5280 has years up to 9999; before 1970 nobody made certificates.
        let latest = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        write!(f, "{}", humantime::format_rfc3339_seconds(self.0.clamp(UNIX_EPOCH, latest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> [String; 2] {
        let made = rcgen::generate_simple_self_signed(vec!["tidegate.test".into()]).expect("made");
        [made.cert.pem(), made.signing_key.serialize_pem()]
    }

    fn refused(cert: &str, key: &str) -> String {
        Identity::of_pem(cert, key).err().expect("no pair").to_string()
    }

    #[test]
    fn a_pair_belongs_together() {
        let ([cert, key], [other, other_key]) = (pair(), pair());
        let identity = Identity::of_pem(&cert, &key).expect("a pair");
        assert!(identity.is_valid_at(SystemTime::now()).is_ok());
        assert!(identity.is_valid_at(UNIX_EPOCH).expect_err("too early").contains("before"));
        assert!(identity.validity[0] < identity.validity[1]);
        Identity::of_pem(&format!("{cert}{other}"), &key).expect("a chain");
        assert!(refused(&cert, &other_key).contains("cannot be used with"));
        assert!(refused(&format!("{other}{cert}"), &key).contains("cannot be used with"));
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_of_a_key() {
        let [cert, key] = pair();
        assert!(refused("", &key).contains("no certificate"));
        assert!(refused(&key, &key).contains("no certificate"));
        assert!(refused(&cert, &cert).contains("no private key"));
        let cut = cert.replace('\n', "\n-");
        refused(&cut, &key);
        let body = |pem: &str| pem.lines().nth(1).expect("three lines").to_owned();
        let secret = body(&key);
        let broken =
            [key[..key.len() / 2].to_owned(), key.replacen('M', "!", 1), key.to_lowercase()];
        for broken in broken {
            let said = format!("{:?}", Identity::of_pem(&cert, &broken).err().expect("no pair"));
            assert!(!said.contains(&secret[..16]), "{said}");
        }
    }
}
