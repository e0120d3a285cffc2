//! The contract of [`crate::log`].

use bytes::Bytes;
use muster_domain::ids::{MessageId, Partition};
use uuid::Uuid;

use super::poll::{join, poll_once};
use crate::log::{Log, LogEntry, LogReader, Position, PublishError};

/// Size of a log under test.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the largest payload that it takes.
    pub payload_bytes: usize,
    /// Bytes of payload, in all partitions together, that it takes before it is full; an adapter may
    /// count some more for each entry.
    pub total_bytes: usize,
}

const LIMITS: Limits = Limits { payload_bytes: 1024, total_bytes: 64 * 1024 };

/// Runs every case, each on a log that `make` gives, empty and of this size. A case that does not
/// end is a failure too: a waiting reader was not woken.
pub async fn all<L: Log>(make: impl AsyncFn(Limits) -> L) {
    entries_stand_in_order(&make(LIMITS).await).await;
    a_reader_begins_after_its_position(&make(LIMITS).await).await;
    a_reader_takes_no_more_than_asked(&make(LIMITS).await).await;
    a_waiting_reader_is_woken(&make(LIMITS).await).await;
    a_cancelled_wait_loses_nothing(&make(LIMITS).await).await;
    a_repeated_id_has_no_effect(&make(LIMITS).await).await;
    the_last_entry_is_known(&make(LIMITS).await).await;
    a_position_is_recognised_by_its_id(&make(LIMITS).await).await;
    purge_keeps_the_entry_at_the_position(&make(LIMITS).await).await;
    purge_of_everything_keeps_positions_rising(&make(LIMITS).await).await;
    a_reader_goes_on_over_a_purge(&make(LIMITS).await).await;
    partitions_are_apart(&make(LIMITS).await).await;
    a_large_payload_is_refused(&make(LIMITS).await).await;
    a_full_log_refuses_until_it_is_purged(&make(LIMITS).await).await;
}

fn id(number: u64) -> MessageId {
    MessageId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(number)))
}

fn partition(number: u16) -> Partition {
    Partition::new(number).unwrap()
}

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("entry\0{number}"))
}

async fn publish(log: &dyn Log, partition: Partition, number: u64) -> Position {
    log.publish(partition, id(number), payload(number)).await.unwrap()
}

/// Publishes numbered entries to a partition, and returns them as a reader should give them.
async fn fill(log: &dyn Log, partition: Partition, numbers: std::ops::Range<u64>) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    for number in numbers {
        let position = publish(log, partition, number).await;
        entries.push(LogEntry { position, id: id(number), payload: payload(number) });
    }
    entries
}

/// Reads until there are this many; it waits for them.
async fn take(reader: &mut dyn LogReader, count: usize) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    while entries.len() < count {
        let more = reader.next(count - entries.len()).await.unwrap();
        assert!(!more.is_empty(), "a reader returned without an entry");
        entries.extend(more);
    }
    entries
}

async fn entries_stand_in_order(log: &dyn Log) {
    let entries = fill(log, partition(7), 0..50).await;
    assert!(entries[0].position > Position::default(), "zero is before the first entry");
    assert!(entries.is_sorted_by(|one, next| one.position < next.position), "positions do not rise");
    let mut reader = log.read(partition(7), Position::default()).await.unwrap();
    assert_eq!(take(&mut *reader, 50).await, entries);
    let mut again = log.read(partition(7), Position::default()).await.unwrap();
    assert_eq!(take(&mut *again, 50).await, entries, "readers do not take entries from each other");
}

async fn a_reader_begins_after_its_position(log: &dyn Log) {
    let entries = fill(log, partition(0), 0..10).await;
    for (at, entry) in entries.iter().enumerate().take(9) {
        let mut reader = log.read(partition(0), entry.position).await.unwrap();
        assert_eq!(take(&mut *reader, 9 - at).await, entries[at + 1..]);
    }
    let mut at_end = log.read(partition(0), entries[9].position).await.unwrap();
    assert!(poll_once(at_end.next(10)).is_none(), "there is nothing after the last entry");
    let later = fill(log, partition(0), 10..11).await;
    assert_eq!(take(&mut *at_end, 1).await, later);
}

async fn a_reader_takes_no_more_than_asked(log: &dyn Log) {
    let entries = fill(log, partition(1), 0..10).await;
    let mut reader = log.read(partition(1), Position::default()).await.unwrap();
    let mut read = Vec::new();
    while read.len() < entries.len() {
        let some = reader.next(3).await.unwrap();
        assert!((1..=3).contains(&some.len()), "{} entries where at most 3 were asked for", some.len());
        read.extend(some);
    }
    assert_eq!(read, entries);
}

