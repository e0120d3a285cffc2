//! Tenants, tokens and the audit log.

use std::time::Duration;

use muster_domain::access::Role;
use muster_domain::audit::{self, Entry, Head, Outcome, Record};
use muster_domain::command::{Action, Command, CommandState};
use muster_domain::ids::{CommandId, IntentRevision, Partition, Tenant, Timestamp, TokenId};
use muster_domain::intent::{Intent, IntentChange};
use muster_domain::tenant::{Quotas, TenantRecord};
use muster_domain::token::{Token, digest};
use uuid::Uuid;

use super::build::{NOW, agent, cell, commit, key, key_of, rich_agent, stored, tenant, write};
use super::intent::change;
use crate::access::{AuditFilter, AuditPage, TenantError, TokenChoice, TokenError};
use crate::contract::poll::join;
use crate::store::{CommitError, Store};

fn entry(target: &str) -> Entry {
    Entry {
        at: NOW,
        actor: "ana größe".to_owned(),
        role: Role::Operator,
        remote: "[2001:db8::1]:50000".to_owned(),
        operation: "labelAgent".to_owned(),
        target: target.to_owned(),
        before: String::new(),
        after: "{\"text\":\"nul \\u0000 🦀\"}".to_owned(),
        outcome: Outcome::Done,
    }
}

fn token(tenant_name: &str, number: u128, account: &str) -> Token {
    Token {
        id: TokenId(Uuid::from_u128(0x70 << 64 | number)),
        tenant: tenant(tenant_name),
        account: account.to_owned(),
        role: Role::Operator,
        digest: digest(&format!("{tenant_name} {number}")),
        created_by: "ana".to_owned(),
        created_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(60)),
        revoked_at: None,
    }
}

async fn make(store: &dyn Store, name: &str) -> TenantRecord {
    store.create_tenant(&tenant(name), &Quotas::default(), NOW, &entry("tenants/x")).await.unwrap()
}

/// All of a tenant's records; its chain is whole.
async fn chain(store: &dyn Store, name: &str) -> Vec<Record> {
    let tenant = tenant(name);
    let records = store.audit(&tenant, &AuditFilter::default(), AuditPage::After(0), 1000).await.unwrap();
    let verified = audit::verify(&tenant, Head::EMPTY, &records).unwrap();
    audit::verify_head(verified, store.audit_head(&tenant).await.unwrap()).unwrap();
    records
}

async fn targets(store: &dyn Store, name: &str) -> Vec<String> {
    chain(store, name).await.into_iter().map(|record| record.entry.target).collect()
}

async fn tokens(store: &dyn Store, name: &str) -> Vec<Token> {
    store.tokens(&tenant(name), None, 100).await.unwrap()
}

pub(super) async fn the_default_tenant_is_there(store: &dyn Store) {
    let record = store.tenant(&tenant("default")).await.unwrap().unwrap();
    assert!(record.is_live());
    assert_eq!(record.quotas, Quotas::default());
    assert_eq!(store.tenants(None, 10).await.unwrap(), [record]);
    assert_eq!(store.tenant(&tenant("acme")).await.unwrap(), None);
    assert_eq!(chain(store, "default").await, []);
}

