//! Says that something has changed to all who watch it.
//!
//! A `watch` channel of tokio would do, but for the order in which it wakes: that is random, and one
//! seed of the simulation is to give one history.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// What may change.
#[derive(Default)]
pub(crate) struct Changes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    happened: Notify,
}

/// Sees changes, several of them as one.
pub(crate) struct Watcher {
    changes: Arc<Shared>,
    seen: u64,
}

impl Changes {
    /// Wakes every watcher, in the order in which they began to wait.
    pub(crate) fn happen(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.happened.notify_waiters();
    }

    /// A watcher of what happens from here on.
    pub(crate) fn watch(&self) -> Watcher {
        Watcher { changes: Arc::clone(&self.0), seen: self.0.count.load(Ordering::Acquire) }
    }
}

impl Watcher {
    /// What has happened is not news.
    pub(crate) fn mark_seen(&mut self) {
        self.seen = self.changes.count.load(Ordering::Acquire);
    }

    /// Waits for a change that was not seen. Cancelling the wait loses nothing.
    pub(crate) async fn changed(&mut self) {
        loop {
            // Made before looking: it hears of what happens from here on.
            let happened = self.changes.happened.notified();
            let count = self.changes.count.load(Ordering::Acquire);
            if count != self.seen {
                self.seen = count;
                return;
            }
            happened.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    /// Whether the watcher sees a change at once.
    async fn sees(watcher: &mut Watcher) -> bool {
        let mut changed = pin!(watcher.changed());
        poll_fn(|context| Poll::Ready(changed.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn changes_are_seen_once_and_none_is_missed() {
        let changes = Changes::default();
        changes.happen();
        let mut watcher = changes.watch();
        assert!(!sees(&mut watcher).await, "what was before is not news");
        changes.happen();
        changes.happen();
        assert!(sees(&mut watcher).await);
        assert!(!sees(&mut watcher).await, "two changes are one");
        changes.happen();
        watcher.mark_seen();
        assert!(!sees(&mut watcher).await);
        let waiting = async {
            tokio::task::yield_now().await;
            changes.happen();
        };
        tokio::join!(watcher.changed(), waiting);
    }
}
