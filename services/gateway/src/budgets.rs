//! Budgets of what is published: of each agent, and of each tenant. One agent that reports without end
//! costs the others nothing, and one tenant the other ones.
//!
//! They are those of one gateway, and kept only while they are not whole: an idle agent costs nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_domain::budget::{Budget, Rate, Spent};
use muster_domain::ids::{AgentKey, Tenant};
use muster_opamp::connection::NotNow;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{Shared, upstream};

/// How often budgets that are whole again are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// A tenant's refusals are logged once in this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How much may be published through one gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// By each agent.
    pub agent: Budget,
    /// By all agents of a tenant together.
    pub tenant: Budget,
}

impl Default for Limits {
    /// An agent: 20 messages a second, 100 at once; 4 MiB a second, 64 MiB at once. A tenant: 20,000
    /// messages a second, 100,000 at once; 256 MiB a second, 1 GiB at once.
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        Self {
            agent: Budget { messages: rate(20, 100), bytes: rate(4 << 20, 64 << 20) },
            tenant: Budget { messages: rate(20_000, 100_000), bytes: rate(256 << 20, 1 << 30) },
        }
    }
}

/// Whose budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Agent,
    Tenant,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Tenant => "tenant",
        }
    }

    /// For the agent's operator.
    fn reason(self) -> &'static str {
        match self {
            Self::Agent => {
                "the agent reports more than one agent may (server.budgets.agent): report less often"
            }
            Self::Tenant => {
                "the agents of the tenant report more than they may together (server.budgets.tenant)"
            }
        }
    }
}

/// A message that may not be published now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Over {
    scope: Scope,
    /// How long it takes until it may.
    wait: Duration,
    /// Set when this is to be logged: how many were left out since the last time.
    tell: Option<u64>,
}

/// What was spent.
pub(crate) struct Budgets {
    limits: Limits,
    began: Instant,
    spent: Mutex<AllSpent>,
}

#[derive(Default)]
struct AllSpent {
    agents: HashMap<AgentKey, Spent>,
    tenants: HashMap<Tenant, OfTenant>,
}

#[derive(Default)]
struct OfTenant {
    spent: Spent,
    /// When a refusal was logged last.
    told: Option<Duration>,
    untold: u64,
}

impl Budgets {
    /// Whole budgets.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, began: Instant::now(), spent: Mutex::default() }
    }

    /// Spends on one message, of both budgets or of none.
    fn take(&self, key: &AgentKey, bytes: usize) -> Result<(), Over> {
        let now = self.began.elapsed();
        let bytes = bytes as u64;
        let mut all = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let AllSpent { agents, tenants } = &mut *all;
        let before = agents.get(key).copied().unwrap_or_default();
        let of_agent = before.take(&self.limits.agent, bytes, now);
        let tenant = match tenants.get_mut(&key.tenant) {
            Some(tenant) => tenant,
            None => tenants.entry(key.tenant.clone()).or_default(),
        };
        let of_tenant = match of_agent {
            Ok(_) => tenant.spent.take(&self.limits.tenant, bytes, now),
            Err(wait) => return Err(tenant.refuse(Scope::Agent, wait, now)),
        };
        tenant.spent = of_tenant.map_err(|wait| tenant.refuse(Scope::Tenant, wait, now))?;
        if let Ok(spent) = of_agent {
            match agents.get_mut(key) {
                Some(known) => *known = spent,
                None => drop(agents.insert(key.clone(), spent)),
            }
        }
        Ok(())
    }

    /// Forgets what is whole again.
    fn forget(&self) {
        let now = self.began.elapsed();
        let mut all = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        all.agents.retain(|_, spent| !spent.is_nothing(now));
        all.tenants.retain(|_, tenant| {
            !tenant.spent.is_nothing(now) || tenant.told.is_some_and(|told| now < told + TELL_EVERY)
        });
        // A crowd that has left leaves no room behind.
        if all.agents.len() < all.agents.capacity() / 4 {
            all.agents.shrink_to_fit();
        }
    }
}

impl OfTenant {
    fn refuse(&mut self, scope: Scope, wait: Duration, now: Duration) -> Over {
        if self.told.is_some_and(|told| now < told + TELL_EVERY) {
            self.untold += 1;
            return Over { scope, wait, tell: None };
        }
        self.told = Some(now);
        Over { scope, wait, tell: Some(std::mem::take(&mut self.untold)) }
    }
}

