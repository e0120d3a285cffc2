//! The files of a server's TLS: read, checked, and read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::crypto::aws_lc_rs::{Ticketer, sign::any_supported_type};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::certificate::{Certificate, date, now, read_chain};
use crate::client::roots;
use crate::listener::{Acceptor, ClientCertificates, Listener, Metrics, Options};
use crate::{TlsError, provider};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The files of a server, with the names of their settings for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate and its chain, PEM.
    pub cert: (&'static str, PathBuf),
    /// Its private key, PEM.
    pub key: (&'static str, PathBuf),
    /// The authorities of clients' certificates, PEM; a client's may come from any of them.
    pub client_cas: Vec<(&'static str, PathBuf)>,
}

/// The TLS of a process's listeners.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What was read last, good or not.
    seen: Vec<Vec<u8>>,
    /// What is in use.
    material: Material,
    acceptors: Vec<Arc<Acceptor>>,
}

/// What the files hold.
#[derive(Debug, Clone)]
struct Material {
    certified: Arc<CertifiedKey>,
    certificate: Certificate,
    client_roots: Option<Arc<RootCertStore>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one cannot be used; the text names its setting, says why and how to mend it.
    pub async fn load(files: Files, metrics: Metrics) -> Result<Arc<Self>, TlsError> {
        let contents = read_files(&files).await?;
        let material = check(&files, &contents, now())?;
        tell(&files, &material, &metrics);
        let state = State { seen: contents, material, acceptors: Vec::new() };
        Ok(Arc::new(Self { files, metrics, state: Mutex::new(state) }))
    }

    /// A listener that speaks TLS with these files, as they are now and will be.
    ///
    /// # Errors
    /// If it asks for clients' certificates and no file names their authorities.
    pub fn listen(&self, listener: TcpListener, options: Options) -> Result<Listener, TlsError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let config = configure(&self.files, &state.material, &options)?;
        let acceptor = Arc::new(Acceptor::new(config, options, self.metrics.clone()));
        state.acceptors.push(Arc::clone(&acceptor));
        Ok(Listener::tls(listener, acceptor))
    }

    /// Looks at the files every few seconds until `stop`, and takes up what is new in them: new connections
    /// use it, open ones go on. Files that cannot be used change nothing; the log and a metric say so.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => self.look().await,
            }
        }
    }

    /// Takes up what is new in the files.
    pub async fn look(&self) {
        let read = read_files(&self.files).await;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = match read {
            Ok(contents) if contents == state.seen => return,
            Ok(contents) => contents,
            Err(error) => {
                // It is told once, until something else is found there.
                if !state.seen.is_empty() {
                    self.keep_old(&error);
                }
                state.seen = Vec::new();
                return;
            }
        };
        let taken_up = check(&self.files, &contents, now()).and_then(|material| {
            let configs: Result<Vec<_>, _> = state
                .acceptors
                .iter()
                .map(|acceptor| configure(&self.files, &material, &acceptor.options))
                .collect();
            Ok((material, configs?))
        });
        state.seen = contents;
        match taken_up {
            Ok((material, configs)) => {
                for (acceptor, config) in state.acceptors.iter().zip(configs) {
                    acceptor.config.store(config);
                }
                tell(&self.files, &material, &self.metrics);
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                state.material = material;
            }
            Err(error) => self.keep_old(&error),
        }
    }

    fn keep_old(&self, error: &TlsError) {
        self.metrics.reloads.with_label_values(&["failed"]).inc();
        self.metrics.usable.set(0);
        warn!(event = "tls_files_unusable", %error, "the files of TLS have changed and cannot be used: the old certificate is kept");
    }
}

fn tell(files: &Files, material: &Material, metrics: &Metrics) {
    let certificate = &material.certificate;
    metrics.usable.set(1);
    metrics.expires.set(certificate.not_after);
    info!(
        event = "tls_files_read",
        cert_file = %files.cert.1.display(),
        names = ?certificate.dns_names,
        expires = date(certificate.not_after),
        "the certificate of TLS is in use"
    );
    if !certificate.has_names {
        warn!(
            cert_file = %files.cert.1.display(),
            "the certificate has no subjectAltName: clients refuse it, they do not look at its common name"
        );
    }
}

