//! The issuer of people's tokens, as it is configured.

use std::time::Duration;

use anyhow::Context;
use muster_api::People;
use muster_auth::{Issuer, Location, Rules};

use crate::config::Oidc;

/// How far the clocks of the issuer and of this machine may differ.
const LEEWAY: Duration = Duration::from_secs(60);

/// The issuer, if one is configured.
///
/// # Errors
/// An address that must not be asked, or a name that is none.
pub(crate) fn of(config: &Oidc) -> anyhow::Result<Option<People>> {
    let Some(issuer) = &config.issuer else { return Ok(None) };
    let location = match &config.jwks {
        None => Location::Discovery(issuer.clone()),
        Some(url) if url.contains("://") => Location::Url(url.clone()),
        Some(file) => Location::File(file.into()),
    };
    let rules = Rules {
        issuer: Some(issuer.clone()),
        audience: config.audience.clone(),
        required: vec![config.account_claim.clone()],
        leeway: LEEWAY,
    };
    let tenant = config.tenant.as_deref().map(str::parse).transpose().context("oidc.tenant")?;
    Ok(Some(People {
        issuer: Issuer::new(location, rules).context("oidc")?,
        account_claim: config.account_claim.clone(),
        tenant_claim: config.tenant_claim.clone(),
        tenant,
        role_claim: config.role_claim.clone(),
        most: config.most_role.as_str().parse().context("oidc.most_role")?,
    }))
}
