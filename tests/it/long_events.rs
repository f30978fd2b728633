//! An event whose JSON is many times as long as itself, through the real binary.

use crate::harness::beside::{DEADLINE, Daemon};
use rusqlite::{Connection, Row};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::time::timeout;

const MIB: usize = 1 << 20;

/// A return of control characters. Each is six bytes of JSON.
fn hostile_return(len: usize) -> Vec<u8> {
    let bytes = vec![1; len];
    let mut data = b"\x84\xa3fun\xa7cmd.run\xa3jid\xb420261121233336123456\xa2id\xa5web-1".to_vec();
    data.extend(b"\xa6return\xc6");
    data.extend(u32::try_from(len).unwrap().to_be_bytes());
    data.extend(bytes);
    let body = [b"salt/job/20261121233336123456/ret/web-1\n\n", &data[..]].concat();
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    [b"\x82\xa4head\x80\xa4body\xc6", &len[..], &body].concat()
}

#[tokio::test]
async fn invariant_6_control_characters_do_not_take_their_json_in_memory_in_every_sink() {
    const LEN: usize = 8 * MIB;
    const JSON: usize = 6 * LEN;
    let sinks = "rawfile_json: {filename: FOLDER/out}\n  \
        db:\n    sqlite3: {database: FOLDER/salt.db}\n  \
        none:\n    blackhole: {}\nmemory: 64MiB";
    let daemon = Daemon::start_with("salt_bus: {address: FOLDER/bus, max_frame: 32MiB}", sinks);
    let listener = UnixListener::bind(daemon.path("bus")).unwrap();
    let mut bus = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap().0;
    bus.write_all(&hostile_return(LEN)).await.unwrap();

    let database = daemon.path("salt.db");
    let stored = || {
        let connection = Connection::open(&database).ok()?;
        let sql = "SELECT length(full_ret), length(data) FROM salt_returns, salt_events";
        let lengths = |row: &Row<'_>| Ok([row.get::<_, i64>(0)?, row.get::<_, i64>(1)?]);
        let lengths = connection.query_row(sql, [], lengths).ok()?;
        Some(lengths.map(|len| usize::try_from(len).unwrap()))
    };
    daemon.until("the database to have it", || stored().is_some()).await;
    let file = daemon.path("out");
    let size = || std::fs::metadata(&file).map_or(0, |file| usize::try_from(file.len()).unwrap());
    daemon.until("the file to have it", || size() > JSON).await;
    // Quotes around it, and in the events more fields.
    let [returned, event] = stored().unwrap();
    assert_eq!(returned, JSON + 2);
    assert!((JSON..JSON + 200).contains(&event), "{event}");
    daemon.until("all events", || daemon.known_metric("saltern_sink_events_total") >= 3.0).await;

    // The program, the frame as it is read and in the queues, and three times the JSON of one event
    // at a time, as docs/operation.md says.
    let most = 40 * MIB + 3 * LEN + 3 * JSON;
    let peak = usize::try_from(daemon.peak_memory()).unwrap();
    assert!(peak < most, "{} MiB of at most {} MiB", peak / MIB, most / MIB);
    daemon.stop().await;
}