/// Spends on a message that is to be published.
///
/// # Errors
/// What the agent is told, if its budget or its tenant's is used up.
pub(crate) fn spend(shared: &Shared, key: &AgentKey, bytes: usize) -> Result<(), NotNow> {
    let Err(Over { scope, wait, tell }) = shared.budgets.take(key, bytes) else { return Ok(()) };
    shared.metrics.over_budget.with_label_values(&[scope.name()]).inc();
    if let Some(left_out) = tell {
        warn!(event = "over_budget", tenant = %key.tenant, agent_id = %key.uid, scope = scope.name(), bytes, left_out, "a report was refused: the budget of what is published is used up");
    }
    Err(NotNow { reason: scope.reason().to_owned(), retry_after: upstream::retry_after(shared).max(wait) })
}

/// Forgets budgets that are whole again, until `stop`.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(FORGET_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => shared.budgets.forget(),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_domain::ids::InstanceUid;
    use tokio::time::advance;
    use uuid::Uuid;

    use super::*;

    fn key(tenant: &str, uid: u128) -> AgentKey {
        AgentKey { tenant: tenant.parse().unwrap(), uid: InstanceUid(Uuid::from_u128(uid)) }
    }

    fn budgets() -> Budgets {
        let rate = |per_second, burst| Rate { per_second, burst };
        let budget =
            |count| Budget { messages: rate(count, 2 * count), bytes: rate(1000 * count, 2000 * count) };
        Budgets::new(Limits { agent: budget(1), tenant: budget(3) })
    }

    fn kept(budgets: &Budgets) -> (usize, usize) {
        let all = budgets.spent.lock().unwrap();
        (all.agents.len(), all.tenants.len())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_over_its_budget_costs_no_other_anything() {
        let budgets = budgets();
        let (loud, quiet) = (key("one", 1), key("one", 2));
        for _ in 0..2 {
            budgets.take(&loud, 10).unwrap();
        }
        for _ in 0..100 {
            let over = budgets.take(&loud, 10).unwrap_err();
            assert_eq!((over.scope, over.wait), (Scope::Agent, Duration::from_secs(1)));
        }
        // What was refused counts for nobody.
        budgets.take(&quiet, 10).unwrap();
        advance(Duration::from_secs(1)).await;
        budgets.take(&loud, 10).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_over_its_budget_costs_no_other_anything() {
        let budgets = budgets();
        for uid in 0..6 {
            budgets.take(&key("one", uid), 10).unwrap();
        }
        let over = budgets.take(&key("one", 7), 10).unwrap_err();
        assert_eq!(over.scope, Scope::Tenant);
        budgets.take(&key("two", 7), 10).unwrap();
        advance(over.wait).await;
        budgets.take(&key("one", 7), 10).unwrap();
        // By bytes, too.
        for uid in 8..11 {
            budgets.take(&key("three", uid), 2000).unwrap();
        }
        assert_eq!(budgets.take(&key("three", 12), 1).unwrap_err().scope, Scope::Tenant);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_whole_again_is_not_kept() {
        let budgets = budgets();
        for uid in 0..5 {
            budgets.take(&key("one", uid), 10).unwrap();
        }
        budgets.take(&key("two", 9), 2000).unwrap();
        assert_eq!(kept(&budgets), (6, 2));
        advance(Duration::from_millis(1700)).await;
        budgets.forget();
        assert_eq!(kept(&budgets), (1, 0), "the bytes of one agent are not there yet");
        advance(Duration::from_millis(300)).await;
        budgets.forget();
        assert_eq!(kept(&budgets), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_refusals_are_told_once_a_minute() {
        let budgets = budgets();
        // The first refusal after as many messages as pass.
        let tell = |tenant: &str| {
            let key = key(tenant, 1);
            std::iter::repeat_with(|| budgets.take(&key, 10)).find_map(Result::err).unwrap().tell
        };
        assert_eq!(tell("one"), Some(0));
        assert_eq!(tell("one"), None);
        assert_eq!(tell("two"), Some(0), "each tenant for itself");
        advance(Duration::from_secs(59)).await;
        budgets.forget();
        assert_eq!(tell("one"), None);
        advance(Duration::from_secs(1)).await;
        assert_eq!(tell("one"), Some(2), "with the number of those that were left out");
        advance(Duration::from_secs(60)).await;
        budgets.forget();
        assert_eq!(kept(&budgets), (0, 0), "nothing to tell is not kept either");
    }
}
