//! The sink `clickhouse`: each test has a server of its own, of release 18.16.

use std::path::Path;

use super::{Copies, Repair, Store, for_good};
use crate::harness::clickhouse::ClickHouse;

impl Store for ClickHouse {
    const COPIES: Copies = Copies::One;

    fn start(_: &Path) -> Self {
        ClickHouse::start()
    }

    fn settings(&self) -> String {
        format!("{{{}}}", ClickHouse::settings(self, "salt"))
    }

    // A repeat is merged away some time, so it does not count.
    fn tags(&self) -> Option<Vec<String>> {
        let sql = "SELECT tag FROM salt.salt_events GROUP BY tag, event_id \
                   ORDER BY toUInt64(splitByChar('/', tag)[2])";
        Some(self.query(sql).lines().map(str::to_owned).collect())
    }
}

kind! { "clickhouse" in ClickHouse:
    absent: { kill }
    killed: { kill }
    held: { hold }
    hangs: { hold }
    refusing: { read_only }
    rejecting: { refuse_number_13 }
    halving: { none("a batch is a block of rows, which is taken whole") }
    password: { |server: &ClickHouse| Store::settings(server).replace("secret", "wrong") }
    removed: { drop_table }
}

/// It is started again with its data.
fn kill(server: &mut ClickHouse, _: Option<u32>) -> Repair<ClickHouse> {
    server.kill();
    Box::new(ClickHouse::run)
}

fn hold(server: &mut ClickHouse, _: Option<u32>) -> Repair<ClickHouse> {
    server.pause();
    Box::new(|server| server.resume())
}

/// The user may only read.
fn read_only(server: &mut ClickHouse, _: Option<u32>) -> Repair<ClickHouse> {
    server.limit_now("readonly", "1");
    Box::new(|server| server.limit(""))
}

fn refuse_number_13(server: &mut ClickHouse, _: Option<u32>) -> Repair<ClickHouse> {
    let sql = "ALTER TABLE salt.salt_events ADD COLUMN guard UInt8 \
               MATERIALIZED toUInt8(if(tag = 'test/13', 'bad luck', '1'))";
    server.query(sql);
    for_good()
}

/// Somebody drops the table.
fn drop_table(server: &mut ClickHouse, _: Option<u32>) -> Repair<ClickHouse> {
    server.query("DROP TABLE salt.salt_events");
    for_good()
}
