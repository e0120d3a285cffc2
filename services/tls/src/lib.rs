//! TLS of listeners and clients: certificates from files, checked, and taken up again when they change.
//!
//! TLS 1.2 is the least that is spoken. Sessions are resumed by tickets that only this process can read.

mod certificate;
mod client;
mod files;
mod listener;
mod stream;

use std::path::PathBuf;

pub use certificate::Certificate;
pub use client::{ClientIdentity, client_config, connect};
pub use files::{Files, Tls};
pub use listener::{ClientCertificates, Listener, Metrics, Options};
pub use rustls::ClientConfig;
pub use stream::Stream;

/// A file that TLS cannot be spoken with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {}: {what}", .path.display())]
pub struct TlsError {
    /// The setting that names the file, such as `server.tls.cert_file`.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and the fix.
    pub what: String,
}

/// The cryptography: one provider for all, whatever another crate may have chosen for the process.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
