//! The contract of [`crate::credentials::CredentialStore`].

use muster_domain::access::Role;
use muster_domain::audit::{Entry, Outcome};
use muster_domain::credential::{Credential, Kind, digest_of_key, digest_of_name};
use muster_domain::ids::{InstanceUid, Tenant, Timestamp};
use uuid::Uuid;

use crate::credentials::{AddError, CredentialStore, Progress};

/// Runs every case, each on an empty store that `make` gives.
pub async fn all<S: CredentialStore>(make: impl AsyncFn() -> S) {
    a_credential_is_read_back(&make().await).await;
    nothing_is_added_twice_nor_past_the_limit(&make().await).await;
    a_change_needs_the_revision_that_it_was_made_on(&make().await).await;
    one_of_two_changes_wins(&make().await).await;
    changes_come_in_order(&make().await).await;
    tenants_are_apart(&make().await).await;
    progress_is_lifted_and_never_goes_back(&make().await).await;
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn key(number: u128) -> Credential {
    Credential {
        tenant: tenant("default"),
        id: Uuid::from_u128(number),
        kind: Kind::ApiKey,
        digest: digest_of_key(&number.to_string()),
        name: format!("größe {number}"),
        hint: "opamp_abcd...".to_owned(),
        uids: None,
        created_at: Timestamp(5),
        created_by: "somebody".to_owned(),
        expires_at: Some(Timestamp(u64::MAX)),
        revoked_at: None,
        revision: 0,
    }
}

fn uid(number: u128) -> InstanceUid {
    InstanceUid(Uuid::from_u128(number))
}

fn entry() -> Entry {
    Entry {
        at: Timestamp(1),
        actor: "somebody".to_owned(),
        role: Role::Admin,
        remote: String::new(),
        operation: "createKey".to_owned(),
        target: "keys".to_owned(),
        before: String::new(),
        after: String::new(),
        outcome: Outcome::Done,
    }
}

async fn a_credential_is_read_back(store: &dyn CredentialStore) {
    let bound = Credential { uids: Some([uid(1), uid(2)].into()), ..key(1) };
    let name = tenant("default");
    let token = Credential {
        kind: Kind::Jwt,
        digest: digest_of_name(Kind::Jwt, &name, "x"),
        uids: Some([].into()),
        expires_at: None,
        revoked_at: Some(Timestamp(7)),
        ..key(2)
    };
    for (revision, new) in (1..).zip([bound, token]) {
        assert_eq!(store.add_credential(&new, 10, &entry()).await.unwrap(), revision);
        let stored = Some(Credential { revision, ..new.clone() });
        assert_eq!(store.credential(&name, new.id).await.unwrap(), stored);
        assert_eq!(store.credential_of(&new.digest).await.unwrap(), stored);
    }
    assert_eq!(store.credential(&name, Uuid::from_u128(3)).await.unwrap(), None);
    assert_eq!(store.credential_of(&digest_of_key("y")).await.unwrap(), None);
}

async fn nothing_is_added_twice_nor_past_the_limit(store: &dyn CredentialStore) {
    store.add_credential(&key(1), 2, &entry()).await.unwrap();
    let same_digest = Credential { id: Uuid::from_u128(9), ..key(1) };
    for again in [key(1), same_digest] {
        assert!(matches!(store.add_credential(&again, 2, &entry()).await, Err(AddError::Exists)));
    }
    store.add_credential(&key(2), 2, &entry()).await.unwrap();
    assert!(matches!(store.add_credential(&key(3), 2, &entry()).await, Err(AddError::Full(2))));
    let of_another = Credential { tenant: tenant("other"), ..key(3) };
    store.add_credential(&of_another, 2, &entry()).await.unwrap();
    assert_eq!(store.credential_progress().await.unwrap().revision, 3, "a refusal is no change");
}

async fn a_change_needs_the_revision_that_it_was_made_on(store: &dyn CredentialStore) {
    store.add_credential(&key(1), 9, &entry()).await.unwrap();
    let changed = Credential {
        name: "new".to_owned(),
        uids: Some([uid(5)].into()),
        expires_at: None,
        revoked_at: Some(Timestamp(8)),
        revision: 1,
        ..key(1)
    };
    assert_eq!(store.change_credential(&changed, None).await.unwrap(), Some(2));
    let stored = store.credential(&changed.tenant, changed.id).await.unwrap().unwrap();
    assert_eq!(stored, Credential { revision: 2, ..changed.clone() });
    assert_eq!(store.change_credential(&changed, None).await.unwrap(), None, "it has moved");
    let elsewhere = Credential { tenant: tenant("other"), revision: 2, ..changed };
    assert_eq!(store.change_credential(&elsewhere, None).await.unwrap(), None);
    let missing = Credential { revision: 2, ..key(7) };
    assert_eq!(store.change_credential(&missing, None).await.unwrap(), None);
    assert_eq!(store.credential_progress().await.unwrap().revision, 2);
}

async fn one_of_two_changes_wins(store: &dyn CredentialStore) {
    store.add_credential(&key(1), 9, &entry()).await.unwrap();
    let with = |number| Credential { uids: Some([uid(number)].into()), revision: 1, ..key(1) };
    let (one, other) = (with(1), with(2));
    let (one, other) =
        tokio_join(store.change_credential(&one, None), store.change_credential(&other, None)).await;
    let won = [one.unwrap(), other.unwrap()];
    assert_eq!(won.iter().flatten().count(), 1, "{won:?}");
}

/// Both at once, without a runtime of its own.
async fn tokio_join<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|context| {
        if first.is_none()
            && let std::task::Poll::Ready(done) = one.as_mut().poll(context)
        {
            first = Some(done);
        }
        if second.is_none()
            && let std::task::Poll::Ready(done) = other.as_mut().poll(context)
        {
            second = Some(done);
        }
        if first.is_some() && second.is_some() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    (first.unwrap(), second.unwrap())
}

async fn changes_come_in_order(store: &dyn CredentialStore) {
    for number in 1..=5 {
        store.add_credential(&key(number), 9, &entry()).await.unwrap();
    }
    let revoked = Credential { revoked_at: Some(Timestamp(1)), revision: 2, ..key(2) };
    assert_eq!(store.change_credential(&revoked, None).await.unwrap(), Some(6));
    let since = async |revision, limit| {
        let found = store.credentials_since(revision, limit).await.unwrap();
        found.iter().map(|found| (found.revision, found.id.as_u128())).collect::<Vec<_>>()
    };
    assert_eq!(since(0, 9).await, [(1, 1), (3, 3), (4, 4), (5, 5), (6, 2)]);
    assert_eq!(since(3, 2).await, [(4, 4), (5, 5)]);
    assert_eq!(since(6, 9).await, []);
}

async fn tenants_are_apart(store: &dyn CredentialStore) {
    for number in 1..=3 {
        store.add_credential(&key(number), 9, &entry()).await.unwrap();
    }
    let other = Credential { tenant: tenant("other"), ..key(4) };
    store.add_credential(&other, 9, &entry()).await.unwrap();
    let page = async |name: &str, after: Option<u128>, limit| {
        let found = store.credentials(&tenant(name), after.map(Uuid::from_u128), limit).await.unwrap();
        found.iter().map(|found| found.id.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(page("default", None, 2).await, [1, 2]);
    assert_eq!(page("default", Some(2), 2).await, [3]);
    assert_eq!(page("other", None, 9).await, [4]);
    assert_eq!(page("nobody", None, 9).await, [0; 0]);
    assert_eq!(store.credential(&tenant("other"), Uuid::from_u128(1)).await.unwrap(), None);
}

async fn progress_is_lifted_and_never_goes_back(store: &dyn CredentialStore) {
    assert_eq!(store.credential_progress().await.unwrap(), Progress::default());
    store.add_credential(&key(1), 9, &entry()).await.unwrap();
    let to = Progress { generation: 3, revision: 70 };
    store.lift_credentials(to).await.unwrap();
    assert_eq!(store.credential_progress().await.unwrap(), to);
    store.lift_credentials(Progress { generation: 1, revision: 7 }).await.unwrap();
    assert_eq!(store.credential_progress().await.unwrap(), to);
    assert_eq!(store.add_credential(&key(2), 9, &entry()).await.unwrap(), 71);
}