pub(super) async fn a_tenant_is_made_limited_and_removed(store: &dyn Store) {
    let acme = tenant("acme");
    let quotas = Quotas { agents: Some(7), config_bytes: Some(1 << 20), ..Quotas::default() };
    let made = store.create_tenant(&acme, &quotas, NOW, &entry("make")).await.unwrap();
    assert_eq!((made.quotas, made.revision, made.is_live()), (quotas, 1, true));
    assert_eq!(store.tenant(&acme).await.unwrap(), Some(made));
    let again = store.create_tenant(&acme, &Quotas::default(), NOW, &entry("again")).await;
    assert!(matches!(again, Err(TenantError::Taken(_))), "{again:?}");

    let later = NOW.plus(Duration::from_secs(1));
    let more = Quotas { agents: Some(8), ..Quotas::default() };
    let moved = store.limit_tenant(&acme, &more, Some(2), later, &entry("moved")).await;
    assert!(matches!(moved, Err(TenantError::Moved(1))), "{moved:?}");
    let limited = store.limit_tenant(&acme, &more, Some(1), later, &entry("limit")).await.unwrap();
    assert_eq!((limited.quotas, limited.revision, limited.updated_at), (more, 2, later));
    assert_eq!(store.limit_tenant(&acme, &more, None, later, &entry("limit")).await.unwrap().revision, 3);

    let removed = store.remove_tenant(&acme, later, &entry("remove")).await.unwrap();
    assert_eq!(removed.removed_at, Some(later));
    assert_eq!(store.tenant(&acme).await.unwrap(), Some(removed));
    for refused in [
        store.remove_tenant(&acme, later, &entry("removed")).await,
        store.limit_tenant(&acme, &more, None, later, &entry("removed")).await,
        store.remove_tenant(&tenant("nobody"), later, &entry("removed")).await,
    ] {
        assert!(matches!(refused, Err(TenantError::None(_))), "{refused:?}");
    }
    let again = store.create_tenant(&acme, &quotas, NOW, &entry("again")).await;
    assert!(matches!(again, Err(TenantError::Taken(_))), "{again:?}");
    let records = chain(store, "acme").await;
    let targets: Vec<_> = records.iter().map(|record| record.entry.target.as_str()).collect();
    assert_eq!(targets, ["make", "limit", "limit", "remove"]);
    assert_eq!(records[1].entry.before, "{\"agents\":7,\"config_bytes\":1048576}");
    assert_eq!(records[1].entry.after, "{\"agents\":8}");
}

pub(super) async fn tenants_are_paged_by_name(store: &dyn Store) {
    for name in ["b", "a-2", "a"] {
        make(store, name).await;
    }
    let names = async |after: Option<&str>, limit| {
        let after = after.map(tenant);
        let found = store.tenants(after.as_ref(), limit).await.unwrap();
        found.into_iter().map(|record| record.tenant.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 10).await, ["a", "a-2", "b", "default"]);
    assert_eq!(names(None, 2).await, ["a", "a-2"]);
    assert_eq!(names(Some("a-2"), 10).await, ["b", "default"]);
}

pub(super) async fn what_a_removed_tenant_had_is_gone(store: &dyn Store) {
    make(store, "acme").await;
    let acme = tenant("acme");
    let (theirs, ours) = (key_of("acme", 1), key(1));
    for key in [&theirs, &ours] {
        let partition = Partition::of(key);
        let row = store.partition(&cell(), partition).await.unwrap();
        store.commit(commit(&cell(), partition, row, vec![write(rich_agent(key))])).await.unwrap();
        store.change(&key.tenant, &change(0, "everyone")).await.unwrap();
    }
    store.create_token(&token("acme", 1, "ci"), &entry("token"), 10).await.unwrap();
    assert_eq!(store.count_agents(&acme).await.unwrap(), 1);

    let partition = Partition::of(&theirs);
    let held = store.partition(&cell(), partition).await.unwrap();
    store.remove_tenant(&acme, NOW, &entry("remove")).await.unwrap();
    let late = store.commit(commit(&cell(), partition, held, vec![write(agent(&theirs))])).await;
    assert!(matches!(late, Err(CommitError::RowMoved)), "a worker goes on with what it holds: {late:?}");

    assert_eq!(stored(store, &theirs).await, None);
    assert_eq!(store.count_agents(&acme).await.unwrap(), 0);
    assert!(stored(store, &ours).await.is_some(), "another tenant's agent");
    assert_eq!(tokens(store, "acme").await, []);
    let left = store.intent(&acme).await.unwrap();
    let floors = [("everyone".to_owned(), IntentRevision(2))].into();
    assert_eq!(left, Intent { revision: IntentRevision(2), floors, ..Intent::default() });
    assert_eq!(store.intent(&tenant("default")).await.unwrap().assignments.len(), 1);
    assert_eq!(targets(store, "acme").await, ["tenants/x", "token", "remove"], "its audit log stays");
}

