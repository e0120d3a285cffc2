//! Tenants: that there are some, and what each may use.

use serde::{Deserialize, Serialize};

use crate::ids::{Tenant, Timestamp};

/// The tenant that is always there: of agents and requests without a credential.
pub const DEFAULT: &str = "default";

/// What a tenant may use. What is not said is as the configuration has it for every tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quotas {
    /// Most agents that are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<u64>,
    /// Most connections of agents at once, on one gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Reports a second, on one gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<u64>,
    /// Most bytes of one apply's manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_bytes: Option<u64>,
    /// Requests to the API a second, on one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u64>,
}

impl Quotas {
    /// Every quota by its name.
    pub fn named(&self) -> [(&'static str, Option<u64>); 5] {
        [
            ("agents", self.agents),
            ("connections", self.connections),
            ("messages_per_second", self.messages_per_second),
            ("config_bytes", self.config_bytes),
            ("requests_per_second", self.requests_per_second),
        ]
    }

    /// Checks that each is one that can be kept to.
    ///
    /// # Errors
    /// The first that is not, with the fix.
    pub fn check(&self) -> Result<(), String> {
        let wrong = self.named().into_iter().find(|(_, quota)| quota.is_some_and(|n| n == 0 || n > 1 << 40));
        match wrong {
            Some((name, _)) => Err(format!("{name}: must be 1 to 2^40; leave it out for the configured one")),
            None => Ok(()),
        }
    }
}

/// A tenant as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// Its name.
    pub tenant: Tenant,
    /// What it may use.
    pub quotas: Quotas,
    /// Raised by every change.
    pub revision: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When it was removed: its name is not given again, and its audit log stays.
    pub removed_at: Option<Timestamp>,
}

impl TenantRecord {
    /// Whether it may be worked in.
    pub fn is_live(&self) -> bool {
        self.removed_at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_checked_and_named() {
        assert_eq!(Quotas::default().check(), Ok(()));
        let quotas = Quotas { agents: Some(0), ..Quotas::default() };
        assert!(quotas.check().unwrap_err().starts_with("agents: "));
        let json = serde_json::to_value(Quotas { connections: Some(7), ..Quotas::default() }).unwrap();
        assert_eq!(json, serde_json::json!({"connections": 7}));
        let newer = serde_json::from_str::<Quotas>("{\"what a newer version knows\": 1}");
        assert_eq!(newer.unwrap(), Quotas::default());
    }
}
