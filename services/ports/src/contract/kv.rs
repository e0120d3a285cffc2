//! The contract of [`crate::kv`].

use std::time::Duration;

use bytes::Bytes;

use crate::kv::{KeyValue, Precondition, PutError, Versioned};

/// Runs every case, each on an empty bucket that `make` gives, with this time to live. `advance` lets
/// this much of the bucket's time go by.
pub async fn all<K: KeyValue>(make: impl AsyncFn(Option<Duration>) -> K, advance: impl AsyncFn(Duration)) {
    a_value_is_read_back(&make(None).await).await;
    versions_rise(&make(None).await).await;
    a_value_is_made_only_where_there_is_none(&make(None).await).await;
    a_value_is_changed_only_at_its_version(&make(None).await).await;
    keys_are_listed_by_prefix(&make(None).await).await;
    a_value_stays(&make(None).await, &advance).await;
    a_value_expires(&make(Some(TTL)).await, &advance).await;
    a_write_sets_the_expiry_anew(&make(Some(TTL)).await, &advance).await;
}

const SECOND: Duration = Duration::from_secs(1);
/// How long values under test live; whole seconds, since some engines know no less.
const TTL: Duration = Duration::from_secs(3);

async fn put(bucket: &dyn KeyValue, key: &str, value: &'static str) -> u64 {
    bucket.put(key, Bytes::from_static(value.as_bytes()), Precondition::Any).await.unwrap()
}

async fn value(bucket: &dyn KeyValue, key: &str) -> Option<Bytes> {
    bucket.get(key).await.unwrap().map(|found| found.value)
}

async fn try_put(bucket: &dyn KeyValue, key: &str, precondition: Precondition) -> Result<u64, PutError> {
    bucket.put(key, Bytes::from_static(b"new"), precondition).await
}

#[track_caller]
fn assert_conflict(written: Result<u64, PutError>) {
    assert!(matches!(written, Err(PutError::Conflict)), "{written:?} where the precondition fails");
}

async fn a_value_is_read_back(bucket: &dyn KeyValue) {
    assert_eq!(bucket.get("a").await.unwrap(), None);
    for value in [&b"one"[..], b"", b"\0\xff\n"] {
        let value = Bytes::from_static(value);
        let version = bucket.put("a", value.clone(), Precondition::Any).await.unwrap();
        assert_eq!(bucket.get("a").await.unwrap(), Some(Versioned { value, version }));
    }
    assert_eq!(bucket.get("b").await.unwrap(), None);
    bucket.remove("a").await.unwrap();
    assert_eq!(bucket.get("a").await.unwrap(), None);
    bucket.remove("a").await.unwrap();
    bucket.remove("never").await.unwrap();
}

async fn versions_rise(bucket: &dyn KeyValue) {
    let mut last = 0;
    for (key, text) in [("a", "1"), ("a", "1"), ("b", "1"), ("a", "2")] {
        let version = put(bucket, key, text).await;
        assert!(version > last, "version {version} after {last}");
        last = version;
    }
    bucket.remove("a").await.unwrap();
    assert!(put(bucket, "a", "3").await > last, "a removed value comes back with a higher version");
}

async fn a_value_is_made_only_where_there_is_none(bucket: &dyn KeyValue) {
    let version = try_put(bucket, "a", Precondition::Absent).await.unwrap();
    let before = bucket.get("a").await.unwrap();
    assert_eq!(before.as_ref().map(|found| found.version), Some(version));
    assert_conflict(try_put(bucket, "a", Precondition::Absent).await);
    assert_eq!(bucket.get("a").await.unwrap(), before, "a refused write changes nothing");
    try_put(bucket, "b", Precondition::Absent).await.unwrap();
    bucket.remove("a").await.unwrap();
    try_put(bucket, "a", Precondition::Absent).await.unwrap();
}

async fn a_value_is_changed_only_at_its_version(bucket: &dyn KeyValue) {
    let first = put(bucket, "a", "1").await;
    put(bucket, "b", "1").await;
    let second = try_put(bucket, "a", Precondition::Version(first)).await.unwrap();
    assert_conflict(try_put(bucket, "a", Precondition::Version(first)).await);
    assert_conflict(try_put(bucket, "a", Precondition::Version(second + 1000)).await);
    assert_conflict(try_put(bucket, "never", Precondition::Version(first)).await);
    assert_eq!(bucket.get("a").await.unwrap().map(|found| found.version), Some(second));
    bucket.remove("a").await.unwrap();
    assert_conflict(try_put(bucket, "a", Precondition::Version(second)).await);
}

async fn a_value_stays(bucket: &dyn KeyValue, advance: &impl AsyncFn(Duration)) {
    put(bucket, "stays", "y").await;
    advance(2 * TTL).await;
    assert_eq!(value(bucket, "stays").await.as_deref(), Some(&b"y"[..]));
}

async fn a_value_expires(bucket: &dyn KeyValue, advance: &impl AsyncFn(Duration)) {
    let version = put(bucket, "lease", "x").await;
    advance(SECOND).await;
    assert_eq!(value(bucket, "lease").await.as_deref(), Some(&b"x"[..]));
    advance(TTL).await;
    assert_eq!(value(bucket, "lease").await, None);
    assert_eq!(bucket.list("").await.unwrap(), []);
    assert_conflict(try_put(bucket, "lease", Precondition::Version(version)).await);
    try_put(bucket, "lease", Precondition::Absent).await.unwrap();
}

async fn a_write_sets_the_expiry_anew(bucket: &dyn KeyValue, advance: &impl AsyncFn(Duration)) {
    for key in ["renewed", "refused"] {
        put(bucket, key, "1").await;
    }
    advance(2 * SECOND).await;
    let version = bucket.get("renewed").await.unwrap().unwrap().version;
    let renewed = bucket.put("renewed", Bytes::from_static(b"2"), Precondition::Version(version)).await;
    assert!(renewed.unwrap() > version);
    assert_conflict(try_put(bucket, "refused", Precondition::Absent).await);
    // Half a second off the whole ones, so that no engine's rounding decides.
    advance(SECOND * 3 / 2).await;
    assert_eq!(value(bucket, "renewed").await.as_deref(), Some(&b"2"[..]));
    assert_eq!(value(bucket, "refused").await, None, "a refused write renews nothing");
    advance(TTL).await;
    assert_eq!(value(bucket, "renewed").await, None);
}

async fn keys_are_listed_by_prefix(bucket: &dyn KeyValue) {
    assert_eq!(bucket.list("").await.unwrap(), []);
    let mut expected = Vec::new();
    // What means something in patterns of an engine is plain text here.
    for key in ["lease.b", "lease.a", "lease_a", "leaseXa", "lease.a.c", "floor", "lease-", "Lease.a"] {
        let version = put(bucket, key, "v").await;
        expected.push((key.to_owned(), Versioned { value: Bytes::from_static(b"v"), version }));
    }
    put(bucket, "lease.gone", "v").await;
    bucket.remove("lease.gone").await.unwrap();
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    for prefix in ["", "lease.", "lease_", "lease.a", "lease", "floor", "none"] {
        let of_prefix: Vec<_> = expected.iter().filter(|(key, _)| key.starts_with(prefix)).cloned().collect();
        assert_eq!(bucket.list(prefix).await.unwrap(), of_prefix, "prefix {prefix:?}");
    }
}