pub(super) async fn a_tenant_with_connected_agents_stays(store: &dyn Store) {
    make(store, "acme").await;
    let theirs = key_of("acme", 1);
    let partition = Partition::of(&theirs);
    let row = store.partition(&cell(), partition).await.unwrap();
    store.commit(commit(&cell(), partition, row, vec![write(agent(&theirs))])).await.unwrap();
    let refused = store.remove_tenant(&tenant("acme"), NOW, &entry("remove")).await;
    assert!(matches!(refused, Err(TenantError::Connected(1))), "{refused:?}");
    assert!(stored(store, &theirs).await.is_some());
    assert_eq!(targets(store, "acme").await, ["tenants/x"]);
}

pub(super) async fn a_token_is_found_by_its_digest(store: &dyn Store) {
    let acme = make(store, "acme").await;
    let made = Token { revoked_at: None, role: Role::Admin, ..token("acme", 1, "Größe@example.com") };
    store.create_token(&made, &entry("token"), 10).await.unwrap();
    assert_eq!(store.token(&made.digest).await.unwrap(), Some((made.clone(), acme)));
    assert_eq!(store.token(&digest("another")).await.unwrap(), None);
    assert_eq!(tokens(store, "acme").await, [made]);
}

pub(super) async fn a_tenant_has_so_many_tokens(store: &dyn Store) {
    store.create_token(&token("default", 1, "a"), &entry("1"), 2).await.unwrap();
    store.create_token(&token("default", 2, "b"), &entry("2"), 2).await.unwrap();
    let refused = store.create_token(&token("default", 3, "c"), &entry("3"), 2).await;
    assert!(matches!(refused, Err(TokenError::Full(2))), "{refused:?}");
    // What is revoked or expired makes room.
    store
        .revoke_tokens(
            &tenant("default"),
            &TokenChoice::Account("a".to_owned()),
            &Role::ALL,
            NOW,
            &entry("-"),
        )
        .await
        .unwrap();
    store.create_token(&token("default", 3, "c"), &entry("3"), 2).await.unwrap();
    let later = NOW.plus(Duration::from_secs(60));
    let late = Token { created_at: later, expires_at: Timestamp(later.0 + 1), ..token("default", 4, "d") };
    store.create_token(&late, &entry("4"), 1).await.unwrap();
    let nobody = store.create_token(&token("nobody", 5, "e"), &entry("5"), 2).await;
    assert!(matches!(nobody, Err(TokenError::NoTenant(_))), "{nobody:?}");
    assert_eq!(targets(store, "default").await, ["1", "2", "-", "3", "4"]);
}

pub(super) async fn the_first_token_is_made_once(store: &dyn Store) {
    let (one, other) = (token("default", 1, "one"), token("default", 2, "other"));
    let audit = entry("first");
    let made =
        match join(store.create_first_token(&one, &audit), store.create_first_token(&other, &audit)).await {
            (Ok(true), Ok(false)) => one,
            (Ok(false), Ok(true)) => other,
            outcomes => panic!("{outcomes:?} of two first tokens"),
        };
    assert_eq!(tokens(store, "default").await, std::slice::from_ref(&made));
    store
        .revoke_tokens(&tenant("default"), &TokenChoice::Id(made.id), &Role::ALL, NOW, &entry("revoke"))
        .await
        .unwrap();
    assert!(!store.create_first_token(&token("default", 3, "late"), &audit).await.unwrap());
    assert_eq!(targets(store, "default").await, ["first", "revoke"]);
}

