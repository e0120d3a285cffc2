//! The settings of the streams, and how those of a server may differ from them.

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use muster_domain::ids::PARTITIONS;

use super::{NatsOptions, names};

/// How long the id of an entry is remembered, so that a repeated publish is seen.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Version of how entries and values are written.
const FORMAT: &str = "1";

const FORMAT_KEY: &str = "muster-format";
const CLUSTER_KEY: &str = "muster-cluster";
const PARTITIONS_KEY: &str = "muster-partitions";

/// No limit.
const NONE: i64 = -1;

/// The stream of the log.
pub(super) fn log_config(options: &NatsOptions) -> Config {
    let mut metadata = metadata(options);
    metadata.insert(PARTITIONS_KEY.to_owned(), PARTITIONS.to_string());
    Config {
        name: names::log_stream(&options.cell),
        description: Some("Reports of agents, on their way from gateways to control.".to_owned()),
        subjects: vec![names::log_subjects(&options.cell)],
        max_messages_per_subject: NONE,
        // It was checked to be below 2^63.
        max_bytes: i64::try_from(options.max_bytes).unwrap_or(i64::MAX),
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        metadata,
        ..common(options)
    }
}

/// The stream of the blobs. Its pieces are found by their subjects and never change, so a replica may
/// answer for the leader, which is asked for what the replica does not have.
pub(super) fn blobs_config(options: &NatsOptions) -> Config {
    Config {
        name: names::blob_stream(&options.cell),
        description: Some("Payloads that are too large for one message, until they are read.".to_owned()),
        subjects: vec![names::blob_subjects(&options.cell)],
        max_messages_per_subject: 1,
        max_bytes: i64::try_from(options.max_blob_bytes).unwrap_or(i64::MAX),
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        metadata: metadata(options),
        ..common(options)
    }
}

/// The stream under a bucket, as other clients of key-value buckets expect it, but for direct reads: a
/// replica that lags would answer them with a value that was overwritten or removed before.
pub(super) fn bucket_config(options: &NatsOptions, bucket: &str, ttl: Option<Duration>) -> Config {
    Config {
        name: names::bucket_stream(bucket),
        subjects: vec![names::bucket_subjects(bucket)],
        max_messages_per_subject: 1,
        max_bytes: NONE,
        max_age: ttl.unwrap_or_default(),
        duplicate_window: ttl.map_or(DUPLICATE_WINDOW, |ttl| ttl.min(DUPLICATE_WINDOW)),
        allow_rollup: true,
        deny_delete: true,
        metadata: metadata(options),
        ..common(options)
    }
}

fn common(options: &NatsOptions) -> Config {
    Config {
        discard: DiscardPolicy::New,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: options.replicas,
        max_messages: NONE,
        max_message_size: -1,
        max_consumers: -1,
        ..Config::default()
    }
}

fn metadata(options: &NatsOptions) -> HashMap<String, String> {
    let cluster = options.cluster.map(|cluster| (CLUSTER_KEY.to_owned(), cluster.to_string()));
    [(FORMAT_KEY.to_owned(), FORMAT.to_owned())].into_iter().chain(cluster).collect()
}

/// Compares what a server has with what is asked for. The first difference comes back, with what to do.
pub(super) fn compare(want: &Config, found: &Config) -> Result<(), (String, String)> {
    let name = &want.name;
    let anew = || {
        format!(
            "use another cell, or remove it with `nats stream rm {name}` and start a control: what is in it is lost, and agents are asked for their full state"
        )
    };
    identity(want, found).map_err(|reason| (format!("the stream {name} {reason}"), anew()))?;

    let fixed = |what, found: &dyn Debug, wanted: &dyn Debug| {
        Err((format!("the stream {name} has {what} {found:?} where {wanted:?} is asked for"), anew()))
    };
    if found.storage != want.storage {
        return fixed("storage", &found.storage, &want.storage);
    }
    if found.retention != want.retention {
        return fixed("retention", &found.retention, &want.retention);
    }
    if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return fixed("a source beside its publishers:", &true, &false);
    }
    if found.sealed || found.deny_delete != want.deny_delete || found.deny_purge {
        let of = |config: &Config| (config.sealed, config.deny_delete, config.deny_purge);
        return fixed("(sealed, deny_delete, deny_purge)", &of(found), &of(want));
    }

    let edit = |what, found: &dyn Debug, wanted: &dyn Debug, flag: &str| {
        let fix = format!("correct the configuration, or change it with `nats stream edit {name} {flag}`");
        Err((format!("the stream {name} has {what} {found:?} where {wanted:?} is asked for"), fix))
    };
    if found.subjects != want.subjects {
        let flag = format!("--subjects '{}'", want.subjects.join(","));
        return edit("subjects", &found.subjects, &want.subjects, &flag);
    }
    if found.num_replicas != want.num_replicas {
        let flag = format!("--replicas {}", want.num_replicas);
        return edit("replicas", &found.num_replicas, &want.num_replicas, &flag);
    }
    if found.discard != want.discard || found.discard_new_per_subject {
        return edit("the discard policy", &found.discard, &want.discard, "--discard new");
    }
    if found.max_age != want.max_age {
        let flag = format!("--max-age {}s", want.max_age.as_secs());
        return edit("a maximum age of", &found.max_age, &want.max_age, &flag);
    }
    if found.duplicate_window != want.duplicate_window {
        let flag = format!("--dupe-window {}s", want.duplicate_window.as_secs());
        return edit("a duplicate window of", &found.duplicate_window, &want.duplicate_window, &flag);
    }
    let limits = [
        ("max_bytes", "--max-bytes", found.max_bytes, want.max_bytes),
        ("max_msgs", "--max-msgs", found.max_messages, want.max_messages),
        (
            "max_msgs_per_subject",
            "--max-msgs-per-subject",
            found.max_messages_per_subject,
            want.max_messages_per_subject,
        ),
        (
            "max_msg_size",
            "--max-msg-size",
            i64::from(found.max_message_size),
            i64::from(want.max_message_size),
        ),
        ("max_consumers", "--max-consumers", i64::from(found.max_consumers), i64::from(want.max_consumers)),
    ];
    for (what, flag, found, wanted) in limits {
        // Zero is no limit too.
        if found.max(NONE) != wanted && (wanted, found) != (NONE, 0) {
            return edit(what, &found, &wanted, &format!("{flag}={wanted}"));
        }
    }
    if found.allow_direct != want.allow_direct {
        let flag = if want.allow_direct { "--allow-direct" } else { "--no-allow-direct" };
        return edit("allow_direct", &found.allow_direct, &want.allow_direct, flag);
    }
    if found.no_ack || found.subject_transform.is_some() {
        return edit("no acknowledgements, or a subject transform:", &true, &false, "--ack");
    }
    Ok(())
}

