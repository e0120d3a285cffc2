//! The sections of who may do what, and of certificates.

use std::time::Duration;

use super::kinds::{boolean, choice, duration, list, one_of, one_or_list, text, whole, within};
use super::people::ApiAccess;
use super::reader::{Reserved, anything, key, nested, optional, section};

choice! {
    /// A way for agents and people to show who they are.
    AuthType {
        /// Nobody is asked.
        None = "none";
        /// A name and a password.
        Basic = "basic";
        /// A signed token.
        Jwt = "jwt";
        /// A key that Muster issued.
        ApiKey = "api_key";
        /// A client certificate.
        Mtls = "mtls";
    }
}

section! {
    /// Section `auth`.
    Auth {
        /// How agents and users show who they are.
        kind as "type": Vec<AuthType> = key(one_or_list(one_of()), vec![AuthType::None])
            .refuse("`jwt`, `mtls`", |types| refuse_types(types));
        /// File of the key that signs tokens.
        secret_key_file: Option<String> = optional(text()).without_effect();
        /// Tokens.
        jwt: Jwt = nested(Jwt::read).without_effect();
        /// Requests to the API.
        api: ApiAccess = nested(ApiAccess::read);
        /// Keys.
        api_key: ApiKey = nested(ApiKey::read);
        /// How many attempts of one address may fail a second, in the long run; ten times as many at once.
        failures_per_second: u64 = key(whole(1), 10);
    }
}

impl Auth {
    /// Whether agents may show who they are in this way.
    pub fn takes(&self, kind: AuthType) -> bool {
        self.kind.contains(&kind)
    }

    /// Whether everybody must show who they are.
    pub fn is_required(&self) -> bool {
        !self.kind.contains(&AuthType::None)
    }

    /// Whether requests to the API must show a token.
    pub fn is_required_of_api(&self) -> bool {
        self.api.required.unwrap_or_else(|| self.is_required())
    }
}

fn refuse_types(types: &[AuthType]) -> Option<String> {
    let missing: Vec<String> = types
        .iter()
        .filter(|kind| matches!(kind, AuthType::Jwt | AuthType::Mtls))
        .map(|kind| format!("{:?}", kind.as_str()))
        .collect();
    let verb = if missing.len() == 1 { "does" } else { "do" };
    (!missing.is_empty()).then(|| {
        format!(
            "{} {verb} not work yet: remove it, or run on loopback without authentication",
            missing.join(" and ")
        )
    })
}

section! {
    /// Section `auth.jwt`.
    Jwt {
        /// File of the key that signs tokens.
        secret_key_file: Option<String> = optional(text());
        /// File or URL of the public keys that tokens are checked with.
        jwks: Option<String> = optional(text());
        /// Who must have issued a token.
        issuer: Option<String> = optional(text());
        /// Whom a token must be meant for.
        audience: Option<String> = optional(text());
        /// How long a token is valid.
        expiration: Duration = key(duration(), days(1));
        /// Whether agents are offered a new token before theirs expires.
        refresh_enabled: bool = key(boolean(), true);
        /// How long before.
        refresh_before_expiry: Duration = key(duration(), Duration::from_secs(3600));
        /// Claims that a token must have.
        required_claims: Vec<String> =
            key(list(text()), ["sub", "exp", "iat"].map(str::to_owned).to_vec());
    }
}

section! {
    /// Section `auth.api_key`.
    ApiKey {
        /// Where keys are kept, as hashes.
        storage: Option<String> =
            optional(text()).ignored("keys are in the store, as digests, and reach the gateways over the bus");
        /// The Redis that keys are kept in.
        redis: KeyRedis = nested(KeyRedis::read).without_effect();
        /// What every key begins with.
        prefix: String = key(text(), "opamp_".to_owned());
        /// Random characters in a key.
        length: usize = key(within(24..=256), 32);
        /// How long a key is valid.
        expiration: Duration = key(duration(), days(90));
        /// How long before its end a key is warned of.
        rotation_warning: Duration = key(duration(), days(30));
    }
}

section! {
    /// Section `auth.api_key.redis`.
    KeyRedis {
        /// Its address.
        endpoint: Option<String> = optional(text());
        /// Its database number.
        db: u32 = key(whole(0), 0);
    }
}

section! {
    /// Section `policies`: what counts where a rollout strategy does not say.
    Policies {
        /// Of configurations.
        config_update: ConfigUpdate = nested(ConfigUpdate::read);
        /// Of packages.
        package_update: PackageUpdate = nested(PackageUpdate::read);
    }
}

section! {
    /// Section `policies.config_update`.
    ConfigUpdate {
        /// Whether a change waits for an approver.
        approval_required: bool = key(boolean(), false).refuse("`true`", refuse_approval);
        /// Whether a change that fails is taken back.
        rollback_on_error: bool = key(boolean(), false).without_effect();
    }
}

section! {
    /// Section `policies.package_update`.
    PackageUpdate {
        /// Whether a change waits for an approver.
        approval_required: bool = key(boolean(), false).refuse("`true`", refuse_approval);
        /// Percentage of agents that get a package first.
        canary_percentage: Option<u8> = optional(within(0..=100)).without_effect();
        /// How long these are watched before the others follow.
        canary_duration: Option<Duration> = optional(duration()).without_effect();
    }
}

fn refuse_approval(required: &bool) -> Option<String> {
    required.then(|| {
        "approvals do not work yet, changes would go out without one: remove it, or set it to false"
            .to_owned()
    })
}

choice! {
    /// Who renews certificates.
    CertificateProvider {
        /// cert-manager, in Kubernetes.
        CertManager = "cert-manager";
        /// HashiCorp Vault.
        Vault = "vault";
        /// AWS Certificate Manager.
        AwsAcm = "aws-acm";
    }
}

section! {
    /// Section `certificate_rotation`.
    CertificateRotation {
        /// Whether certificates are renewed before they expire.
        enabled: bool = key(boolean(), false);
        /// When.
        strategy: RotationStrategy = nested(RotationStrategy::read);
        /// By whom.
        provider: Provider = nested(Provider::read);
        /// Who is told.
        notifications: Reserved = anything();
    }
}

section! {
    /// Section `certificate_rotation.strategy`.
    RotationStrategy {
        /// How long before its end a certificate is renewed.
        rotation_before_expiry: Duration = key(duration(), days(30));
        /// How often certificates are looked at.
        check_interval: Duration = key(duration(), days(1));
    }
}

section! {
    /// Section `certificate_rotation.provider`.
    Provider {
        /// Who renews certificates.
        kind as "type": Option<CertificateProvider> = optional(one_of());
        /// cert-manager.
        cert_manager: CertManager = nested(CertManager::read);
    }
}

section! {
    /// Section `certificate_rotation.provider.cert_manager`.
    CertManager {
        /// The issuer that is asked.
        issuer: Option<String> = optional(text());
        /// The names in the certificate.
        dns_names: Vec<String> = key(list(text()), Vec::new());
    }
}

const fn days(number: u64) -> Duration {
    Duration::from_secs(number * 86_400)
}