pub(super) async fn tokens_are_revoked_by_id_and_by_account(store: &dyn Store) {
    for (number, account) in [(1, "ci"), (2, "ci"), (3, "ana"), (4, "ana")] {
        store.create_token(&token("default", number, account), &entry("+"), 10).await.unwrap();
    }
    let revoke = async |choice: TokenChoice, at| {
        let revoked =
            store.revoke_tokens(&tenant("default"), &choice, &Role::ALL, at, &entry("-")).await.unwrap();
        revoked.into_iter().map(|token| (token.id, token.revoked_at)).collect::<Vec<_>>()
    };
    let id = |number| token("default", number, "").id;
    assert_eq!(revoke(TokenChoice::Id(id(3)), NOW).await, [(id(3), Some(NOW))]);
    let later = Timestamp(NOW.0 + 1);
    let both = [(id(1), Some(later)), (id(2), Some(later))];
    assert_eq!(revoke(TokenChoice::Account("ci".to_owned()), later).await, both);
    assert_eq!(revoke(TokenChoice::Account("ci".to_owned()), later).await, [], "again");
    assert_eq!(revoke(TokenChoice::Id(id(9)), later).await, []);
    let others = [Role::Viewer, Role::Admin];
    let all = TokenChoice::Account("ana".to_owned());
    let kept = store.revoke_tokens(&tenant("default"), &all, &others, later, &entry("-")).await.unwrap();
    assert_eq!(kept, [], "none has such a role");
    let found = store.token(&token("default", 3, "").digest).await.unwrap().unwrap().0;
    assert_eq!(found.revoked_at, Some(NOW));
    assert_eq!(store.token(&token("default", 4, "").digest).await.unwrap().unwrap().0.revoked_at, None);
    assert_eq!(targets(store, "default").await, ["+", "+", "+", "+", "-", "-"]);
}

pub(super) async fn tokens_of_tenants_are_apart(store: &dyn Store) {
    make(store, "acme").await;
    let (ours, theirs) = (token("default", 1, "ci"), token("acme", 2, "ci"));
    store.create_token(&ours, &entry("+"), 1).await.unwrap();
    store.create_token(&theirs, &entry("+"), 1).await.unwrap();
    assert_eq!(tokens(store, "default").await, std::slice::from_ref(&ours));
    for choice in [TokenChoice::Id(theirs.id), TokenChoice::Account("nobody".to_owned())] {
        assert_eq!(
            store.revoke_tokens(&ours.tenant, &choice, &Role::ALL, NOW, &entry("-")).await.unwrap(),
            []
        );
    }
    let all = TokenChoice::Account("ci".to_owned());
    assert_eq!(store.revoke_tokens(&ours.tenant, &all, &Role::ALL, NOW, &entry("-")).await.unwrap().len(), 1);
    assert_eq!(tokens(store, "acme").await, [theirs]);
    let page = store.tokens(&tenant("default"), Some(ours.id), 10).await.unwrap();
    assert_eq!(page, []);
}

fn command(number: u128) -> Command {
    Command {
        id: CommandId(Uuid::from_u128(number)),
        key: key(1),
        action: Action::Restart,
        created_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(300)),
        actor: "ana".to_owned(),
        state: CommandState::QUEUED,
    }
}

pub(super) async fn changes_write_their_record(store: &dyn Store) {
    let row = store.partition(&cell(), Partition::of(&key(1))).await.unwrap();
    store.commit(commit(&cell(), Partition::of(&key(1)), row, vec![write(agent(&key(1)))])).await.unwrap();
    let default = tenant("default");
    let applied = IntentChange { audit: Some(entry("apply")), ..change(0, "everyone") };
    store.change(&default, &applied).await.unwrap();
    let labels = [("team".to_owned(), Some("blue".to_owned()))].into();
    store.label(&key(1), &labels, NOW, Some(&entry("label"))).await.unwrap();
    let labels = [("team".to_owned(), None), ("zone".to_owned(), Some("eu".to_owned()))].into();
    store.label(&key(1), &labels, NOW, Some(&entry("label again"))).await.unwrap();
    store.queue(&default, &[command(1), command(2)], 10, Some(&entry("command"))).await.unwrap();
    let records = chain(store, "default").await;
    let found: Vec<_> = records
        .iter()
        .map(|record| {
            (record.entry.target.as_str(), record.entry.before.as_str(), record.entry.after.as_str())
        })
        .collect();
    let after = entry("").after;
    assert_eq!(
        found,
        [
            ("apply", "", after.as_str()),
            ("label", "{}", "{\"team\":\"blue\"}"),
            ("label again", "{\"team\":\"blue\"}", "{\"zone\":\"eu\"}"),
            ("command", "", after.as_str())
        ]
    );
    assert_eq!(records[0].entry, entry("apply"), "every part of it");
}

