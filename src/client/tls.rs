//! TLS towards stores: the trusted authorities, and our certificate. And towards clients.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme, WantsVerifier,
};
use schemars::JsonSchema;
use serde::Deserialize;
use thiserror::Error;

use crate::files::regular_file::{self, Links};

/// TLS to a store. `{}` trusts the system's certificates. All files are PEM.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// A file of certificates that are trusted. Default: the system's.
    ca: Option<PathBuf>,
    /// A file with our own certificate and those that vouch for it, for servers that ask. Default:
    /// none.
    cert: Option<PathBuf>,
    /// The file with the key of `cert`. The key has no password; `openssl pkey -in KEY -out NEW`
    /// takes it off. Default: none.
    key: Option<PathBuf>,
    /// Verify the server's certificate and name. With `false` anybody in between can read and
    /// change everything. Default: true.
    #[serde(default = "yes")]
    verify: bool,
}

/// The default of `verify`.
pub(crate) fn yes() -> bool {
    true
}

/// TLS to a store.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub(crate) struct TlsConfig {
    /// A file of certificates that are trusted, in place of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Our own certificate, for servers that ask.
    pub(crate) identity: Option<Identity>,
    /// Verify the server's certificate and name.
    pub(crate) verify: bool,
}

/// The files of our own certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The certificate and those that vouch for it.
    pub(crate) cert: PathBuf,
    /// The key.
    pub(crate) key: PathBuf,
}

impl Identity {
    /// Both files, or none.
    pub(crate) fn of(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<Self>, String> {
        let missing = match (cert, key) {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => return Ok(Some(Identity { cert, key })),
            (Some(_), None) => "key",
            (None, Some(_)) => "cert",
        };
        Err(format!("`cert` and `key` belong together, and `{missing}` is missing"))
    }
}

impl TryFrom<Settings> for TlsConfig {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let Settings { ca, cert, key, verify } = settings;
        Ok(TlsConfig { ca, identity: Identity::of(cert, key)?, verify })
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig { ca: None, identity: None, verify: yes() }
    }
}

/// The reason why TLS cannot be set up.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    /// A file cannot be read, or holds no certificate or key.
    #[error("reading {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: pem::Error,
    },
    /// A certificate is nothing to trust.
    #[error("reading the trusted certificates in {}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: rustls::Error,
    },
    /// The system's certificates cannot be read.
    #[error("reading the certificates that the system trusts; `tls.ca` names others")]
    System(#[source] Box<dyn Error + Send + Sync>),
    /// The key is encrypted.
    #[error(
        "the key in {} has a password, which cannot be used here; write the key without one: \
         openssl pkey -in KEY -out NEW, for saltern's user alone to read", path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The certificate and its key are of no use.
    #[error("loading the certificate and its key (`tls.cert`, `tls.key`)")]
    Identity(#[source] rustls::Error),
    /// The provider of cryptography does not offer what TLS needs.
    #[error("setting up TLS")]
    Provider(#[source] rustls::Error),
    /// No client could be made.
    #[error("setting up connections: {0}")]
    Client(String),
}

impl TlsConfig {
    /// The configuration in the terms of rustls. Reads the files.
    pub(crate) fn client(&self) -> Result<ClientConfig, TlsError> {
        let (builder, provider) = builder()?;
        let builder = match &self.ca {
            _ if !self.verify => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            }
            Some(ca) => builder.with_root_certificates(roots(ca)?),
            None => builder.with_root_certificates(system_roots()?),
        };
        let Some(Identity { cert, key }) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let key = private_key(key)?;
        let chain = certificates(cert)?;
        builder.with_client_auth_cert(chain, key).map_err(TlsError::Identity)
    }

    /// A sentence for `saltern check` where TLS is set up and no URL asks for it.
    pub(crate) fn unused(&self, is_https: bool) -> Option<String> {
        let is_unused = !is_https && *self != TlsConfig::default();
        let says = "`tls` is not used, because `url` begins with http://; write https:// there";
        is_unused.then(|| says.to_owned())
    }

    /// The configuration of a client that must not speak TLS: it trusts nobody.
    pub(crate) fn trusts_nobody() -> Result<ClientConfig, TlsError> {
        let (builder, _) = builder()?;
        Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }
}

fn builder() -> Result<(ConfigBuilder<ClientConfig, WantsVerifier>, Arc<CryptoProvider>), TlsError>
{
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?;
    Ok((builder, provider))
}

/// The system's certificates; there is at least one.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    Err(TlsError::System(match found.errors.into_iter().next() {
        Some(error) => error.into(),
        None => "there are none".into(),
    }))
}

/// Larger than all certificates of a system together.
const LONGEST: u64 = 16 << 20;

fn pem_of(path: &Path) -> Result<Vec<u8>, pem::Error> {
    regular_file::read(path, Links::Follow, LONGEST).map_err(pem::Error::Io)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable = |cause| TlsError::Pem { path: path.to_owned(), cause };
    let pem = pem_of(path).map_err(unreadable)?;
    // PKCS #8 and OpenSSL's forms before it.
    let marks: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    if marks.iter().any(|mark| memchr::memmem::find(&pem, mark).is_some()) {
        return Err(TlsError::Encrypted { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(unreadable)
}

/// The side of a server: the certificate of one file with the key of another.
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let chain = certificates(certificate)?;
    let key = private_key(key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates of a file; there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |pem: Vec<u8>| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match pem_of(path).and_then(read) {
        Ok(found) if found.is_empty() => Err(pem::Error::NoItemsFound),
        other => other,
    }
    .map_err(|cause| TlsError::Pem { path: path.to_owned(), cause })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let untrusted = |cause| TlsError::Root { path: path.to_owned(), cause };
        roots.add(certificate).map_err(untrusted)?;
    }
    Ok(roots)
}

/// Takes any certificate (`verify: false`). The handshake itself is still checked, so that a server
/// without the certificate's key fails.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use crate::client::tls::*;
    use crate::error::chain;

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let absent = folder.path().join("absent.pem");
        for ca in [&empty, &absent] {
            let config = TlsConfig { ca: Some(ca.clone()), ..TlsConfig::default() };
            let error = chain(&config.client().unwrap_err());
            assert!(error.contains(&ca.display().to_string()), "{error}");
        }
        let key = folder.path().join("key.pem");
        std::fs::write(&key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n").unwrap();
        let identity = Some(Identity { cert: absent, key });
        let config = TlsConfig { identity, ..TlsConfig::default() };
        let error = chain(&config.client().unwrap_err());
        assert!(error.contains("openssl pkey"), "{error}");
        let config = TlsConfig { verify: false, ..TlsConfig::default() };
        config.client().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused_when_it_is_read() {
        let read = |json: &str| serde_json::from_str::<TlsConfig>(json).map_err(|e| e.to_string());
        assert_eq!(read("{}"), Ok(TlsConfig::default()));
        assert!(read(r#"{"cert": "/c"}"#).unwrap_err().contains("`key` is missing"));
        assert!(read(r#"{"key": "/k"}"#).unwrap_err().contains("`cert` is missing"));
        let both = read(r#"{"cert": "/c", "key": "/k"}"#).unwrap();
        assert!(both.identity.is_some() && both.verify);
        let password = read(r#"{"cert": "/c", "key": "/k", "key_password": "x"}"#).unwrap_err();
        assert!(password.contains("unknown field `key_password`"), "{password}");
        assert!(both.unused(false).unwrap().contains("https://"));
        assert_eq!((both.unused(true), TlsConfig::default().unused(false)), (None, None));
    }
}
