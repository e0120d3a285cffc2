//! Manifest files as one stream, and the way back from its lines to theirs.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use muster_domain::yaml;

use super::client::{CliError, PlacedError};

/// Ends the last document of one file. What follows may begin with a document, a comment or a
/// directive, as a file may.
const BETWEEN: &str = "\n...\n";

/// Files that were put together to one YAML stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// What to send.
    pub(super) stream: String,
    /// The name of each file, and its first line in the stream, from 1.
    starts: Vec<(String, u32)>,
}

impl Sources {
    /// Reads the files; `-` is standard input.
    pub(super) fn read(files: &[PathBuf]) -> Result<Self, CliError> {
        if files.iter().filter(|file| is_stdin(file)).count() > 1 {
            return Err(CliError::Usage("-f -: standard input can be read once".to_owned()));
        }
        let read = |file: &PathBuf| {
            let name = if is_stdin(file) { "stdin".to_owned() } else { file.display().to_string() };
            let bytes = if is_stdin(file) {
                let mut bytes = Vec::new();
                std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
            } else {
                std::fs::read(file)
            };
            let bytes = bytes.map_err(|error| CliError::Usage(format!("cannot read {name}: {error}")))?;
            let text = String::from_utf8(bytes)
                .map_err(|_| CliError::Usage(format!("cannot read {name}: it is not UTF-8 text")))?;
            Ok((name, text))
        };
        let mut found = Vec::new();
        for file in files {
            if !is_stdin(file) && file.is_dir() {
                found.extend(manifests_below(file)?);
            } else {
                found.push(file.clone());
            }
        }
        Self::of(found.iter().map(read).collect::<Result<_, CliError>>()?)
    }

    /// Puts texts together. Each must be YAML by itself, so that what is wrong in one does not
    /// show up in the next.
    pub(super) fn of(texts: Vec<(String, String)>) -> Result<Self, CliError> {
        let mut lines = Vec::new();
        let (mut stream, mut starts) = (String::new(), Vec::new());
        let mut next_line = 1;
        for (name, text) in texts {
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            match yaml::parse_documents(text) {
                Ok(documents) if documents.is_empty() => {
                    lines.push(format!("{name}: there is no manifest in it"));
                }
                Ok(_) => {}
                Err(error) => lines.push(format!("{name}: {error}")),
            }
            if !starts.is_empty() {
                stream.push_str(BETWEEN);
                next_line += 2;
            }
            starts.push((name, next_line));
            next_line += breaks(text);
            stream.push_str(text);
        }
        if lines.is_empty() {
            return Ok(Self { stream, starts });
        }
        let why = "nothing was applied: mend the files and apply them again".to_owned();
        Err(CliError::Manifests { lines, why })
    }

    /// A refusal of the stream, with its errors as ones of the files that they are in.
    pub(super) fn placed(&self, error: CliError) -> CliError {
        match error {
            CliError::Problem(refusal) if !refusal.errors.is_empty() => CliError::Manifests {
                lines: refusal.errors.iter().map(|error| self.place(error)).collect(),
                why: refusal.to_string(),
            },
            error => error,
        }
    }

    /// An error of the stream as one of the file that it is in.
    pub(super) fn place(&self, error: &PlacedError) -> String {
        let Some(line) = error.line else { return error.to_string() };
        let file = self.starts.iter().rev().find(|(_, start)| *start <= line);
        let Some((name, start)) = file else { return error.to_string() };
        format!("{name}: {}", PlacedError { line: Some(line - start + 1), ..error.clone() })
    }
}

/// Most files that a directory stands for.
const MAX_FILES: usize = 10_000;