async fn a_waiting_reader_is_woken(log: &dyn Log) {
    let mut reader = log.read(partition(2), Position::default()).await.unwrap();
    for round in 0..3 {
        let (read, published) = join(reader.next(10), fill(log, partition(2), round..round + 1)).await;
        assert_eq!(read.unwrap(), published, "a reader does not wait for more than one entry");
    }
    let mut other = log.read(partition(2), Position::default()).await.unwrap();
    take(&mut *other, 3).await;
    let ((one, two), published) =
        join(join(reader.next(10), other.next(10)), fill(log, partition(2), 3..4)).await;
    assert_eq!((one.unwrap(), two.unwrap()), (published.clone(), published), "every reader is woken");
}

async fn a_cancelled_wait_loses_nothing(log: &dyn Log) {
    let mut reader = log.read(partition(3), Position::default()).await.unwrap();
    let mut read = Vec::new();
    let mut entries = Vec::new();
    for number in 0..20 {
        // What a wait returns at once is not cancelled, and counts.
        read.extend(poll_once(reader.next(10)).transpose().unwrap().unwrap_or_default());
        entries.extend(fill(log, partition(3), number..number + 1).await);
    }
    let missing = entries.len() - read.len();
    read.extend(take(&mut *reader, missing).await);
    assert_eq!(read, entries);
}

async fn a_repeated_id_has_no_effect(log: &dyn Log) {
    let mut entries = fill(log, partition(4), 0..3).await;
    for entry in &entries {
        let again = log.publish(partition(4), entry.id, Bytes::from_static(b"other")).await.unwrap();
        assert_eq!(again, entry.position, "a repeated publish returns the position of the first");
    }
    let last = entries[2].position;
    log.purge(partition(4), last).await.unwrap();
    assert_eq!(publish(log, partition(4), 0).await, entries[0].position, "also once that is purged");
    entries.extend(fill(log, partition(4), 3..4).await);
    let mut reader = log.read(partition(4), Position::default()).await.unwrap();
    assert_eq!(take(&mut *reader, 2).await, entries[2..]);
}

async fn the_last_entry_is_known(log: &dyn Log) {
    assert_eq!(log.last(partition(15)).await.unwrap(), Position::default());
    for number in 0..3 {
        let position = publish(log, partition(15), number).await;
        publish(log, partition(16), 100 + number).await;
        assert_eq!(log.last(partition(15)).await.unwrap(), position);
    }
    let last = log.last(partition(15)).await.unwrap();
    log.purge(partition(15), last).await.unwrap();
    assert_eq!(log.last(partition(15)).await.unwrap(), last, "the entry at the position stays");
    log.purge(partition(15), Position(last.0 + 1)).await.unwrap();
    assert_eq!(log.last(partition(15)).await.unwrap(), Position::default());
}

async fn a_position_is_recognised_by_its_id(log: &dyn Log) {
    let entries = fill(log, partition(5), 0..3).await;
    let elsewhere = fill(log, partition(6), 3..4).await;
    for entry in &entries {
        assert_eq!(log.id_at(partition(5), entry.position).await.unwrap(), Some(entry.id));
    }
    let of_the_log = log.id_at(partition(5), Position::default()).await.unwrap();
    assert_eq!(log.id_at(partition(40), Position::default()).await.unwrap(), of_the_log);
    let nowhere = [elsewhere[0].position, Position(entries[2].position.0 + 1000)];
    for position in nowhere {
        // A log that numbers each partition for itself may have this partition's own entry there.
        let own = entries.iter().find(|entry| entry.position == position).map(|entry| entry.id);
        assert_eq!(log.id_at(partition(5), position).await.unwrap(), own, "at {position:?}");
    }
    assert_eq!(log.id_at(partition(40), entries[0].position).await.unwrap(), None, "an empty partition");
}

async fn purge_keeps_the_entry_at_the_position(log: &dyn Log) {
    let entries = fill(log, partition(8), 0..5).await;
    let other = fill(log, partition(9), 5..7).await;
    log.purge(partition(8), entries[3].position).await.unwrap();
    for (at, entry) in entries.iter().enumerate() {
        let id = (at >= 3).then_some(entry.id);
        assert_eq!(log.id_at(partition(8), entry.position).await.unwrap(), id, "entry {at}");
    }
    let mut reader = log.read(partition(8), Position::default()).await.unwrap();
    assert_eq!(take(&mut *reader, 2).await, entries[3..]);
    log.purge(partition(8), entries[1].position).await.unwrap();
    log.purge(partition(8), entries[3].position).await.unwrap();
    let mut after = log.read(partition(8), entries[3].position).await.unwrap();
    assert_eq!(take(&mut *after, 1).await, entries[4..], "the next one, for who stands on the kept one");
    let mut reader = log.read(partition(9), Position::default()).await.unwrap();
    assert_eq!(take(&mut *reader, 2).await, other, "another partition is not touched");
}

