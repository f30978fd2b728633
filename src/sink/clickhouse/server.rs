//! One ClickHouse server: what it can do, and how it is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use clickhouse::error::Error;
use clickhouse::{Client, Compression};
use tokio::time::timeout;
use tracing::warn;

use super::body::Insert;
use super::errors::{Meaning, Refusal};
use super::servers::Url;
use crate::event::batch::BatchId;
use crate::sink::contract::WriteError;

/// What a server can do, told from its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Features {
    /// The first two numbers of `version()`.
    pub(super) version: (u32, u32),
    /// `DateTime64`, and functions for it.
    pub(super) datetime64: bool,
    /// `RowBinaryWithNamesAndTypes` is read, and compared with the table's columns.
    pub(super) checked_row_binary: bool,
    /// A MergeTree table that is not replicated can have a window in which it drops repeats.
    pub(super) dedup_window: bool,
    /// `insert_deduplication_token`.
    pub(super) dedup_token: bool,
    /// `async_insert`.
    pub(super) async_insert: bool,
    /// The type `JSON`, without a setting that allows it.
    pub(super) json_type: bool,
}

impl Features {
    /// The features of a server of this version.
    pub(crate) fn of(version: (u32, u32)) -> Self {
        Features {
            version,
            datetime64: version >= (20, 1),
            dedup_window: version >= (21, 3),
            async_insert: version >= (21, 11),
            checked_row_binary: version >= (22, 1),
            dedup_token: version >= (22, 2),
            json_type: version >= (25, 3),
        }
    }

    /// The format in which rows are sent: the one in which the server finds mistakes.
    pub(super) fn format(self) -> Format {
        if self.checked_row_binary { Format::RowBinary } else { Format::JsonEachRow }
    }
}

/// A format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `RowBinaryWithNamesAndTypes`: a head with the names and types of the columns, then rows.
    RowBinary,
    /// `JSONEachRow`: an object a row.
    JsonEachRow,
}

impl Format {
    /// The format's name in SQL.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::RowBinary => "RowBinaryWithNamesAndTypes",
            Format::JsonEachRow => "JSONEachRow",
        }
    }
}

/// The setting by which a server knows an insert again.
const TOKEN: &str = "insert_deduplication_token";

/// A server that has answered, and the database of the sink in it.
pub(super) struct Server {
    /// Where it is, for messages.
    url: Url,
    /// Knows no database, since the sink's may have to be created yet.
    client: Client,
    /// Knows the sink's database.
    inserts: Client,
    features: Features,
    /// What goes with each insert, but for the token.
    settings: BTreeMap<String, String>,
    /// How long the server may take to answer.
    timeout: Duration,
}

impl Server {
    /// Asks the server at `url`, to which `client` leads, for its version. `database` need not
    /// exist yet.
    pub(super) async fn connect(
        url: &Url,
        client: &Client,
        database: &str,
        limit: Duration,
    ) -> Result<Self, WriteError> {
        let doing = || format!("asking ClickHouse at {url} for its version");
        let answer = ask(client, "SELECT version()", limit)
            .await
            .map_err(|refusal| refusal.into_sink_error(doing()))?;
        let version = version(&answer).ok_or_else(|| {
            let cause = format!("`{}` is no version: is it ClickHouse's HTTP port?", answer.trim());
            WriteError::retry(doing(), cause)
        })?;
        Ok(Server {
            url: url.clone(),
            client: client.clone(),
            inserts: client.clone().with_database(database),
            features: Features::of(version),
            settings: BTreeMap::new(),
            timeout: limit,
        })
    }

    /// Lets these settings go with each insert. What the server does not know of them is left away.
    pub(super) fn with_settings(
        mut self,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.settings.extend(settings);
        self
    }

    /// What the server can do.
    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// Runs a statement that answers nothing; its tables need their database's name.
    pub(super) async fn execute(&self, sql: &str) -> Result<(), WriteError> {
        self.query(sql).await.map(|_| ())
    }

    /// The answer to a query, rows of tab-separated values; its tables need their database's name.
    pub(super) async fn query(&self, sql: &str) -> Result<String, WriteError> {
        ask(&self.client, sql, self.timeout).await.map_err(|refusal| {
            let begin: Vec<_> = sql.split_whitespace().take(6).collect();
            refusal.into_sink_error(format!("running {} … at {}", begin.join(" "), self.url))
        })
    }

