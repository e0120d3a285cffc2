//! What is in a certificate, and what is wrong with one.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Version;

/// What to do about a version 1 certificate.
const VERSION_1: &str = "is an X.509 version 1 certificate, which TLS refuses: sign it again with an extension file \
    (openssl x509 -req ... -extfile FILE; docs/deployment.md has the commands)";

/// What a certificate says of whom it belongs to. Nothing here is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whether it is of version 3, the only one that TLS takes.
    pub is_version_3: bool,
    /// From when it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Until when, in seconds since 1970.
    pub not_after: i64,
    /// Common names of its subject.
    pub common_names: Vec<String>,
    /// Organisations of its subject.
    pub organizations: Vec<String>,
    /// Its URIs (subjectAltName), such as a SPIFFE id.
    pub uris: Vec<String>,
    /// Its DNS names (subjectAltName).
    pub dns_names: Vec<String>,
    /// Whether it has a subjectAltName at all.
    pub has_names: bool,
}

impl Certificate {
    /// Reads a certificate in DER; `None` if it is none.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let texts = |attributes: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attributes.filter_map(|value| value.as_str().ok().map(str::to_owned)).collect()
        };
        let names = parsed.subject_alternative_name().ok().flatten();
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                _ => {}
            }
        }
        Some(Self {
            is_version_3: parsed.version == X509Version::V3,
            not_before: parsed.validity.not_before.timestamp(),
            not_after: parsed.validity.not_after.timestamp(),
            common_names: texts(&mut parsed.subject.iter_common_name()),
            organizations: texts(&mut parsed.subject.iter_organization()),
            uris,
            dns_names,
            has_names: names.is_some(),
        })
    }

    /// Why nobody can be shown this certificate at a time in seconds since 1970.
    pub(crate) fn fault(&self, now: i64) -> Option<String> {
        if !self.is_version_3 {
            Some(VERSION_1.to_owned())
        } else if self.not_after < now {
            Some(format!("the certificate expired on {}: renew it", date(self.not_after)))
        } else if now < self.not_before {
            let from = date(self.not_before);
            Some(format!("the certificate is not valid before {from}: is the clock right?"))
        } else {
            None
        }
    }
}

/// The certificates of a PEM file, the first one checked.
///
/// # Errors
/// What is wrong, and the fix.
pub(crate) fn read_chain(
    pem: &[u8],
    now: i64,
) -> Result<(Vec<CertificateDer<'static>>, Certificate), String> {
    let chain = read_all(pem)?;
    let first = chain.first().and_then(|first| Certificate::parse(first));
    let first = first.ok_or_else(|| "the first certificate cannot be understood".to_owned())?;
    match first.fault(now) {
        Some(fault) => Err(fault),
        None => Ok((chain, first)),
    }
}

/// The certificates of a PEM file, one or more.
///
/// # Errors
/// What is wrong, and the fix.
pub(crate) fn read_all(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|error| format!("is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("has no certificate: one in PEM begins with -----BEGIN CERTIFICATE-----".to_owned());
    }
    Ok(certificates)
}

/// A time in seconds since 1970, for people.
pub(crate) fn date(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}
