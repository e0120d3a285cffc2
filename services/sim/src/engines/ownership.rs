//! Who holds which agent.

use std::sync::Arc;

use async_trait::async_trait;
use muster_domain::ids::{AgentKey, SessionId};
use muster_ports::EngineError;
use muster_ports::ownership::{ClaimOutcome, ClaimRequest, Owned, Ownership, Settled};

use super::Wire;
use crate::trace::Short;
use crate::weather::Engine;

/// Ownership as a process sees it.
pub(crate) struct SimOwnership(pub(super) Arc<Wire>);

/// One connection carries all calls of a process.
const LANE: Option<u64> = Some(0);

#[async_trait]
impl Ownership for SimOwnership {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimOutcome, EngineError> {
        let (world, name) = (Arc::clone(&self.0.world), self.0.process.name.clone());
        let work = async move {
            let (uid, session) = (request.key.uid, request.session);
            let outcome = world.engines().ownership.claim(request).await?;
            let told = match &outcome {
                ClaimOutcome::Granted { claim } => format!("granted {}", claim.0),
                ClaimOutcome::Resumed { claim, settled, .. } => format!("resumed {} {settled:?}", claim.0),
                ClaimOutcome::Contested { holder } => {
                    format!("contested by {} of {}", Short(holder.session.0), holder.gateway)
                }
            };
            world.trace.note(&name, format_args!("claims {} for {}: {told}", Short(uid.0), Short(session.0)));
            Ok(outcome)
        };
        self.0.call(Engine::Ownership, LANE, work).await
    }

    async fn settle(&self, settled: Vec<Settled>) -> Result<Vec<(AgentKey, SessionId)>, EngineError> {
        let (world, name) = (Arc::clone(&self.0.world), self.0.process.name.clone());
        let work = async move {
            let count = settled.len();
            let refused = world.engines().ownership.settle(settled).await?;
            if !refused.is_empty() {
                world.trace.note(&name, format_args!("settles {count}, {} are not its", refused.len()));
            }
            Ok(refused)
        };
        self.0.call(Engine::Ownership, LANE, work).await
    }

    async fn release(&self, key: &AgentKey, session: SessionId) -> Result<(), EngineError> {
        let (world, name, key) = (Arc::clone(&self.0.world), self.0.process.name.clone(), key.clone());
        let work = async move {
            world.trace.note(&name, format_args!("releases {} of {}", Short(key.uid.0), Short(session.0)));
            world.engines().ownership.release(&key, session).await
        };
        self.0.call(Engine::Ownership, LANE, work).await
    }

    async fn look_up(&self, keys: &[AgentKey]) -> Result<Vec<Option<Owned>>, EngineError> {
        let (world, keys) = (Arc::clone(&self.0.world), keys.to_vec());
        let work = async move { world.engines().ownership.look_up(&keys).await };
        self.0.call(Engine::Ownership, LANE, work).await
    }
}