async fn purge_of_everything_keeps_positions_rising(log: &dyn Log) {
    let entries = fill(log, partition(10), 0..3).await;
    log.purge(partition(10), Position(entries[2].position.0 + 1)).await.unwrap();
    assert_eq!(log.id_at(partition(10), entries[2].position).await.unwrap(), None);
    let mut reader = log.read(partition(10), entries[2].position).await.unwrap();
    assert!(poll_once(reader.next(1)).is_none());
    let later = fill(log, partition(10), 3..5).await;
    assert!(later[0].position > entries[2].position, "a position was given twice");
    assert_eq!(take(&mut *reader, 2).await, later);
}

async fn a_reader_goes_on_over_a_purge(log: &dyn Log) {
    let entries = fill(log, partition(11), 0..6).await;
    let mut behind = log.read(partition(11), Position::default()).await.unwrap();
    let mut ahead = log.read(partition(11), Position::default()).await.unwrap();
    assert_eq!(take(&mut *ahead, 5).await, entries[..5]);
    log.purge(partition(11), entries[3].position).await.unwrap();
    assert_eq!(take(&mut *ahead, 1).await, entries[5..], "each once");
    // A reader that was behind may have fetched ahead; it never goes back, and misses nothing that is kept.
    let mut read = Vec::new();
    while read.last() != entries.last() {
        read.extend(behind.next(10).await.unwrap());
    }
    assert!(entries.ends_with(&read) && read.len() >= 3, "{read:?}");
}

async fn partitions_are_apart(log: &dyn Log) {
    let mut expected: Vec<Vec<LogEntry>> = Partition::all().map(|_| Vec::new()).collect();
    let mut number = 0;
    for _ in 0..3 {
        for partition in Partition::all() {
            let entries = &mut expected[usize::from(partition.number())];
            entries.extend(fill(log, partition, number..number + 1).await);
            number += 1;
        }
    }
    for (partition, entries) in Partition::all().zip(expected) {
        let mut reader = log.read(partition, Position::default()).await.unwrap();
        assert_eq!(take(&mut *reader, 3).await, entries);
        assert!(poll_once(reader.next(1)).is_none(), "partition {partition} has more than was published");
    }
}

async fn a_large_payload_is_refused(log: &dyn Log) {
    let limit = LIMITS.payload_bytes;
    assert_eq!(log.max_payload(), limit);
    let refused = log.publish(partition(12), id(0), vec![1; limit + 1].into()).await;
    match refused {
        Err(PublishError::TooLarge { size, limit: told }) => assert_eq!((size, told), (limit + 1, limit)),
        other => panic!("{other:?} for a payload over the limit"),
    }
    let position = log.publish(partition(12), id(0), vec![2; limit].into()).await.unwrap();
    let empty = log.publish(partition(12), id(1), Bytes::new()).await.unwrap();
    let mut reader = log.read(partition(12), Position::default()).await.unwrap();
    let entries = [
        LogEntry { position, id: id(0), payload: vec![2; limit].into() },
        LogEntry { position: empty, id: id(1), payload: Bytes::new() },
    ];
    assert_eq!(take(&mut *reader, 2).await, entries);
}

async fn a_full_log_refuses_until_it_is_purged(log: &dyn Log) {
    let payload = Bytes::from(vec![0; LIMITS.payload_bytes]);
    let most = (LIMITS.total_bytes / LIMITS.payload_bytes) as u64;
    let mut stored = Vec::new();
    let refused = loop {
        let number = stored.len() as u64;
        assert!(number <= most, "the log takes more than its size");
        match log.publish(partition(13), id(number), payload.clone()).await {
            Ok(position) => stored.push(position),
            Err(PublishError::Full) => break number,
            Err(error) => panic!("{error} from a full log"),
        }
    };
    assert!(refused >= most / 2, "the log is full after {refused} of {most} entries");
    let elsewhere = log.publish(partition(14), id(1000), payload.clone()).await;
    assert!(matches!(elsewhere, Err(PublishError::Full)), "{elsewhere:?}: the limit is for all partitions");
    log.purge(partition(13), stored[2]).await.unwrap();
    let position = log.publish(partition(13), id(refused), payload.clone()).await.unwrap();
    let mut reader = log.read(partition(13), stored[stored.len() - 1]).await.unwrap();
    let entry = LogEntry { position, id: id(refused), payload };
    assert_eq!(take(&mut *reader, 1).await, [entry], "what was refused was not stored");
}
