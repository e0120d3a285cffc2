//! Metrics in the text format of Prometheus.

use std::collections::BTreeMap;

/// One reading of all metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let split = lines.filter_map(|line| {
            // Label values may hold blanks, so the value is after the last one.
            let (series, value) = line.trim().rsplit_once(' ')?;
            Some((series.trim().to_owned(), value.parse().ok()?))
        });
        Self(split.collect())
    }

    /// The value of one series, as written: `name` or `name{label="value"}`.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// The sum over all series of this name; 0 if there are none.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|(_, value)| value).sum()
    }

    /// Whether there is a series of this name.
    pub fn has(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let all = self.0.iter().map(|(series, value)| (series.as_str(), *value));
        all.filter(move |(series, _)| series.split('{').next() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_their_labels() {
        let text = "# HELP a b\n# TYPE a counter\na{k=\"x y\"} 1\na{k=\"z\"} 2.5\nab 7\nodd\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.get("a{k=\"x y\"}"), Some(1.0));
        assert_eq!(metrics.get("ab"), Some(7.0));
        assert_eq!(metrics.sum("a"), 3.5);
        assert!(metrics.has("a") && !metrics.has("b"));
        assert_eq!(metrics.sum("b"), 0.0);
    }
}
