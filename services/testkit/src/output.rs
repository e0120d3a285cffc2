//! What a process writes, line by line.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The lines of one stream of a process; of several processes, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Output {
    lines: watch::Sender<Vec<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    /// Adds what `stream` brings, until it ends.
    pub(crate) fn read(&mut self, stream: impl AsyncRead + Send + Unpin + 'static) {
        let lines = self.lines.clone();
        self.reader = Some(tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).await.is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                lines.send_modify(|lines| lines.push(text));
                line.clear();
            }
        }));
    }

    /// Waits until the stream has ended: that may be later than the process.
    pub(crate) async fn ended(&mut self) {
        if let Some(reader) = self.reader.take() {
            // A grandchild that lives on keeps the stream open.
            let _ = timeout(Duration::from_secs(2), reader).await;
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    /// The last lines, to show why something failed.
    pub(crate) fn tail(&self) -> String {
        let lines = self.lines.borrow();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Waits for a line from number `from` on that fits; returns what `fits` made of it and the
    /// line's number.
    pub(crate) async fn wait<T>(
        &self,
        from: usize,
        limit: Duration,
        fits: impl Fn(&str) -> Option<T>,
    ) -> Option<(usize, T)> {
        let find = |lines: &Vec<String>| {
            lines.iter().enumerate().skip(from).find_map(|(at, line)| Some((at, fits(line)?)))
        };
        let mut lines = self.lines.subscribe();
        let lines = timeout(limit, lines.wait_for(|lines| find(lines).is_some())).await.ok()?.ok()?;
        find(&lines)
    }
}
