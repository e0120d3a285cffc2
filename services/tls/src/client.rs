//! TLS of clients: whom they trust, and who they are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::files::{certified, read};
use crate::{Stream, TlsError, certificate, provider};

/// Who a client is: its certificate and key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate and its chain.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// The TLS of a client that trusts the authorities of this file alone. `keys` are the names of the settings
/// for errors: of the authorities, the certificate and its key.
///
/// # Errors
/// If a file cannot be used; the text says why.
pub async fn client_config(
    keys: [&str; 3],
    ca_file: &Path,
    identity: Option<&ClientIdentity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let wrong =
        |key: &str, path: &Path, what: String| TlsError { key: key.to_owned(), path: path.to_owned(), what };
    let roots = roots(keys[0], ca_file, &read(keys[0], ca_file).await?)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(keys[0], ca_file, error.to_string()))?
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(ClientIdentity { cert_file, key_file }) => {
            let cert = read(keys[1], cert_file).await?;
            let key = read(keys[2], key_file).await?;
            let (certified, _) =
                certified((keys[1], cert_file, &cert), (keys[2], key_file, &key), certificate::now())?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    };
    Ok(Arc::new(config))
}

/// Makes TLS of a connection to a host, which shows a certificate in that name.
///
/// # Errors
/// If the host shows none that can be trusted, or refuses.
pub async fn connect(config: Arc<ClientConfig>, host: &str, stream: TcpStream) -> io::Result<Stream> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    Ok(Stream::Tls(Box::new(stream.into())))
}

/// The authorities of a PEM file.
pub(crate) fn roots(key: &str, path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let wrong = |what: String| TlsError { key: key.to_owned(), path: path.to_owned(), what };
    let mut roots = RootCertStore::empty();
    for certificate in certificate::read_all(pem).map_err(wrong)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(format!("a certificate of an authority cannot be used: {error}")))?;
    }
    Ok(roots)
}
