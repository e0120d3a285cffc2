//! First reports that wait a moment for what control makes of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_domain::ids::{AgentKey, Incarnation, SessionId};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::mailbox::{Mailbox, Offer, Order};
use crate::registry::Place;

/// The requests of this gateway that wait.
#[derive(Default)]
pub(crate) struct Waiting {
    requests: Mutex<HashMap<(AgentKey, SessionId), Waiter>>,
}

#[derive(Clone)]
struct Waiter {
    /// Life of the gateway in which the request came.
    incarnation: Incarnation,
    mailbox: Arc<Mailbox>,
    decided: CancellationToken,
}

/// One request that waits for as long as this lives.
pub(crate) struct Expected<'a> {
    waiting: &'a Waiting,
    of: (AgentKey, SessionId),
    waiter: Waiter,
}

impl Waiting {
    /// A request of this session waits from now on.
    pub(crate) fn expect(
        &self,
        key: &AgentKey,
        session: SessionId,
        incarnation: Incarnation,
    ) -> Expected<'_> {
        let of = (key.clone(), session);
        let waiter = Waiter { incarnation, mailbox: Arc::default(), decided: CancellationToken::new() };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).insert(of.clone(), waiter.clone());
        Expected { waiting: self, of, waiter }
    }

    fn find(&self, key: &AgentKey, session: SessionId) -> Option<Waiter> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.get(&(key.clone(), session)).cloned()
    }

    /// Where an offer for this session goes, if a request of it waits.
    pub(crate) fn place(&self, key: &AgentKey, session: SessionId) -> Option<Place> {
        let Waiter { incarnation, mailbox, .. } = self.find(key, session)?;
        Some(Place { session, incarnation, mailbox })
    }

    /// Control has decided: nothing more comes.
    pub(crate) fn decided(&self, key: &AgentKey, session: SessionId) {
        if let Some(waiter) = self.find(key, session) {
            waiter.decided.cancel();
        }
    }
}

impl Expected<'_> {
    /// What control offers before it says that it has decided, or before the deadline.
    pub(crate) async fn offer(&self, deadline: Instant) -> Option<Offer> {
        let offered = async {
            loop {
                let orders = self.waiter.mailbox.take().await;
                let offer = |order| if let Order::Offer(_, offer) = order { Some(offer) } else { None };
                if let Some(offer) = orders.into_iter().find_map(offer) {
                    return offer;
                }
            }
        };
        let decided = async {
            tokio::select! {
                biased;
                // An offer comes before the word that there is no other.
                offer = offered => Some(offer),
                () = self.waiter.decided.cancelled() => None,
            }
        };
        timeout_at(deadline, decided).await.ok().flatten()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.waiting.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.of);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use muster_domain::ids::{ConfigHash, InstanceUid, IntentRevision};
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_an_offer_the_decision_or_the_deadline() {
        let waiting = Waiting::default();
        let key = AgentKey { tenant: "default".parse().unwrap(), uid: InstanceUid(Uuid::nil()) };
        let session = SessionId(Uuid::from_u128(1));
        let deadline = || Instant::now() + Duration::from_millis(400);
        assert!(waiting.place(&key, session).is_none());

        let expected = waiting.expect(&key, session, Incarnation(Uuid::nil()));
        let began = Instant::now();
        assert!(expected.offer(deadline()).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_millis(400));

        let offer = Offer {
            session,
            incarnation: Incarnation(Uuid::nil()),
            revision: IntentRevision(1),
            assignments: Arc::new([]),
            hash: ConfigHash::new(&[1]).unwrap(),
            remote_config: Bytes::new(),
        };
        waiting.place(&key, session).unwrap().mailbox.put(Order::Offer(key.uid, offer));
        waiting.decided(&key, session);
        assert!(expected.offer(deadline()).await.is_some(), "the offer was there first");
        let began = Instant::now();
        assert!(expected.offer(deadline()).await.is_none());
        assert_eq!(began.elapsed(), Duration::ZERO, "nothing more comes");
        drop(expected);
        assert!(waiting.place(&key, session).is_none());
    }
}
