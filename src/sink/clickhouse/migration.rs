//! Makes the tables, columns and views that a database lacks, and notes their version in
//! `salt_schema`.
//!
//! The database is asked first, and only missing ones are made. So a database without tables, one
//! of an earlier version, and one in which a table was dropped are all the same case. If nothing is
//! missing nothing is done, so a user who may only read and insert is then enough. Two daemons may
//! migrate at once: the second finds its statement refused, looks again, and goes on.

use std::collections::HashSet;

use tracing::info;

use super::schema::{self, Makes, Options, Statement, VERSIONS};
use super::server::Server;
use super::tables::VERSION;
use crate::sink::contract::WriteError;

/// Brings the tables up to date; gives the statements that it took.
pub(super) async fn migrate(server: &Server, options: &Options) -> Result<Vec<String>, WriteError> {
    let mut present = Present::of(server, options).await?;
    let mut ran = Vec::new();
    for Statement { makes, sql } in schema::statements(&server.features(), options) {
        if present.has(makes) {
            continue;
        }
        if let Err(error) = server.execute(&sql).await {
            present = Present::of(server, options).await?;
            if !present.has(makes) {
                return Err(error);
            }
            continue;
        }
        ran.push(sql);
    }
    let version = version(server, options).await?;
    if version < VERSION {
        let sql = schema::record(options);
        server.execute(&sql).await?;
        ran.push(sql);
        let database = &options.database;
        info!(database, from = version, to = VERSION, "the tables in ClickHouse are up to date");
    }
    Ok(ran)
}

/// The version of the tables; 0 if none is noted.
async fn version(server: &Server, options: &Options) -> Result<u32, WriteError> {
    let table = schema::name(options, VERSIONS, "");
    let answer = server.query(&format!("SELECT max(version) FROM {table}")).await?;
    Ok(answer.trim().parse().unwrap_or(0))
}

/// The objects that a database has.
struct Present {
    has_database: bool,
    /// Tables and views, and `table.column`.
    names: HashSet<String>,
}

impl Present {
    async fn of(server: &Server, options: &Options) -> Result<Self, WriteError> {
        let database = schema::text(&options.database);
        let sql = format!(
            "SELECT '' FROM system.databases WHERE name = {database} \
             UNION ALL SELECT name FROM system.tables WHERE database = {database} \
             UNION ALL SELECT concat(table, '.', name) FROM system.columns WHERE database = {database}"
        );
        let names: HashSet<_> = server.query(&sql).await?.lines().map(str::to_owned).collect();
        Ok(Present { has_database: !names.is_empty(), names })
    }

    fn has(&self, makes: Makes) -> bool {
        match makes {
            Makes::Database => self.has_database,
            Makes::Table(table, ending) => self.names.contains(&format!("{table}{ending}")),
            Makes::Column(table, ending, column) => {
                // A table that is made has every column.
                !self.names.contains(&format!("{table}{ending}"))
                    || self.names.contains(&format!("{table}{ending}.{column}"))
            }
        }
    }
}
