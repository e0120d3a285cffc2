//! Opening the file: its directory, its lock, its connections and its schema.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_ports::EngineError;
use sqlx::ConnectOptions as _;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::SqliteStore;
use super::error::{corrupt, failed, unavailable};

/// Connections that read at the same time.
const READERS: u32 = 4;
/// How long a call waits for a connection, and a connection for a lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the write-ahead log is cut back to after it has grown, in bytes.
const WAL_BYTES: &str = "67108864";

/// Every version of the schema, in order: number, name, statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/sqlite/0001_first.sql")),
    (2, "floors", include_str!("../../migrations/sqlite/0002_floors.sql")),
    (3, "reports", include_str!("../../migrations/sqlite/0003_reports.sql")),
    (4, "commands", include_str!("../../migrations/sqlite/0004_commands.sql")),
    (5, "access", include_str!("../../migrations/sqlite/0005_access.sql")),
    (6, "liveness", include_str!("../../migrations/sqlite/0006_liveness.sql")),
    (7, "history", include_str!("../../migrations/sqlite/0007_history.sql")),
    (8, "credentials", include_str!("../../migrations/sqlite/0008_credentials.sql")),
    (9, "rollouts", include_str!("../../migrations/sqlite/0009_rollouts.sql")),
];

impl SqliteStore {
    /// Opens the store in this file and brings its schema up to date. Makes the file, and its
    /// directory, for their owner alone where they are not there.
    ///
    /// # Errors
    /// Another process has it open, the file cannot be made or read, it is damaged, or a newer
    /// version of the program has written it.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, EngineError> {
        let path = path.as_ref();
        let cannot = |error: io::Error| unavailable(format_args!("cannot open {}: {error}", path.display()));
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            make_directory(directory).map_err(cannot)?;
        }
        // The lock comes first: whoever opens the file and closes it again takes SQLite's own locks
        // from every connection of the process.
        let lock = lock(path)?;
        make_file(path).map_err(cannot)?;

        let place = path.display().to_string();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(PATIENCE)
            .foreign_keys(false)
            .disable_statement_logging();
        let writing = options
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("journal_size_limit", WAL_BYTES);
        let pool = || SqlitePoolOptions::new().acquire_timeout(PATIENCE).test_before_acquire(false);
        let writer =
            pool().max_connections(1).max_lifetime(None).idle_timeout(None).connect_with(writing).await;
        let writer = writer.map_err(failed(&place))?;
        migrate(&writer, &place).await?;
        let readers = pool().max_connections(READERS).connect_with(options.read_only(true)).await;
        let readers = readers.map_err(failed(&place))?;
        Ok(Self { writer, readers, _lock: lock })
    }

    /// Closes the connections, after what they are doing, and gives the file free.
    pub async fn close(self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

async fn migrate(writer: &sqlx::SqlitePool, place: &str) -> Result<(), EngineError> {
    let migration = |(number, name, statements): &(i64, &'static str, &'static str)| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, statements.into_sql_str(), false)
    };
    let migrator = Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect());
    let newest = MIGRATIONS.last().map_or(0, |(number, ..)| *number);
    migrator.run(writer).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) => corrupt(
            place,
            format_args!(
                "a newer version of this program wrote it: its schema has number {found}, and this version knows \
                 them up to {newest}; run the newer version, or use another data directory"
            ),
        ),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(place)(error),
        other => corrupt(place, other),
    })
}

/// Makes the directory, and those above it, for the owner alone.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // So that the new directory is still there after the power was lost.
    match directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Makes the file for the owner alone; SQLite gives the files beside it the same mode.
fn make_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Takes the lock beside the file, and leaves the number of this process in it.
fn lock(path: &Path) -> Result<File, EngineError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let cannot = |error: io::Error| unavailable(format_args!("cannot lock {}: {error}", beside.display()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&beside).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(cannot)?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(cannot(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: an unreadable number is left out.
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            Err(unavailable(format_args!(
                "{} is in use by another process{holder}: stop that one, or use another data directory",
                path.display()
            )))
        }
    }
}
