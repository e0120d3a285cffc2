//! How results are printed: tables for people, JSON and YAML for scripts.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::CliError;

/// A way to print results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// What the API answers.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Prints a command's result.
pub(super) struct Printer<'a> {
    format: Format,
    out: &'a mut dyn Write,
}

impl<'a> Printer<'a> {
    pub(super) fn new(format: Format, out: &'a mut dyn Write) -> Self {
        Self { format, out }
    }

    /// How results are printed.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Prints a line at once.
    pub(super) fn line(&mut self, line: &str) -> Result<(), CliError> {
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(CliError::Output)
    }

    /// Prints an answer as it is, or for people as `text` makes of it.
    pub(super) fn print(
        &mut self,
        answer: Value,
        text: impl FnOnce(Value) -> Result<String, CliError>,
    ) -> Result<(), CliError> {
        let mut text = match self.format {
            Format::Table => text(answer)?,
            Format::Json => format!("{answer:#}"),
            Format::Yaml => serde_saphyr::to_string(&answer)
                .map_err(|error| CliError::Output(std::io::Error::other(error.to_string())))?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.out.write_all(text.as_bytes()).map_err(CliError::Output)
    }
}

/// Columns with headings, as wide as they need to be.
pub(super) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |row: Vec<String>| row.iter().map(|cell| clean(cell)).collect::<Vec<_>>();
    let mut table = Table::new();
    table.load_style(NOTHING).add_rows(rows.into_iter().map(cells));
    if !headings.is_empty() {
        table.set_header(headings.iter().copied());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A page of named parts.
#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    /// Adds a part of names and values. Rows without a value are left out, and so is an empty part.
    pub(super) fn pairs<K: Into<String>>(
        self,
        title: &str,
        pairs: impl IntoIterator<Item = (K, String)>,
    ) -> Self {
        let rows = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        self.part(title, &table(&[], rows.map(|(name, value)| vec![name.into(), value])))
    }

    /// Adds a part with a text of lines; an empty one is left out.
    pub(super) fn part(mut self, title: &str, text: &str) -> Self {
        if text.is_empty() {
            return self;
        }
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(&clean(title));
        self.0.push('\n');
        for line in clean_lines(text).lines() {
            self.0.push_str(if line.is_empty() { "" } else { "  " });
            self.0.push_str(line);
            self.0.push('\n');
        }
        self
    }

    /// The whole page.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// A text on one line, without what a terminal would obey: names come from agents.
pub(super) fn clean(text: &str) -> String {
    escape(text, |c| c.is_control())
}

/// The same for a text of several lines.
pub(super) fn clean_lines(text: &str) -> String {
    escape(text, |c| c.is_control() && c != '\n' && c != '\t')
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool) -> String {
    // The others turn the direction of writing.
    let is_bad = |c: char| is_bad(c) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if is_bad(c) { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}

/// How long ago something was, as `12s`, `5m`, `3h` or `2d`; `-` where it is not known.
pub(super) fn age(moment: Option<&str>, now: OffsetDateTime) -> String {
    let Some(then) = moment.and_then(|moment| OffsetDateTime::parse(moment, &Rfc3339).ok()) else {
        return "-".to_owned();
    };
    let seconds = (now - then).whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment with its age; nothing where it is not known.
pub(super) fn moment(moment: Option<&str>, now: OffsetDateTime) -> String {
    moment.map(|text| format!("{text} ({} ago)", age(Some(text), now))).unwrap_or_default()
}

/// A plain JSON value as people write it.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A text, or `-` for none.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `yes`, `no`, or `-` for neither.
pub(super) fn yes_or_no(value: Option<bool>) -> String {
    match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = OffsetDateTime::parse("2026-11-20T12:00:00Z", &Rfc3339).unwrap();
        let cases = [
            (Some("2026-11-20T11:59:59.9Z"), "0s"),
            (Some("2026-11-20T12:00:09Z"), "0s"),
            (Some("2026-11-20T11:59:01Z"), "59s"),
            (Some("2026-11-20T11:54:59Z"), "5m"),
            (Some("2026-11-20T09:00:00+01:00"), "4h"),
            (Some("2026-11-18T12:00:01Z"), "47h"),
            (Some("2026-11-18T12:00:00Z"), "2d"),
            (Some("yesterday"), "-"),
            (None, "-"),
        ];
        for (moment, expected) in cases {
            assert_eq!(age(moment, now), expected, "{moment:?}");
        }
    }

    #[test]
    fn tables_are_aligned_and_harmless() {
        let rows = [["a", "\u{1b}[31mred\nline"], ["longer", "b\u{202e}"], ["日本", ""]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&["NAME", "LAST SEEN"], rows),
            "NAME     LAST SEEN\n\
             a        \\u{1b}[31mred\\nline\n\
             longer   b\\u{202e}\n\
             日本\n"
        );
        assert_eq!(table(&["NAME"], []), "NAME\n");
    }
}
