//! TLS to the hub, with libpq's meaning of `sslmode`.

use std::error::Error as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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

/// Where Debian and most others keep the certificates that the system trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How the verifier calls a certificate that is marked as an authority and used by a server. Its
/// error type is not public; should the name change, such certificates are refused again.
const OWN_ROOT: &str = "CaUsedAsEndEntity";

/// `sslmode`, from the weakest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Never.
    Disable,
    /// Only if the server insists.
    Allow,
    /// Unless the server does not have it.
    Prefer,
    /// Always, without a look at who answers, unless a root certificate is given.
    Require,
    /// The certificate must come from a trusted root.
    VerifyCa,
    /// And it must name the host.
    VerifyFull,
}

/// How TLS is spoken: the files are read for each session, so that renewed ones need no restart.
#[derive(Debug, Clone)]
pub struct Tls {
    /// When, and what is checked.
    pub mode: Mode,
    /// A file of root certificates; `system` for the system's.
    pub root: Option<PathBuf>,
    /// A file with this client's certificate and those between it and its root.
    pub certificate: Option<PathBuf>,
    /// The file with its key.
    pub key: Option<PathBuf>,
}

/// What became of a handshake, beyond what the driver tells.
#[derive(Debug, Default)]
pub struct Handshake {
    spoken: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Tls {
    /// Something to connect with, and what it will notice.
    ///
    /// # Errors
    /// A file that is missing or not what it should be.
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
                            "sslcert {} and sslkey {} do not go together: {error}",
                            certificate.display(),
                            key.display()
                        )
                    })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => return Err("sslcert is given without sslkey".to_owned()),
            (None, Some(_)) => return Err("sslkey is given without sslcert".to_owned()),
        };
        // Asked for by sslnegotiation=direct, and harmless otherwise.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok((MakeRustlsConnect::new(config), handshake))
    }

    /// Who is believed; `None`: everyone.
    fn trust(&self, provider: &Arc<CryptoProvider>) -> Result<Option<Trust>, String> {
        let root = match &self.root {
            // As libpq: a root certificate makes `require` check it.
            Some(root) if self.mode >= Mode::Require => root,
            None if self.mode >= Mode::VerifyCa => {
                return Err(
                    "this sslmode needs root certificates: give sslrootcert=FILE, or sslrootcert=system for those the system trusts, or put them into ~/.postgresql/root.crt"
                        .to_owned(),
                );
            }
            _ => return Ok(None),
        };
        let system = root.as_os_str() == "system";
        let file = if system {
            std::env::var_os("SSL_CERT_FILE")
                .map_or_else(|| PathBuf::from(SYSTEM_ROOTS), PathBuf::from)
        } else {
            root.clone()
        };
        let pinned = certificates(&file, "sslrootcert")?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(pinned.iter().cloned());
        if added == 0 {
            return Err(format!(
                "sslrootcert {} holds no certificate that can be used",
                file.display()
            ));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Some(Trust {
            chain,
            pinned,
            file,
            name: self.mode == Mode::VerifyFull || system,
        }))
    }
}

impl Handshake {
    /// Whether the server showed a certificate.
    pub fn was_spoken(&self) -> bool {
        self.spoken.load(Ordering::Relaxed)
    }

    /// Why the handshake failed, for people.
    pub fn reason(&self, error: &tokio_postgres::Error) -> Option<String> {
        let noted = self
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        noted.or_else(|| match rustls_error(error)? {
            rustls::Error::AlertReceived(alert) => Some(format!(
                "the server ended the TLS handshake ({alert:?}): it may demand a client certificate (sslcert, sslkey) that it trusts"
            )),
            other => Some(format!("the TLS handshake failed: {other}")),
        })
    }

    fn note(&self, reason: String) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }
}

#[derive(Debug)]
struct Trust {
    chain: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
    file: PathBuf,
    /// Whether the certificate must name the host.
    name: bool,
}

#[derive(Debug)]
struct Verifier {
    trust: Option<Trust>,
    provider: Arc<CryptoProvider>,
    handshake: Arc<Handshake>,
}

impl Verifier {
    fn check(
        &self,
        trust: &Trust,
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
            // The name is looked at last: the chain is good.
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) if !trust.name => Ok(()),
            // A self-signed certificate that is marked as an authority and serves as its own root:
            // what `openssl req -x509` makes, and OpenSSL takes it. By then its dates were checked.
            rustls::Error::InvalidCertificate(CertificateError::Other(other))
                if other.to_string() == OWN_ROOT
                    && trust.pinned.iter().any(|root| root == end_entity) =>
            {
                if !trust.name {
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
        self.handshake.spoken.store(true, Ordering::Relaxed);
        // Even an unchecked certificate signs the handshake, and of this version its key is not read.
        if is_version_1(end_entity) {
            self.handshake.note(
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
                self.handshake.note(explain(&error, trust, server_name));
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

fn explain(error: &rustls::Error, trust: &Trust, server_name: &ServerName<'_>) -> String {
    let days =
        |from: &UnixTime, to: &UnixTime| to.as_secs().saturating_sub(from.as_secs()) / 86_400;
    let rustls::Error::InvalidCertificate(error) = error else {
        return format!("the server's certificate is not accepted: {error}");
    };
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the server's certificate does not come from a root in {}; give the right one as sslrootcert",
            trust.file.display()
        ),
        CertificateError::ExpiredContext { time, not_after } => {
            format!(
                "the server's certificate, or one above it, expired {} days ago; renew it",
                days(not_after, time)
            )
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is not valid for another {} days; look at both machines' clocks",
            days(time, not_before)
        ),
        CertificateError::NotValidForName => not_for_name(&[], server_name),
        CertificateError::NotValidForNameContext { presented, .. } => {
            not_for_name(presented, server_name)
        }
        CertificateError::Other(other) if other.to_string() == OWN_ROOT => format!(
            "the server's certificate is its own root and not among those in {}; give exactly that certificate as sslrootcert",
            trust.file.display()
        ),
        other => format!("the server's certificate is not accepted: {other}"),
    }
}

fn not_for_name(presented: &[String], server_name: &ServerName<'_>) -> String {
    let wanted = server_name.to_str();
    if presented.is_empty() {
        return format!(
            "the server's certificate does not name {wanted} among its subjectAltName (a common name is not enough); renew it with that name, or use sslmode=verify-ca"
        );
    }
    format!(
        "the server's certificate is for {}, not for {wanted}; connect by a name that it has, or use sslmode=verify-ca",
        presented.join(", ")
    )
}

/// The first TLS error below the driver's.
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
            "{parameter} {} holds no certificate in PEM form",
            file.display()
        ));
    }
    Ok(found)
}

/// As libpq, a key that others can read is refused.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let mode = std::fs::metadata(file)
        .map_err(|error| format!("sslkey {} cannot be read: {error}", file.display()))?
        .permissions()
        .mode();
    if mode & 0o037 != 0 {
        return Err(format!(
            "sslkey {} may be read by others; chmod 600 it",
            file.display()
        ));
    }
    PrivateKeyDer::from_pem_file(file).map_err(|error| {
        format!(
            "sslkey {} holds no key that can be used (encrypted ones cannot): {error}",
            file.display()
        )
    })
}

/// Whether a certificate lacks the version field, which makes it one of version 1: it is the first
/// thing in the second of the two sequences that a certificate begins with.
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