/// Whether this is the stream that is meant; if not, what it is instead.
fn identity(want: &Config, found: &Config) -> Result<(), String> {
    let Some(format) = found.metadata.get(FORMAT_KEY) else {
        return Err(format!("was not made by Muster: it carries no {FORMAT_KEY}"));
    };
    if format != FORMAT {
        return Err(format!("is of format {format} where this program knows {FORMAT}"));
    }
    let value = |config: &Config, key| config.metadata.get(key).cloned();
    if let Some(wanted) = value(want, PARTITIONS_KEY) {
        let partitions = value(found, PARTITIONS_KEY).unwrap_or_else(|| "an unknown number of".to_owned());
        if partitions != wanted {
            return Err(format!("has {partitions} partitions where {wanted} are asked for"));
        }
    }
    if let Some(wanted) = value(want, CLUSTER_KEY) {
        let cluster = value(found, CLUSTER_KEY).unwrap_or_else(|| "an unknown cluster".to_owned());
        if cluster != wanted {
            return Err(format!("belongs to another cluster, {cluster}, and this one is {wanted}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Changes a stream.
    type Change = fn(&mut Config);

    fn options() -> NatsOptions {
        let cluster = Some(Uuid::from_u128(7));
        NatsOptions { cluster, ..NatsOptions::new("nats://localhost", "eu".parse().unwrap()) }
    }

    #[test]
    fn every_difference_is_told_with_a_fix() {
        let want = log_config(&options());
        assert_eq!(compare(&want, &want), Ok(()));
        let with = |change: Change| {
            let mut found = want.clone();
            change(&mut found);
            let (reason, fix) = compare(&want, &found).unwrap_err();
            format!("{reason}; {fix}")
        };
        let cases: [(&str, Change); 16] = [
            ("no muster-format", |c| c.metadata.clear()),
            ("is of format 2", |c| drop(c.metadata.insert(FORMAT_KEY.to_owned(), "2".to_owned()))),
            ("32 partitions", |c| drop(c.metadata.insert(PARTITIONS_KEY.to_owned(), "32".to_owned()))),
            ("another cluster", |c| drop(c.metadata.insert(CLUSTER_KEY.to_owned(), "x".to_owned()))),
            ("storage Memory", |c| c.storage = StorageType::Memory),
            ("retention WorkQueue", |c| c.retention = RetentionPolicy::WorkQueue),
            ("--subjects 'muster.eu.log.*'", |c| c.subjects.push("more".to_owned())),
            ("--replicas 1", |c| c.num_replicas = 3),
            ("--discard new", |c| c.discard = DiscardPolicy::Old),
            ("--dupe-window 120s", |c| c.duplicate_window = Duration::from_secs(10)),
            ("--max-age 0s", |c| c.max_age = Duration::from_secs(3600)),
            ("--max-bytes=8589934592", |c| c.max_bytes = -1),
            ("--max-msgs=-1", |c| c.max_messages = 5),
            ("--allow-direct", |c| c.allow_direct = false),
            ("deny_purge", |c| c.deny_purge = true),
            ("no acknowledgements", |c| c.no_ack = true),
        ];
        for (told, change) in cases {
            assert!(with(change).contains(told), "{told:?} is not in {:?}", with(change));
        }
    }

    #[test]
    fn a_role_without_a_cluster_takes_any() {
        let found = log_config(&options());
        let gateway = NatsOptions { cluster: None, ..options() };
        assert_eq!(compare(&log_config(&gateway), &found), Ok(()));
    }

    #[test]
    fn blobs_have_a_bound_and_one_message_a_piece() {
        let want = blobs_config(&options());
        assert_eq!(compare(&want, &want), Ok(()));
        let found = Config { max_bytes: -1, ..want.clone() };
        let (reason, fix) = compare(&want, &found).unwrap_err();
        assert!(reason.starts_with("the stream BLOBS_muster-eu has max_bytes -1"), "{reason}");
        assert!(fix.contains("`nats stream edit BLOBS_muster-eu --max-bytes=2147483648`"), "{fix}");
        let found = Config { max_messages_per_subject: -1, ..want.clone() };
        assert!(compare(&want, &found).unwrap_err().1.contains("--max-msgs-per-subject=1"));
    }

    #[test]
    fn a_bucket_is_read_from_its_leader() {
        let want = bucket_config(&options(), "muster-eu-leases", Some(Duration::from_secs(10)));
        assert_eq!(compare(&want, &want), Ok(()));
        let found = Config { allow_direct: true, ..want.clone() };
        assert!(compare(&want, &found).unwrap_err().1.contains("--no-allow-direct"));
    }
}
