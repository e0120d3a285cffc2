//! Bringing the schema up to date.

use muster_ports::EngineError;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection as _, SqlSafeStr as _};

use super::error::{corrupt, failed};
use super::{PostgresStore, connect, place};

/// Longest wait for another process that migrates, and for a table that others use, in milliseconds.
const PATIENCE: &str = "60000";

/// Every version of the schema, in order: number, name, statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/postgres/0001_first.sql")),
    (2, "floors", include_str!("../../migrations/postgres/0002_floors.sql")),
    (3, "reports", include_str!("../../migrations/postgres/0003_reports.sql")),
    (4, "commands", include_str!("../../migrations/postgres/0004_commands.sql")),
    (5, "access", include_str!("../../migrations/postgres/0005_access.sql")),
    (6, "liveness", include_str!("../../migrations/postgres/0006_liveness.sql")),
    (7, "history", include_str!("../../migrations/postgres/0007_history.sql")),
    (8, "credentials", include_str!("../../migrations/postgres/0008_credentials.sql")),
    (9, "rollouts", include_str!("../../migrations/postgres/0009_rollouts.sql")),
];

impl PostgresStore {
    /// Brings the schema up to date; it is never taken back. Where several processes do so at once, one
    /// of them does it and the others wait.
    ///
    /// # Errors
    /// A newer version of the program has been here, another process did not finish in time, or the
    /// database did not do it: then each version of the schema is there whole, or not at all.
    pub async fn migrate(&self) -> Result<(), EngineError> {
        let place = place(&self.database);
        // A connection of its own, without a limit on statements: changes of large tables take long.
        let options = self.database.clone().options([("lock_timeout", PATIENCE)]);
        let mut connection = connect(&options, self.patience).await?;
        let result = migrator().run(&mut connection).await;
        // The lock goes with the connection, also when the migration failed.
        let closed = connection.close().await;
        result.map_err(|error| explain(error, &place))?;
        closed.map_err(failed(&place))
    }
}

fn migrator() -> Migrator {
    let migration = |(number, name, statements): &(i64, &'static str, &'static str)| {
        Migration::new(*number, (*name).into(), MigrationType::Simple, statements.into_sql_str(), false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

fn explain(error: MigrateError, place: &str) -> EngineError {
    let newest = MIGRATIONS.last().map_or(0, |(number, ..)| *number);
    match error {
        MigrateError::VersionMissing(found) => corrupt(
            place,
            format_args!(
                "a newer version of this program has been here: the schema has number {found}, and this version \
                 knows them up to {newest}; run the newer version, or use another database"
            ),
        ),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(place)(error),
        other => corrupt(place, other),
    }
}