    /// Stores rows. The server has them for good when this returns.
    pub(super) async fn insert(&mut self, insert: Insert, batch: BatchId) -> Result<(), Refusal> {
        let Insert { table, columns, format, body, .. } = insert;
        let sql = format!("INSERT INTO {table} ({columns}) FORMAT {}", format.name());
        let body = Bytes::from(body);
        loop {
            let refusal = match self.send(&sql, body.clone(), table, batch).await {
                Ok(()) => return Ok(()),
                Err(error) => Refusal::from(error),
            };
            // One setting less each time.
            if refusal.meaning != Meaning::Setting || !self.leave_away(&refusal) {
                return Err(refusal);
            }
        }
    }

    async fn send(&self, sql: &str, body: Bytes, table: &str, batch: BatchId) -> Result<(), Error> {
        let limit = Some(self.timeout);
        let mut request = self.inserts.insert_formatted_with(sql).with_timeouts(limit, limit);
        for (name, value) in &self.settings {
            request = request.with_setting(name, value);
        }
        if self.features.dedup_token {
            request = request.with_setting(TOKEN, format!("{batch}-{table}"));
        }
        // The whole body at once: the server stores all of it or, short of a crash, nothing.
        request.send(body).await?;
        request.end().await
    }

    /// Does without the setting that the refusal names from now on; `false` if it names none of
    /// ours.
    fn leave_away(&mut self, refusal: &Refusal) -> bool {
        let token = self.features.dedup_token.then_some(TOKEN);
        let ours = self.settings.keys().map(String::as_str).chain(token);
        let named = ours.filter(|name| refusal.text.contains(name));
        // The longest: `async_insert` is a part of `wait_for_async_insert`.
        let Some(name) = named.max_by_key(|name| name.len()).map(str::to_owned) else {
            return false;
        };
        warn!(
            setting = name,
            error = refusal.text,
            "ClickHouse refuses a setting; going on without"
        );
        if self.settings.remove(&name).is_none() {
            self.features.dedup_token = false;
        }
        true
    }
}

/// Asks a query and waits for the whole answer.
async fn ask(client: &Client, sql: &str, limit: Duration) -> Result<String, Refusal> {
    let answer = async {
        // Servers of 2018 answer nothing at all when asked to compress.
        let client = client.clone().with_compression(Compression::None);
        client.query_raw(sql).fetch_bytes("TabSeparated")?.collect().await
    };
    let answer = timeout(limit, answer).await.unwrap_or(Err(Error::TimedOut));
    let answer = answer.map_err(|error| match Refusal::from(error) {
        // There were none: whatever it is, no event is to blame.
        Refusal { meaning: Meaning::Rows, text } => Refusal { meaning: Meaning::Later(""), text },
        other => other,
    })?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The first two numbers of `18.16.1` or `24.8.4.13-stable`.
fn version(answer: &str) -> Option<(u32, u32)> {
    let mut numbers = answer.trim().split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("18.16.1\n"), Some((18, 16)));
        assert_eq!(version("24.8.4.13-stable"), Some((24, 8)));
        assert_eq!(version("<html>"), None);
        assert_eq!(version("24"), None);
    }

    #[test]
    fn features_come_with_releases() {
        let old = Features::of((18, 16));
        assert_eq!(old.format(), Format::JsonEachRow);
        assert!(!old.dedup_token && !old.datetime64 && !old.json_type);
        let new = Features::of((26, 9));
        assert_eq!(new.format(), Format::RowBinary);
        assert!(new.dedup_token && new.dedup_window && new.json_type && new.async_insert);
    }

    #[test]
    fn a_setting_that_is_refused_is_left_away() {
        let settings =
            ["async_insert", "wait_for_async_insert"].map(|name| (name.into(), "1".into()));
        let mut server = Server {
            url: Url::try_from("http://127.0.0.1:8123".to_owned()).unwrap(),
            client: Client::default(),
            inserts: Client::default(),
            features: Features::of((26, 9)),
            settings: settings.into(),
            timeout: Duration::from_secs(1),
        };
        let mut refuse = |name: &str| {
            let answer = format!("Code: 115. DB::Exception: Unknown setting {name}");
            server.leave_away(&Refusal::from(Error::BadResponse(answer)))
        };
        assert!(refuse("wait_for_async_insert"));
        assert!(refuse(TOKEN));
        assert!(!refuse(TOKEN));
        assert!(!refuse("of_the_profile"));
        assert_eq!(server.settings.into_keys().collect::<Vec<_>>(), ["async_insert"]);
        assert!(!server.features.dedup_token);
    }
}
