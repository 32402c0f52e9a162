//! TLS to the hub, with libpq's meaning of `sslmode`.

use std::error::Error as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Debian's file of trusted root certificates, also used by most other distributions.
const SYSTEM_ROOTS_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Text of webpki's error for a server certificate that is marked as a CA. The error type is not
/// public. If the text changes, such certificates are refused.
const CA_AS_END_ENTITY: &str = "CaUsedAsEndEntity";

/// Values of `sslmode`, from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// Does not use TLS.
    Disable,
    /// Uses TLS only if the server demands it.
    Allow,
    /// Uses TLS unless the server does not support it.
    Prefer,
    /// Demands TLS. Verifies the certificate only if a root certificate is given.
    Require,
    /// Also demands a certificate from a trusted root.
    VerifyCa,
    /// Also demands that the certificate names the host.
    VerifyFull,
}

/// TLS parameters. The files are read for each session, so that a renewed certificate needs no restart.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// Value of `sslmode`.
    pub mode: TlsMode,
    /// File of root certificates, or `system` for the system's.
    pub root: Option<PathBuf>,
    /// File with the client certificate and its intermediate certificates.
    pub certificate: Option<PathBuf>,
    /// File with the client certificate's key.
    pub key: Option<PathBuf>,
}

/// Result of a handshake, which the driver's error does not contain.
#[derive(Debug, Default)]
pub struct Handshake {
    saw_certificate: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl TlsSettings {
    /// Returns a connector, and the result of its handshake.
    ///
    /// # Errors
    /// Files that are missing or unusable.
    pub fn connector(&self) -> Result<(MakeRustlsConnect, Arc<Handshake>), String> {
        let provider = Arc::new(ring::default_provider());
        let handshake = Arc::new(Handshake::default());
        let verifier = Verifier {
            trust: self.trust(&provider)?,
            provider: provider.clone(),
            handshake: handshake.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate, "sslcert")?;
                builder
                    .with_client_auth_cert(chain, private_key(key)?)
                    .map_err(|error| {
                        format!(
                            "sslcert {} and sslkey {} do not match: {error}",
                            certificate.display(),
                            key.display()
                        )
                    })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => return Err("sslcert is given without sslkey".to_owned()),
            (None, Some(_)) => return Err("sslkey is given without sslcert".to_owned()),
        };
        // Required by sslnegotiation=direct, and otherwise without effect.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok((MakeRustlsConnect::new(config), handshake))
    }

    /// Returns the accepted root certificates; `None` accepts every certificate.
    fn trust(&self, provider: &Arc<CryptoProvider>) -> Result<Option<TrustAnchors>, String> {
        let root = match &self.root {
            // As in libpq, `require` verifies the certificate if a root certificate is given.
            Some(root) if self.mode >= TlsMode::Require => root,
            None if self.mode >= TlsMode::VerifyCa => {
                return Err(
                    "this sslmode needs root certificates: give sslrootcert=FILE, or sslrootcert=system for those the system trusts, or put them into ~/.postgresql/root.crt"
                        .to_owned(),
                );
            }
            _ => return Ok(None),
        };
        let is_system = root.as_os_str() == "system";
        let file = if is_system {
            std::env::var_os("SSL_CERT_FILE")
                .map_or_else(|| PathBuf::from(SYSTEM_ROOTS_FILE), PathBuf::from)
        } else {
            root.clone()
        };
        let pinned = certificates(&file, "sslrootcert")?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(pinned.iter().cloned());
        if added == 0 {
            return Err(format!(
                "sslrootcert {} has no usable certificate",
                file.display()
            ));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Some(TrustAnchors {
            chain,
            pinned,
            file,
            checks_name: self.mode == TlsMode::VerifyFull || is_system,
        }))
    }
}

impl Handshake {
    /// Whether the server sent a certificate.
    pub fn saw_certificate(&self) -> bool {
        self.saw_certificate.load(Ordering::Relaxed)
    }

    /// Describes why the handshake failed.
    pub fn reason(&self, error: &tokio_postgres::Error) -> Option<String> {
        let recorded = self.reason.lock().clone();
        recorded.or_else(|| match rustls_error(error)? {
            rustls::Error::AlertReceived(alert) => Some(format!(
                "the server ended the TLS handshake ({alert:?}): it may demand a client certificate (sslcert, sslkey) that it trusts"
            )),
            other => Some(format!("the TLS handshake failed: {other}")),
        })
    }

    fn set_reason(&self, reason: String) {
        *self.reason.lock() = Some(reason);
    }
}

#[derive(Debug)]
struct TrustAnchors {
    chain: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
    file: PathBuf,
    /// Whether the certificate must name the host.
    checks_name: bool,
}

#[derive(Debug)]
struct Verifier {
    trust: Option<TrustAnchors>,
    provider: Arc<CryptoProvider>,
    handshake: Arc<Handshake>,
}