pub(super) async fn a_change_that_is_not_written_has_no_record(store: &dyn Store) {
    let default = tenant("default");
    let stale = IntentChange { audit: Some(entry("stale")), ..change(7, "everyone") };
    store.change(&default, &stale).await.unwrap_err();
    let empty = IntentChange { audit: Some(entry("empty")), ..IntentChange::default() };
    store.change(&default, &empty).await.unwrap();
    let labels = [("team".to_owned(), Some("blue".to_owned()))].into();
    assert_eq!(store.label(&key(9), &labels, NOW, Some(&entry("unknown"))).await.unwrap(), None);
    store.queue(&default, &[command(1), command(2)], 1, Some(&entry("full"))).await.unwrap_err();
    store.queue(&default, &[], 1, Some(&entry("none"))).await.unwrap();
    assert_eq!(chain(store, "default").await, []);
    store.queue(&default, &[command(1)], 1, Some(&entry("queued"))).await.unwrap();
    store.queue(&default, &[command(1)], 1, Some(&entry("again"))).await.unwrap();
    assert_eq!(targets(store, "default").await, ["queued"]);
}

pub(super) async fn records_are_chained_in_order(store: &dyn Store) {
    make(store, "acme").await;
    for target in ["1", "2", "3"] {
        store.append_audit(&tenant("default"), &entry(target)).await.unwrap();
        store.append_audit(&tenant("acme"), &entry(target)).await.unwrap();
    }
    assert_eq!(targets(store, "default").await, ["1", "2", "3"]);
    assert_eq!(targets(store, "acme").await, ["tenants/x", "1", "2", "3"]);
    let numbers: Vec<_> = chain(store, "default").await.iter().map(|record| record.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(store.audit_head(&tenant("nobody")).await.unwrap(), Head::EMPTY);
}

pub(super) async fn records_are_filtered_and_paged(store: &dyn Store) {
    let default = tenant("default");
    for number in 1..=6_u64 {
        let at = Timestamp(NOW.0 + number);
        let (actor, outcome) = match number % 2 {
            0 => ("even", Outcome::Done),
            _ => ("odd", Outcome::Denied),
        };
        let operation = format!("operation{}", number % 3);
        let entry = Entry { at, actor: actor.to_owned(), operation, outcome, ..entry("") };
        store.append_audit(&default, &entry).await.unwrap();
    }
    let numbers = async |filter: &AuditFilter, page, limit| {
        let found = store.audit(&default, filter, page, limit).await.unwrap();
        found.into_iter().map(|record| record.number).collect::<Vec<_>>()
    };
    let all = AuditFilter::default();
    assert_eq!(numbers(&all, AuditPage::Before(u64::MAX), 4).await, [6, 5, 4, 3]);
    assert_eq!(numbers(&all, AuditPage::Before(3), 4).await, [2, 1]);
    assert_eq!(numbers(&all, AuditPage::After(4), 10).await, [5, 6]);
    let odd = AuditFilter { actor: Some("odd".to_owned()), ..all.clone() };
    assert_eq!(numbers(&odd, AuditPage::After(0), 2).await, [1, 3]);
    let denied = AuditFilter { outcome: Some(Outcome::Denied), ..all.clone() };
    assert_eq!(numbers(&denied, AuditPage::Before(u64::MAX), 10).await, [5, 3, 1]);
    let operation = AuditFilter { operation: Some("operation1".to_owned()), ..all.clone() };
    assert_eq!(numbers(&operation, AuditPage::After(0), 10).await, [1, 4]);
    let at = |number| Some(Timestamp(NOW.0 + number));
    let between = AuditFilter { since: at(2), until: at(5), ..all };
    assert_eq!(numbers(&between, AuditPage::After(0), 10).await, [2, 3, 4]);
    let both = AuditFilter { actor: Some("odd".to_owned()), ..between };
    assert_eq!(numbers(&both, AuditPage::After(0), 10).await, [3]);
}

pub(super) async fn records_at_once_are_one_after_the_other(store: &dyn Store) {
    let default: Tenant = tenant("default");
    for _ in 0..5 {
        let (one, other) = (entry("a"), entry("b"));
        let (a, b) = join(store.append_audit(&default, &one), store.append_audit(&default, &other)).await;
        a.and(b).unwrap();
    }
    assert_eq!(chain(store, "default").await.len(), 10);
}
