//! The sections of the engines that Muster keeps its data in.

use std::path::PathBuf;
use std::time::Duration;

use super::kinds::{Secret, bytes, choice, duration, list, one_of, secret, text, whole};
use super::reader::{key, nested, optional, section};

choice! {
    /// An engine of the store.
    DatabaseType {
        /// SQLite, a file in the data directory.
        Sqlite = "sqlite";
        /// Postgres.
        Postgres = "postgres";
    }
}

section! {
    /// Section `database`.
    Database {
        /// The engine of the store.
        kind as "type": DatabaseType = key(one_of(), DatabaseType::Sqlite);
        /// Address of the database, with its credentials.
        connection_string: Option<Secret> = optional(secret());
        /// Most connections of this process to the database.
        max_open_conns: u32 = key(whole(1), 100);
        /// Most idle connections that are kept.
        max_idle_conns: u32 = key(whole(0), 10).without_effect();
        /// Longest use of one connection.
        conn_max_lifetime: Duration = key(duration(), Duration::from_secs(3600)).without_effect();
        /// Names of indexes.
        indexes: Vec<String> = key(list(text()), Vec::new()).ignored("Muster makes the indexes that it needs");
    }
}

choice! {
    /// An engine of the durable log.
    BusType {
        /// Within the process.
        Memory = "memory";
        /// NATS JetStream.
        Nats = "nats";
    }
}

section! {
    /// Section `bus`.
    Bus {
        /// The engine of the durable log of agents' reports.
        kind as "type": BusType = key(one_of(), BusType::Memory);
        /// Its addresses, separated by commas, with its credentials.
        url: Option<Secret> = optional(secret());
        /// Copies that NATS keeps of each report: 1, 3 or 5. Three survive the loss of a server.
        replicas: usize = key(whole(1), 3);
        /// Most bytes of reports that may wait to be folded. NATS sets them aside on each server's disk.
        max_bytes: usize = key(bytes(), 8 << 30);
        /// Most bytes of reports and templates that are too large for one message of NATS (1 MiB) and wait to
        /// be read; they are removed some three minutes later. NATS sets them aside as well.
        max_blob_bytes: usize = key(bytes(), 2 << 30);
        /// TLS to NATS, for a `bus.url` that begins with `tls://`.
        tls: EngineTls = nested(EngineTls::read);
    }
}

choice! {
    /// An engine of ownership.
    OwnershipType {
        /// Within the process.
        Memory = "memory";
        /// Redis.
        Redis = "redis";
    }
}

section! {
    /// Section `ownership`.
    Ownership {
        /// Where it is kept which gateway holds which agent.
        kind as "type": OwnershipType = key(one_of(), OwnershipType::Memory);
        /// Its address, with its credentials.
        url: Option<Secret> = optional(secret());
        /// TLS to Redis, for an `ownership.url` that begins with `rediss://`.
        tls: EngineTls = nested(EngineTls::read);
    }
}

section! {
    /// Section `bus.tls` or `ownership.tls`.
    EngineTls {
        /// File of the authorities of the engine's certificate, PEM; by default those of the system.
        ca_file: Option<String> = optional(text());
        /// File of the certificate that is shown to the engine, PEM, with `key_file`.
        cert_file: Option<String> = optional(text());
        /// File of the certificate's private key, PEM.
        key_file: Option<String> = optional(text());
    }
}

impl EngineTls {
    /// The file of the authorities.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.ca_file.as_ref().map(PathBuf::from)
    }

    /// The files of the certificate and its key, where there are both.
    pub fn client_certificate(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert_file.as_ref().map(PathBuf::from).zip(self.key_file.as_ref().map(PathBuf::from))
    }
}

choice! {
    /// A place for objects.
    StorageType {
        /// S3 or what speaks its protocol.
        S3 = "s3";
        /// Google Cloud Storage.
        Gcs = "gcs";
        /// A directory.
        Filesystem = "filesystem";
    }
}

section! {
    /// Section `storage`.
    Storage {
        /// Where exports and backups of configurations go.
        config: ObjectStorage = nested(ObjectStorage::read);
        /// Where agent packages are.
        packages: ObjectStorage = nested(ObjectStorage::read);
    }
}

section! {
    /// Section `storage.config` or `storage.packages`.
    ObjectStorage {
        /// The kind of the storage.
        kind as "type": Option<StorageType> = optional(one_of());
        /// The bucket, for `s3` and `gcs`.
        bucket: Option<String> = optional(text());
        /// The bucket's region.
        region: Option<String> = optional(text());
        /// The directory for `filesystem`, the prefix in a bucket.
        path: Option<String> = optional(text());
    }
}