async fn read_files(files: &Files) -> Result<Vec<Vec<u8>>, TlsError> {
    let mut contents = Vec::new();
    for (key, path) in [&files.cert, &files.key].into_iter().chain(&files.client_cas) {
        contents.push(read(key, path).await?);
    }
    Ok(contents)
}

/// Reads a file that names a key, a certificate or authorities.
pub(crate) async fn read(key: &str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let wrong = |what: String| TlsError { key: key.to_owned(), path: path.to_owned(), what };
    let metadata =
        tokio::fs::metadata(path).await.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(wrong(format!("is not a file of at most {MAX_FILE} bytes")));
    }
    tokio::fs::read(path).await.map_err(|error| wrong(format!("cannot be read: {error}")))
}

fn check(files: &Files, contents: &[Vec<u8>], now: i64) -> Result<Material, TlsError> {
    let [cert, key, cas @ ..] = contents else {
        return Err(TlsError {
            key: files.cert.0.to_owned(),
            path: files.cert.1.clone(),
            what: "was not read".to_owned(),
        });
    };
    let (certified, certificate) =
        certified((files.cert.0, &files.cert.1, cert), (files.key.0, &files.key.1, key), now)?;
    let mut client_roots = RootCertStore::empty();
    for ((key, path), pem) in files.client_cas.iter().zip(cas) {
        client_roots.extend(roots(key, path, pem)?.roots);
    }
    let client_roots = (!client_roots.is_empty()).then(|| Arc::new(client_roots));
    Ok(Material { certified: Arc::new(certified), certificate, client_roots })
}

/// A setting, the file that it names, and what is in it.
type Read<'a> = (&'a str, &'a PathBuf, &'a [u8]);

/// A certificate that can be shown, with its key.
pub(crate) fn certified(
    cert: (&str, &PathBuf, &[u8]),
    key: Read<'_>,
    now: i64,
) -> Result<(CertifiedKey, Certificate), TlsError> {
    let wrong =
        |(key, path, _): Read<'_>, what: String| TlsError { key: key.to_owned(), path: path.clone(), what };
    let (chain, certificate) = read_chain(cert.2, now).map_err(|what| wrong(cert, what))?;
    let private = PrivateKeyDer::from_pem_slice(key.2).map_err(|_| wrong(key, no_key(key.2).to_owned()))?;
    let signing = any_supported_type(&private).map_err(|_| {
        wrong(key, "is a key of a kind that TLS does not use: take RSA, ECDSA or Ed25519".to_owned())
    })?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok((certified, certificate))
        }
        Err(rustls::Error::InconsistentKeys(_)) => {
            let what = format!("is not the key of the first certificate in {}", cert.1.display());
            Err(wrong(key, what))
        }
        Err(error) => Err(wrong(cert, format!("the certificate cannot be used: {error}"))),
    }
}

fn no_key(pem: &[u8]) -> &'static str {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    if pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
        "the key is encrypted, and nobody is there to give its password: write it without one (openssl pkey -in FILE -out NEW)"
    } else {
        "has no private key: one in PEM begins with -----BEGIN PRIVATE KEY-----"
    }
}

fn configure(files: &Files, material: &Material, options: &Options) -> Result<Arc<ServerConfig>, TlsError> {
    let place = files.client_cas.first().unwrap_or(&files.cert);
    let wrong = |what: String| TlsError { key: place.0.to_owned(), path: place.1.clone(), what };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let builder = match (options.clients, &material.client_roots) {
        (ClientCertificates::NotAsked, _) => builder.with_no_client_auth(),
        (_, None) => return Err(wrong("no file names the authorities of clients' certificates".to_owned())),
        (clients, Some(roots)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = match clients {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(error.to_string()))?)
        }
    };
    let resolver = SingleCertAndKey::from(Arc::clone(&material.certified));
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = options.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    // Tickets of other keys, such as those made before clients' authorities changed, resume nothing.
    config.ticketer = Ticketer::new().map_err(|error| wrong(error.to_string()))?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}
