//! Every module says first what it is for.

use super::{Finding, Text};

pub(super) fn check(source: &Text) -> Option<Finding> {
    let good = source.text.starts_with("//!");
    let mend = "begin the file with a `//!` line that says what the module is for";
    (!good).then(|| Finding::new(&source.path, 1, "no module header", mend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    #[test]
    fn a_header_is_the_first_line() {
        assert_eq!(check(&text("a.rs", "//! A module.\n")), None);
        assert!(check(&text("a.rs", "use std::fmt;\n//! Late.\n")).is_some());
        assert!(check(&text("a.rs", "// Not a doc comment.\n")).is_some());
        assert!(check(&text("a.rs", "")).is_some());
    }
}