/// The manifest files in a directory and below, in order of their paths. Hidden ones are left out.
fn manifests_below(directory: &Path) -> Result<Vec<PathBuf>, CliError> {
    let failed = |place: &Path, error: std::io::Error| {
        CliError::Usage(format!("cannot read {}: {error}", place.display()))
    };
    let (mut files, mut waiting) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(place) = waiting.pop() {
        for entry in std::fs::read_dir(&place).map_err(|error| failed(&place, error))? {
            let entry = entry.map_err(|error| failed(&place, error))?;
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().map_err(|error| failed(&path, error))?;
            let is_manifest =
                path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            if name.to_string_lossy().starts_with('.') {
                continue;
            } else if kind.is_dir() {
                waiting.push(path);
            } else if is_manifest {
                files.push(path);
            }
            if files.len() + waiting.len() > MAX_FILES {
                let what =
                    format!("{}: more than {MAX_FILES} files: name a smaller directory", directory.display());
                return Err(CliError::Usage(what));
            }
        }
    }
    if files.is_empty() {
        let what = format!("{}: there is no .yaml, .yml or .json file in it", directory.display());
        return Err(CliError::Usage(what));
    }
    files.sort();
    Ok(files)
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

/// Line breaks of a text, as YAML counts them: CR LF is one.
fn breaks(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let is_break = |at: &usize| match bytes[*at] {
        b'\n' => true,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        _ => false,
    };
    u32::try_from((0..bytes.len()).filter(is_break).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_sources(texts: &[&str]) -> Sources {
        let named = texts.iter().enumerate().map(|(at, text)| (format!("{at}.yaml"), (*text).to_owned()));
        Sources::of(named.collect()).unwrap()
    }

    /// Ways in which a file may begin and end.
    const TEXTS: [&str; 11] = [
        "a: 1\n",
        "a: 1",
        "---\na: 1\n",
        "# comment\n---\na: 1\n---\nb: 2\n",
        "# comment\na: 1\n# end",
        "a: 1\n---\n",
        "a: 1\n...\n",
        "a: |\n  text\n\n\n",
        "\u{feff}a: 1\n\n",
        "a: 1\r\nb:\r\n  - 2\r\n",
        "%YAML 1.2\n---\na: 1\n",
    ];

    #[test]
    fn a_stream_has_the_documents_of_its_files_at_their_lines() {
        for first in TEXTS {
            for second in TEXTS {
                for third in ["z: 9\n", "---\nz: 9\n"] {
                    let texts = [first, second, third];
                    let sources = mk_sources(&texts);
                    let together = yaml::parse_documents(&sources.stream)
                        .unwrap_or_else(|error| panic!("{texts:?}: {error}\n{}", sources.stream));
                    let mut alone = Vec::new();
                    for (text, (_, start)) in texts.iter().zip(&sources.starts) {
                        for document in yaml::parse_documents(text.trim_start_matches('\u{feff}')).unwrap() {
                            alone.push((
                                document.root.span.line + start - 1,
                                format!("{:?}", document.root.kind()),
                            ));
                        }
                    }
                    let together: Vec<_> = together
                        .iter()
                        .map(|document| (document.root.span.line, format!("{:?}", document.root.kind())))
                        .collect();
                    assert_eq!(together, alone, "{texts:?}");
                }
            }
        }
    }

    #[test]
    fn lines_of_the_stream_are_lines_of_files() {
        let sources = mk_sources(&["a: 1\nb: 2\n", "c: 3", "d: 4\n"]);
        let place = |line, column| {
            let (field, message) = ("spec.x".to_owned(), "is wrong".to_owned());
            sources.place(&PlacedError { line, column, field, message })
        };
        assert_eq!(sources.stream, "a: 1\nb: 2\n\n...\nc: 3\n...\nd: 4\n");
        assert_eq!(place(Some(1), Some(1)), "0.yaml: line 1, column 1: spec.x: is wrong");
        assert_eq!(place(Some(2), Some(4)), "0.yaml: line 2, column 4: spec.x: is wrong");
        assert_eq!(place(Some(5), Some(1)), "1.yaml: line 1, column 1: spec.x: is wrong");
        assert_eq!(place(Some(7), None), "2.yaml: line 1: spec.x: is wrong");
        assert_eq!(place(None, None), "spec.x: is wrong");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told_of_that_file() {
        let texts = [("a.yaml", "a: [1\n"), ("b.yaml", "# nothing\n"), ("c.yaml", "c: 1\n")];
        let texts = texts.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        let CliError::Manifests { lines, .. } = Sources::of(texts).unwrap_err() else { panic!() };
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("a.yaml: line "), "{lines:?}");
        assert_eq!(lines[1], "b.yaml: there is no manifest in it");
    }
}
