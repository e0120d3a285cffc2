//! The reference of the configuration, from what the sections declare.

use std::fmt::Write as _;

use super::Config;
use super::reader::{Declared, Effect, Reader, Section};

/// Every key, in the order of the sections.
pub(super) fn declared() -> Vec<Declared> {
    let mut reader = Reader::default();
    Config::read(&mut Section::root(&mut reader));
    reader.declared
}

/// The table of all keys, in Markdown.
pub fn table() -> String {
    let mut table =
        "| Key | Value | Default | In this version | Meaning |\n|---|---|---|---|---|\n".to_owned();
    for key in declared() {
        let effect = match (key.refused, key.effect) {
            (Some(which), _) => format!("refused: {which}"),
            (None, Effect::Works) => "works".to_owned(),
            (None, Effect::NotYet) => "not yet".to_owned(),
            (None, Effect::Never(why)) => format!("ignored: {why}"),
        };
        let cells =
            [format!("`{}`", key.path.join(".")), key.what, key.default, effect, key.about.trim().to_owned()];
        let row: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        // Writing to a String does not fail.
        let _ = writeln!(table, "| {} |", row.join(" | "));
    }
    table
}