impl Verifier {
    fn check(
        &self,
        trust: &TrustAnchors,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let error =
            match trust
                .chain
                .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
            {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
        match &error {
            // The name is verified last, so the chain is valid.
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) if !trust.checks_name => Ok(()),
            // A self-signed CA certificate as its own root, as `openssl req -x509` creates and OpenSSL
            // accepts. Its dates have been verified by then.
            rustls::Error::InvalidCertificate(CertificateError::Other(other))
                if other.to_string() == CA_AS_END_ENTITY
                    && trust.pinned.iter().any(|root| root == end_entity) =>
            {
                if !trust.checks_name {
                    return Ok(());
                }
                rustls::client::verify_server_name(
                    &ParsedCertificate::try_from(end_entity)?,
                    server_name,
                )
            }
            _ => Err(error),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.handshake
            .saw_certificate
            .store(true, Ordering::Relaxed);
        // An unverified certificate signs the handshake too, and rustls cannot read its key.
        if is_version_1(end_entity) {
            self.handshake.set_reason(
                "the server's certificate is of X.509 version 1, which is not supported; make one of version 3 (openssl req -x509 … -addext subjectAltName=DNS:NAME)"
                    .to_owned(),
            );
            return Err(rustls::Error::InvalidCertificate(
                CertificateError::BadEncoding,
            ));
        }
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        match self.check(trust, end_entity, intermediates, server_name, ocsp, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => {
                self.handshake
                    .set_reason(explain(&error, trust, server_name));
                Err(error)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn explain(error: &rustls::Error, trust: &TrustAnchors, server_name: &ServerName<'_>) -> String {
    let days =
        |from: &UnixTime, to: &UnixTime| to.as_secs().saturating_sub(from.as_secs()) / 86_400;
    let rustls::Error::InvalidCertificate(error) = error else {
        return format!("the server's certificate is not accepted: {error}");
    };
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the server's certificate does not come from a root in {}; set sslrootcert to its root",
            trust.file.display()
        ),
        CertificateError::ExpiredContext { time, not_after } => {
            format!(
                "the server's certificate, or one above it, expired {} days ago; renew it",
                days(not_after, time)
            )
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is not valid for another {} days; check the clocks of both machines",
            days(time, not_before)
        ),
        CertificateError::NotValidForName => not_for_name(&[], server_name),
        CertificateError::NotValidForNameContext { presented, .. } => {
            not_for_name(presented, server_name)
        }
        CertificateError::Other(other) if other.to_string() == CA_AS_END_ENTITY => format!(
            "the server's certificate is its own root and not among those in {}; give exactly that certificate as sslrootcert",
            trust.file.display()
        ),
        other => format!("the server's certificate is not accepted: {other}"),
    }
}

fn not_for_name(presented: &[String], server_name: &ServerName<'_>) -> String {
    let name = server_name.to_str();
    if presented.is_empty() {
        return format!(
            "the server's certificate does not name {name} among its subjectAltName (a common name is not enough); renew it with that name, or use sslmode=verify-ca"
        );
    }
    format!(
        "the server's certificate is for {}, not for {name}; connect by a name that it has, or use sslmode=verify-ca",
        presented.join(", ")
    )
}

/// Finds the TLS error in the driver's error chain.
fn rustls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn certificates(file: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |error: rustls::pki_types::pem::Error| {
        format!("{parameter} {} cannot be read: {error}", file.display())
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(unusable)?
        .collect::<Result<_, _>>()
        .map_err(unusable)?;
    if found.is_empty() {
        return Err(format!(
            "{parameter} {} has no certificate in PEM format",
            file.display()
        ));
    }
    Ok(found)
}

/// Reads the client key. As libpq does, refuses a file that other users can read.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let mode = std::fs::metadata(file)
        .map_err(|error| format!("sslkey {} cannot be read: {error}", file.display()))?
        .permissions()
        .mode();
    if mode & 0o037 != 0 {
        return Err(format!(
            "sslkey {} can be read by other users; chmod 600 it",
            file.display()
        ));
    }
    PrivateKeyDer::from_pem_file(file).map_err(|error| {
        format!(
            "sslkey {} has no usable key (encrypted keys are not supported): {error}",
            file.display()
        )
    })
}

/// Whether a certificate is of version 1, which has no version field. The field would be the first
/// element of the second of the two sequences that a certificate begins with.
fn is_version_1(certificate: &[u8]) -> bool {
    let inner = |der: &[u8]| -> Option<usize> {
        match der {
            [0x30, length, ..] if *length < 0x80 => Some(2),
            [0x30, length, ..] => Some(2 + usize::from(length & 0x7f)),
            _ => None,
        }
    };
    let first = inner(certificate)
        .and_then(|at| certificate.get(at..))
        .and_then(|der| inner(der).and_then(|at| der.get(at)));
    first == Some(&0x02)
}
