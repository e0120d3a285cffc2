//! A selector: it is refused, or is the same after it was written down.

use std::borrow::Cow;

use muster_domain::selector::Selector;

/// Reads a selector.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let selector: Selector = match text.parse() {
        Ok(selector) => selector,
        Err(error) => {
            let error: muster_domain::selector::SelectorError = error;
            assert!(error.position >= 1 && !error.message.is_empty(), "{error}");
            return;
        }
    };
    let written = selector.to_string();
    let again = match written.parse::<Selector>() {
        Ok(again) => again,
        Err(error) => panic!("{written:?} was written and cannot be read: {error}"),
    };
    assert_eq!(again, selector, "{written:?}");
    let attribute = |key: &str| match key {
        "team" => Some(Cow::Borrowed("blue")),
        "empty" => Some(Cow::Borrowed("")),
        _ => None,
    };
    assert_eq!(selector.matches(attribute), again.matches(attribute), "{written:?}");
}
