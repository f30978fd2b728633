//! One ClickHouse server: its features, and the requests to it.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::header::{CONTENT_ENCODING, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::warn;

use super::body::Insert;
use super::errors::{Meaning, Refusal};
use super::features::Features;
use super::frame;
use crate::client::http::{self, Client, Request};
use crate::client::servers::Url;
use crate::codec::visible;
use crate::event::batch::BatchId;
use crate::sink::contract::WriteError;

/// The setting by which a server knows an insert again.
const TOKEN: &str = "insert_deduplication_token";

/// The content type of rows.
const BYTES: &str = "application/octet-stream";

/// The compression of rows on their way.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    /// LZ4, in ClickHouse's own framing with checksums.
    #[default]
    Lz4,
    /// gzip, which a proxy in between can read. It costs much more time than LZ4.
    Gzip,
    /// None.
    None,
}

impl Compression {
    /// The rows as they are sent.
    pub(super) fn compress(self, rows: Bytes) -> Bytes {
        match self {
            Compression::Lz4 => frame::lz4(&rows).into(),
            Compression::Gzip => http::gzip(&rows),
            Compression::None => rows,
        }
    }
}

/// A server that has answered, and the database of the sink in it.
pub(super) struct Server {
    /// Its URL.
    url: Url,
    client: Client,
    /// The sink's database, which need not be there yet.
    database: String,
    compression: Compression,
    features: Features,
    /// The settings of each insert, but for the token.
    settings: BTreeMap<String, String>,
}

impl Server {
    /// Asks the server at `url` for its version.
    pub(super) async fn connect(
        url: &Url,
        client: &Client,
        database: &str,
        compression: Compression,
    ) -> Result<Self, WriteError> {
        let doing = || format!("asking ClickHouse at {url} for its version");
        let answer = ask(client, url, "SELECT version()")
            .await
            .map_err(|refusal| refusal.into_sink_error(doing()))?;
        let version = version(&answer).ok_or_else(|| {
            let answer = visible::capped(answer.trim(), 100);
            let cause = format!("`{answer}` is no version: is it ClickHouse's HTTP port?");
            WriteError::retry(doing(), cause)
        })?;
        Ok(Server {
            url: url.clone(),
            client: client.clone(),
            database: database.to_owned(),
            compression,
            features: Features::of(version),
            settings: BTreeMap::new(),
        })
    }

    /// Lets these settings go with each insert. Those that the server does not know are left away.
    pub(super) fn with_settings(
        mut self,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.settings.extend(settings);
        self
    }

    /// The features of the server.
    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// Runs a statement that answers nothing; its tables need their database's name.
    pub(super) async fn execute(&self, sql: &str) -> Result<(), WriteError> {
        self.query(sql).await.map(|_| ())
    }

    /// The answer to a query, rows of tab-separated values; its tables need their database's name.
    pub(super) async fn query(&self, sql: &str) -> Result<String, WriteError> {
        ask(&self.client, &self.url, sql).await.map_err(|refusal| {
            let begin: Vec<_> = sql.split_whitespace().take(6).collect();
            refusal.into_sink_error(format!("running {} … at {}", begin.join(" "), self.url))
        })
    }

    /// Stores the rows of a batch; the server has stored them when this returns. The tables go side
    /// by side, or one after the other up to the first that is refused. The refusal names its
    /// table; others may have stored their rows.
    pub(super) async fn insert(
        &mut self,
        mut inserts: Vec<Insert>,
        batch: BatchId,
        side_by_side: bool,
    ) -> Result<(), (&'static str, Refusal)> {
        let mut side_by_side = side_by_side && inserts.len() > 1;
        loop {
            let sent = match side_by_side {
                true => self.send_side_by_side(&mut inserts, batch).await,
                false => self.send_one_by_one(&mut inserts, batch).await,
            };
            let Err((table, refusal)) = sent else { return Ok(()) };
            match &refusal {
                // One setting less each time.
                Refusal::Exception { meaning: Meaning::Setting, text } if self.leave_away(text) => {
                }
                // It may be that the server does not take so many at a time.
                Refusal::Exception { meaning: Meaning::Later(_), .. } if side_by_side => {
                    side_by_side = false;
                }
                _ => return Err((table, refusal)),
            }
        }
    }

    /// Leaves those that are refused; gives the refusal that decides.
    async fn send_side_by_side(
        &self,
        inserts: &mut Vec<Insert>,
        batch: BatchId,
    ) -> Result<(), (&'static str, Refusal)> {
        // All end before the batch can come again.
        let answers = join_all(inserts.iter().map(|insert| self.send(insert, batch))).await;
        let mut refusals = Vec::new();
        for (insert, answer) in std::mem::take(inserts).into_iter().zip(answers) {
            if let Err(refusal) = answer {
                refusals.push((insert.table, refusal));
                inserts.push(insert);
            }
        }
        let first = refusals.into_iter().min_by_key(|(_, refusal)| refusal.meaning().rank());
        first.map_or(Ok(()), Err)
    }

