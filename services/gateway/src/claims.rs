//! The claims of one connection. They are made beside its other work: a contest over one agent, which takes
//! seconds, holds up none of the others.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use muster_domain::duplicates::Client;
use muster_domain::ids::{AgentKey, Claim, Incarnation, InstanceUid, SessionId};
use muster_opamp::connection::Claimed;
use tracing::warn;

use crate::access::Pass;
use crate::upstream::{ClaimError, claim, issue, not_now};
use crate::{Shared, settler};

/// What is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The agent that sent its first message.
    Agent,
    /// A new uid for that agent, which asked for one.
    NewUid,
    /// The agent of this session of the connection, with a claim above this one: ownership, the lease or the
    /// log was lost.
    Anew(SessionId, Claim),
}

/// A claim that is made or refused.
pub(crate) struct Made {
    /// The uid that the agent uses.
    pub(crate) uid: InstanceUid,
    /// What was claimed.
    pub(crate) what: What,
    /// Life of the gateway in which it was begun.
    pub(crate) incarnation: Incarnation,
    /// The uid that is held, and the claim.
    pub(crate) result: Result<(InstanceUid, Claimed), ClaimError>,
}

/// A uid that the server gives joins those of the agent's credential before the agent hears of it.
async fn join(
    shared: &Shared,
    pass: &Pass,
    result: Result<(InstanceUid, Claimed), ClaimError>,
) -> Result<(InstanceUid, Claimed), ClaimError> {
    let new = match &result {
        Ok((held, _)) => *held,
        Err(ClaimError::Duplicate { new_uid }) => *new_uid,
        Err(_) => return result,
    };
    match pass.join(shared, new).await {
        Ok(()) => result,
        Err(error) => {
            warn!(tenant = %pass.tenant, agent_id = %new, error, "a new instance_uid cannot join its agent's credential");
            if let Ok((held, claimed)) = result {
                let key = AgentKey { tenant: pass.tenant.clone(), uid: held };
                settler::release(shared, &key, claimed.session).await;
            }
            Err(ClaimError::Unknown(not_now(shared, "the server cannot give the agent an instance_uid now")))
        }
    }
}

type Running = Pin<Box<dyn Future<Output = Made> + Send>>;

/// The claims under way.
#[derive(Default)]
pub(crate) struct Claims {
    /// None while there are none: most connections make one claim in their life.
    running: Option<Box<FuturesUnordered<Running>>>,
    /// Agents that are being claimed anew: that may be ordered many times meanwhile.
    anew: BTreeSet<InstanceUid>,
}

impl Claims {
    /// Begins a claim.
    pub(crate) fn begin(&mut self, shared: Arc<Shared>, client: Client, pass: Pass, what: What) {
        if matches!(what, What::Anew(..)) && !self.anew.insert(client.0.uid) {
            return;
        }
        let incarnation = shared.incarnation();
        let make = async move {
            let uid = client.0.uid;
            let held = |claimed| (uid, claimed);
            let result = match what {
                What::Agent | What::Anew(..) if !pass.may_use(uid) => Err(ClaimError::Forbidden),
                What::Agent => claim(&shared, &client, None, Claim::default()).await.map(held),
                What::Anew(session, above) => claim(&shared, &client, Some(session), above).await.map(held),
                What::NewUid => issue(&shared, &client).await,
            };
            let result = join(&shared, &pass, result).await;
            Made { uid, what, incarnation, result }
        };
        self.running.get_or_insert_default().push(Box::pin(make));
    }

    /// The next claim that is made or refused; waits for ever if none is under way. Cancelling the wait
    /// loses nothing.
    pub(crate) async fn next(&mut self) -> Made {
        if let Some(running) = &mut self.running {
            if let Some(made) = running.next().await {
                if matches!(made.what, What::Anew(..)) {
                    self.anew.remove(&made.uid);
                }
                return made;
            }
            self.running = None;
        }
        pending().await
    }

    /// Whether none is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.as_ref().is_none_or(|running| running.is_empty())
    }
}
