//! What the API tells of agents as it happens, for tests that wait for it.

use muster_testkit::Muster;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::SOON;

/// The events of a server from the moment of [`listen`](Self::listen) on.
pub(crate) struct Events {
    stream: reqwest::Response,
    text: String,
}

impl Events {
    /// Listens to these kinds of events. When this returns, nothing is missed any more.
    pub(crate) async fn listen(muster: &Muster, kinds: &str) -> Self {
        let url = format!("{}/api/v1/events?kinds={kinds}", muster.http_url());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let stream = client.get(&url).send().await.unwrap();
        assert_eq!(stream.status(), 200);
        Self { stream, text: String::new() }
    }

    /// The next event; the moment at which it was told is left out.
    pub(crate) async fn next(&mut self) -> Value {
        let end = Instant::now() + SOON;
        loop {
            while let Some(at) = self.text.find('\n') {
                let line: String = self.text.drain(..=at).collect();
                if let Some(data) = line.strip_prefix("data: ") {
                    let mut event: Value = serde_json::from_str(data).unwrap();
                    event.as_object_mut().unwrap().remove("at");
                    return event;
                }
            }
            let chunk = timeout_at(end, self.stream.chunk()).await.unwrap().unwrap().unwrap();
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }
}
