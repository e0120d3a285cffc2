//! Floors in a bucket in memory.
#![expect(clippy::unwrap_used, reason = "tests end with their panics")]

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_adapters_memory::MemoryKeyValue;
use muster_domain::ids::{Cell, IntentRevision, Tenant};
use muster_ports::floors::{Floors, head, load};
use muster_ports::kv::{KeyValue, Precondition};

fn floors(of: &[(&str, &str, u64)]) -> Floors {
    let mut floors = Floors::default();
    for (tenant, assignment, floor) in of {
        let tenant: Tenant = tenant.parse().unwrap();
        floors.raise(&tenant, &BTreeMap::from([((*assignment).to_owned(), IntentRevision(*floor))]));
    }
    floors
}

fn cell() -> Cell {
    "here".parse().unwrap()
}

/// Raises floors, as a caller that knows nothing of the bucket.
async fn raise(bucket: &dyn KeyValue, floors: &Floors) -> bool {
    muster_ports::floors::raise(bucket, &cell(), floors, &mut Floors::default()).await.unwrap()
}

#[tokio::test]
async fn a_bucket_without_a_head_is_not_loaded() {
    let bucket = MemoryKeyValue::new(None);
    assert_eq!(load(&bucket, &cell()).await.unwrap(), None);
    assert!(raise(&bucket, &Floors::default()).await);
    assert_eq!(load(&bucket, &cell()).await.unwrap(), Some(Floors::default()));
    assert!(!raise(&bucket, &Floors::default()).await);
    assert_eq!(load(&bucket, &"there".parse().unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn floors_rise_and_never_fall() {
    let bucket = MemoryKeyValue::new(None);
    let first = floors(&[("a", "x", 3), ("a", "y/z ö", 1), ("b", "x", 7)]);
    assert!(raise(&bucket, &first).await);
    assert_eq!(load(&bucket, &cell()).await.unwrap(), Some(first.clone()));
    assert!(raise(&bucket, &floors(&[("a", "x", 20)])).await);
    raise(&bucket, &floors(&[("a", "x", 2), ("b", "x", 1)])).await;
    let loaded = load(&bucket, &cell()).await.unwrap().unwrap();
    assert_eq!(loaded, floors(&[("a", "x", 20), ("a", "y/z ö", 1), ("b", "x", 7)]));
    assert_eq!(loaded.of(&"b".parse().unwrap(), "x"), IntentRevision(7));
    assert_eq!(loaded.of(&"b".parse().unwrap(), "y"), IntentRevision(0));
}

#[tokio::test]
async fn callers_that_know_different_tenants_raise_them_all() {
    let bucket = MemoryKeyValue::new(None);
    let (one, other) = (floors(&[("a", "x", 5), ("b", "x", 1)]), floors(&[("a", "x", 1), ("b", "x", 7)]));
    let (mut known, mut known_to_other) = (Floors::default(), Floors::default());
    let raise = muster_ports::floors::raise;
    assert!(raise(&bucket, &cell(), &other, &mut known_to_other).await.unwrap());
    assert!(raise(&bucket, &cell(), &one, &mut known).await.unwrap());
    assert_eq!(load(&bucket, &cell()).await.unwrap(), Some(floors(&[("a", "x", 5), ("b", "x", 7)])));
    for floors in [&one, &other] {
        assert!(!raise(&bucket, &cell(), floors, &mut known).await.unwrap());
    }
    bucket.remove("floors-head/here").await.unwrap();
    assert!(raise(&bucket, &cell(), &one, &mut known).await.unwrap(), "a lost head is written again");
    assert_eq!(head(&bucket, &cell()).await.unwrap(), Some(12));
}

#[tokio::test]
async fn floors_that_are_missing_are_noticed() {
    let bucket = MemoryKeyValue::new(None);
    raise(&bucket, &floors(&[("a", "x", 3), ("a", "y", 4)])).await;
    assert_eq!(head(&bucket, &cell()).await.unwrap(), Some(7));
    bucket.remove("floors/here/a/y").await.unwrap();
    let error = load(&bucket, &cell()).await.unwrap_err();
    assert!(error.to_string().contains("sum up to 3, and should to 7"), "{error}");
    bucket.put("floors/here/a/y", Bytes::from_static(b"high"), Precondition::Any).await.unwrap();
    let error = load(&bucket, &cell()).await.unwrap_err();
    assert!(error.to_string().contains("floors/here/a/y"), "{error}");
}
