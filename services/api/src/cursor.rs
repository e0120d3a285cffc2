//! Cursors of pages: a position, bound to the tenant and the query that it was given for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use muster_domain::ids::{Digest, Tenant};

use crate::problem::ApiError;

/// Bytes of the binding.
const BINDING: usize = 12;
/// Longest cursor, in characters.
const LONGEST: usize = 256;

/// What a page was asked for: the tenant, the operation, and everything that selects its items.
pub(crate) struct Bound<'a> {
    pub(crate) tenant: &'a Tenant,
    pub(crate) operation: &'static str,
    pub(crate) query: &'a [&'a str],
}

impl Bound<'_> {
    fn binding(&self) -> [u8; BINDING] {
        let own = [self.operation.as_bytes(), self.tenant.as_str().as_bytes()];
        let query = self.query.iter().map(|part| part.as_bytes());
        let Digest(digest) = Digest::of_parts(own.into_iter().chain(query));
        digest.first_chunk().copied().unwrap_or_default()
    }

    /// The cursor of a position.
    pub(crate) fn seal(&self, position: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode([&self.binding()[..], position].concat())
    }

    /// The position of a cursor.
    pub(crate) fn open(&self, cursor: &str) -> Result<Vec<u8>, ApiError> {
        let bytes = if cursor.len() > LONGEST { None } else { URL_SAFE_NO_PAD.decode(cursor).ok() };
        let position = bytes.as_deref().and_then(|bytes| bytes.strip_prefix(&self.binding()));
        position.map(<[u8]>::to_vec).ok_or_else(|| {
            ApiError::BadRequest("cursor: use next_cursor of the page before, with the same query".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_of_one_tenant_and_query() {
        let (acme, globex): (Tenant, Tenant) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        let bound = Bound { tenant: &acme, operation: "listAgents", query: &["a=b"] };
        let cursor = bound.seal(b"here");
        assert_eq!(bound.open(&cursor).unwrap(), b"here");
        for other in [
            Bound { tenant: &globex, ..bound },
            Bound { operation: "listTokens", ..bound },
            Bound { query: &["a=c"], ..bound },
            Bound { query: &["a", "=b"], ..bound },
        ] {
            assert!(other.open(&cursor).is_err());
        }
        for bad in ["", "x", "here", &"A".repeat(1000), &cursor[1..]] {
            assert!(bound.open(bad).is_err(), "{bad:?}");
        }
    }
}
