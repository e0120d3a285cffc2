//! The contract of [`crate::blobs`].

use bytes::Bytes;
use muster_domain::ids::{Digest, Tenant};

use super::poll::join;
use crate::EngineError;
use crate::blobs::{BlobRef, Blobs, MAX_BLOB, PutError};

/// Bytes of a store under test.
const ROOM: usize = 16 << 20;

/// Runs every case, each on an empty store that `make` gives, which holds this many bytes before it is
/// full; an adapter may count some more for each blob.
pub async fn all<B: Blobs>(make: impl AsyncFn(usize) -> B) {
    a_content_comes_back(&make(ROOM).await).await;
    what_is_not_there_is_none(&make(ROOM).await).await;
    tenants_are_apart(&make(ROOM).await).await;
    the_same_content_may_be_put_at_once(&make(ROOM).await).await;
    what_was_put_before_a_mark_is_removed(&make(ROOM).await).await;
    what_was_put_again_stays(&make(ROOM).await).await;
    a_large_blob_is_refused(&make(ROOM).await).await;
    a_full_store_refuses_until_blobs_are_removed(&make(ROOM).await).await;
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

/// A content of this size, other than those of other seeds.
fn content(seed: u64, size: usize) -> Bytes {
    let words = (0..).map(|at: u64| (seed << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    words.flatten().take(size).collect()
}

async fn put(blobs: &dyn Blobs, content: &Bytes) -> BlobRef {
    blobs.put(&tenant("one"), content.clone()).await.unwrap()
}

async fn get(blobs: &dyn Blobs, blob: &BlobRef) -> Option<Bytes> {
    blobs.get(&tenant("one"), blob).await.unwrap()
}

async fn a_content_comes_back(blobs: &dyn Blobs) {
    // Among them: nothing, and what is as long as pieces that an engine might cut it into.
    let sizes = [0, 1, 1000, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 512 << 10, 3 << 20];
    for (seed, size) in (0..).zip(sizes) {
        let content = content(seed, size);
        let blob = put(blobs, &content).await;
        assert_eq!(blob, BlobRef { digest: Digest::of(&content), size: size as u64 });
        for _ in 0..2 {
            assert!(get(blobs, &blob).await == Some(content.clone()), "{size} bytes do not come back");
        }
        assert_eq!(put(blobs, &content).await, blob, "the same content is the same blob");
    }
}

async fn what_is_not_there_is_none(blobs: &dyn Blobs) {
    let content = content(1, 700_000);
    let digest = Digest::of(&content);
    for size in [0, 1, 700_000, MAX_BLOB as u64] {
        assert_eq!(get(blobs, &BlobRef { digest, size }).await, None);
    }
    let blob = put(blobs, &content).await;
    for size in [0, 1, 262_144, 699_999, 700_001, 1 << 20, MAX_BLOB as u64, MAX_BLOB as u64 + 1, u64::MAX] {
        let found = blobs.get(&tenant("one"), &BlobRef { size, ..blob }).await;
        assert!(
            matches!(found, Ok(None) | Err(EngineError::Corrupt { .. })),
            "a content of {} bytes was found as one of {size}",
            content.len()
        );
    }
    assert!(get(blobs, &blob).await.is_some());
}

async fn tenants_are_apart(blobs: &dyn Blobs) {
    let content = content(1, 1000);
    let blob = put(blobs, &content).await;
    for other in ["other", "one.more", "o", "one-more"] {
        assert_eq!(blobs.get(&tenant(other), &blob).await.unwrap(), None, "{other}");
    }
    assert_eq!(blobs.put(&tenant("other"), content.clone()).await.unwrap(), blob);
    assert_eq!(blobs.get(&tenant("other"), &blob).await.unwrap(), Some(content));
}

async fn the_same_content_may_be_put_at_once(blobs: &dyn Blobs) {
    for seed in 0..5 {
        let content = content(seed, 1 << 20);
        let ((one, other), third) = join(
            join(put(blobs, &content), put(blobs, &content)),
            blobs.put(&tenant("other"), content.clone()),
        )
        .await;
        assert_eq!((one, one), (other, third.unwrap()));
        assert!(get(blobs, &one).await == Some(content.clone()));
        let (again, found) = join(put(blobs, &content), get(blobs, &one)).await;
        assert_eq!(again, one);
        assert!(found == Some(content), "a content that is put again was away meanwhile");
    }
}

async fn what_was_put_before_a_mark_is_removed(blobs: &dyn Blobs) {
    assert_eq!(blobs.mark().await.unwrap().bytes, 0);
    let mut before = Vec::new();
    for seed in 0..5 {
        before.push(put(blobs, &content(seed, 600_000)).await);
    }
    let mark = blobs.mark().await.unwrap();
    assert!(mark.bytes >= 5 * 600_000, "{mark:?}");
    let after = put(blobs, &content(9, 600_000)).await;
    for _ in 0..2 {
        blobs.remove_before(&mark).await.unwrap();
        for blob in &before {
            assert_eq!(get(blobs, blob).await, None);
        }
        assert!(get(blobs, &after).await.is_some(), "what was put after the mark is gone");
    }
    let later = blobs.mark().await.unwrap();
    assert!((600_000..5 * 600_000).contains(&later.bytes), "{later:?}");
    blobs.remove_before(&later).await.unwrap();
    let last = blobs.mark().await.unwrap();
    assert_eq!((last.life, last.bytes), (mark.life, 0), "nothing is left");
}

async fn what_was_put_again_stays(blobs: &dyn Blobs) {
    let contents: Vec<_> = (0..4).map(|seed| content(seed, 700_000)).collect();
    let mut found = Vec::new();
    for content in &contents {
        found.push(put(blobs, content).await);
    }
    let mark = blobs.mark().await.unwrap();
    put(blobs, &contents[1]).await;
    // While it is removed, too: the put comes before or after, and either way it is there then.
    let (removed, _) = join(blobs.remove_before(&mark), put(blobs, &contents[2])).await;
    removed.unwrap();
    for (at, (blob, content)) in found.iter().zip(contents).enumerate() {
        let expected = [1, 2].contains(&at).then_some(content);
        assert!(get(blobs, blob).await == expected, "content {at}");
    }
}

async fn a_large_blob_is_refused(blobs: &dyn Blobs) {
    let large = Bytes::from(vec![0; MAX_BLOB + 1]);
    let refused = blobs.put(&tenant("one"), large).await;
    assert!(matches!(refused, Err(PutError::TooLarge { size }) if size == MAX_BLOB + 1), "{refused:?}");
}

async fn a_full_store_refuses_until_blobs_are_removed(blobs: &dyn Blobs) {
    let size = 1 << 20;
    let mut stored = Vec::new();
    let refused = loop {
        let content = content(stored.len() as u64, size);
        assert!(stored.len() <= ROOM / size, "the store takes more than its size");
        match blobs.put(&tenant("one"), content.clone()).await {
            Ok(blob) => stored.push(blob),
            Err(PutError::Engine(EngineError::Unavailable { .. })) => break content,
            Err(error) => panic!("{error} from a full store"),
        }
    };
    assert!(stored.len() >= ROOM / size / 2, "the store is full after {} blobs", stored.len());
    let blob = BlobRef { digest: Digest::of(&refused), size: size as u64 };
    assert_eq!(get(blobs, &blob).await, None, "what was refused is not there");
    for blob in &stored {
        assert!(get(blobs, blob).await.is_some(), "what was there is lost");
    }
    let mark = blobs.mark().await.unwrap();
    blobs.remove_before(&mark).await.unwrap();
    assert_eq!(put(blobs, &refused).await, blob);
    assert!(get(blobs, &blob).await == Some(refused));
}
