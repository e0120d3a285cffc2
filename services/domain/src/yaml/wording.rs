//! Words for messages.

/// A text in quotes, cut where it is too long to be shown.
pub(crate) fn brief(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// `; did you mean ...?` if one of the candidates is nearly the same, else nothing.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = candidates.into_iter().map(|candidate| (distance(name, candidate), candidate)).min();
    match nearest {
        Some((distance, candidate)) if distance <= (candidate.len() + 1).min(9) / 3 => {
            format!("; did you mean `{candidate}`?")
        }
        _ => String::new(),
    }
}

/// Least number of insertions, removals and replacements, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        let of = |name| did_you_mean(name, ["environment", "region", "min"]);
        assert_eq!(of("enviroment"), "; did you mean `environment`?");
        assert_eq!(of("Region"), "; did you mean `region`?");
        assert_eq!(of("mun"), "; did you mean `min`?");
        assert_eq!(of("max"), "");
        assert_eq!(of(&"x".repeat(1000)), "");
        assert_eq!(did_you_mean("x", []), "");
        assert_eq!((distance("kitten", "sitting"), distance("", "abc")), (3, 3));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(brief("a\n"), "\"a\\n\"");
        assert_eq!(brief(&"é".repeat(81)), format!("\"{}\"...", "é".repeat(80)));
    }
}