    /// Leaves the one that is refused and those behind it, which are not sent.
    async fn send_one_by_one(
        &self,
        inserts: &mut Vec<Insert>,
        batch: BatchId,
    ) -> Result<(), (&'static str, Refusal)> {
        while let Some(insert) = inserts.first() {
            self.send(insert, batch).await.map_err(|refusal| (insert.table, refusal))?;
            inserts.remove(0);
        }
        Ok(())
    }

    /// Sends the whole body at once: the server stores all of it or, short of a crash, nothing.
    async fn send(&self, insert: &Insert, batch: BatchId) -> Result<(), Refusal> {
        let Insert { table, columns, format, body } = insert;
        let sql = format!("INSERT INTO {table} ({columns}) FORMAT {}", format.name());
        let request = self.client.post(&self.url).query("database", &self.database);
        let mut request = request.query("query", &sql).body(BYTES, body.clone());
        match self.compression {
            Compression::Lz4 => request = request.query("decompress", "1"),
            Compression::Gzip => {
                request = request.header(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            Compression::None => {}
        }
        for (name, value) in &self.settings {
            request = request.query(name, value);
        }
        if self.features.dedup_token {
            request = request.query(TOKEN, &format!("{batch}-{table}"));
        }
        answer_to(request).await.map(drop)
    }

    /// Does without the setting that the refusal names from now on; `false` if it names none of
    /// ours.
    fn leave_away(&mut self, refusal: &str) -> bool {
        let token = self.features.dedup_token.then_some(TOKEN);
        let ours = self.settings.keys().map(String::as_str).chain(token);
        let named = ours.filter(|name| refusal.contains(name));
        // The longest name is meant: `async_insert` is a part of `wait_for_async_insert`.
        let Some(name) = named.max_by_key(|name| name.len()).map(str::to_owned) else {
            return false;
        };
        warn!(setting = name, error = refusal, "ClickHouse refuses a setting; going on without");
        if self.settings.remove(&name).is_none() {
            self.features.dedup_token = false;
        }
        true
    }
}

/// Asks a query and waits for the whole answer.
async fn ask(client: &Client, url: &Url, sql: &str) -> Result<String, Refusal> {
    let request = client.post(url).query("default_format", "TabSeparated");
    let sql = Bytes::copy_from_slice(sql.as_bytes());
    let answer = answer_to(request.body("text/plain", sql)).await;
    answer.map_err(|refusal| match refusal {
        // There were no rows, so no event is to blame.
        Refusal::Exception { meaning: Meaning::Rows, text } => {
            Refusal::Exception { meaning: Meaning::Later(""), text }
        }
        other => other,
    })
}

async fn answer_to(request: Request<'_>) -> Result<String, Refusal> {
    // A success may have an exception behind it.
    let answer = request.with_whole_answer().send().await?;
    Refusal::of(answer)
}

/// The first two numbers of `18.16.1` or `24.8.4.13-stable`.
fn version(answer: &str) -> Option<(u32, u32)> {
    let mut numbers = answer.trim().split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::auth::Auth;

    #[test]
    fn versions() {
        assert_eq!(version("18.16.1\n"), Some((18, 16)));
        assert_eq!(version("24.8.4.13-stable"), Some((24, 8)));
        assert_eq!(version("<html>"), None);
        assert_eq!(version("24"), None);
    }

    #[test]
    fn a_setting_that_is_refused_is_left_away() {
        let settings =
            ["async_insert", "wait_for_async_insert"].map(|name| (name.into(), "1".into()));
        let mut server = Server {
            url: Url::try_from("http://127.0.0.1:8123".to_owned()).unwrap(),
            client: Client::new(None, &Auth::default(), Duration::from_secs(1)).unwrap(),
            database: "salt".to_owned(),
            compression: Compression::None,
            features: Features::of((26, 9)),
            settings: settings.into(),
        };
        let mut refuse = |name: &str| {
            server.leave_away(&format!("Code: 115. DB::Exception: Unknown setting {name}"))
        };
        assert!(refuse("wait_for_async_insert"));
        assert!(refuse(TOKEN));
        assert!(!refuse(TOKEN));
        assert!(!refuse("of_the_profile"));
        assert_eq!(server.settings.into_keys().collect::<Vec<_>>(), ["async_insert"]);
        assert!(!server.features.dedup_token);
    }
}
