//! What a request shows: its header `Authorization`.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::access::Denied;

/// Longest value of the header, in bytes.
const MAX_HEADER: usize = 8 << 10;

/// What is shown.
#[derive(PartialEq, Eq)]
pub(crate) enum Shown {
    /// A key or token.
    Bearer(String),
    /// A password; whose it is says the key in its place.
    Basic(String),
}

/// What a request shows; `None` if it shows nothing.
pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Shown>, Denied> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Denied::Malformed("there are several headers Authorization: send one"));
    }
    if value.len() > MAX_HEADER {
        return Err(Denied::Malformed("the header Authorization is too long"));
    }
    let not_text = Denied::Malformed("the header Authorization is not text");
    let text = value.to_str().map_err(|_| not_text)?;
    let wrong =
        Denied::Malformed("the header Authorization is not well formed: send Bearer and the credential");
    let Some((scheme, rest)) = text.split_once(' ') else { return Err(wrong) };
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(wrong);
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(Shown::Bearer(rest.to_owned())));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(wrong);
    }
    let wrong =
        Denied::Malformed("the header Authorization is not well formed: Basic needs NAME:KEY in base64");
    let decoded = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((_, password)) if !password.is_empty() => Ok(Some(Shown::Basic(password.to_owned()))),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(values: &[&str]) -> Result<Option<Shown>, Denied> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        read(&headers)
    }

    #[test]
    fn keys_come_as_bearer_or_as_a_password() {
        assert!(of(&[]) == Ok(None));
        assert!(of(&["Bearer opamp_x"]) == Ok(Some(Shown::Bearer("opamp_x".to_owned()))));
        assert!(of(&["bearer  opamp_x "]) == Ok(Some(Shown::Bearer("opamp_x".to_owned()))));
        // name:opamp_x and :a:b
        assert!(of(&["Basic bmFtZTpvcGFtcF94"]) == Ok(Some(Shown::Basic("opamp_x".to_owned()))));
        assert!(of(&["Basic OmE6Yg=="]) == Ok(Some(Shown::Basic("a:b".to_owned()))));
    }

    #[test]
    fn anything_else_is_malformed() {
        let long = format!("Bearer {}", "x".repeat(MAX_HEADER));
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "opamp_x",
            "Digest x",
            "Basic %%%",
            "Basic bmFtZQ==",
            "Basic bmFtZTo=",
            &long,
        ] {
            assert!(matches!(of(&[value]), Err(Denied::Malformed(_))), "{value:.40}");
        }
        assert!(matches!(of(&["Bearer a", "Bearer b"]), Err(Denied::Malformed(_))));
    }
}
