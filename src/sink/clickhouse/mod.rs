//! `clickhouse`: events, jobs, returns and states in tables of a ClickHouse database, 18.16 to
//! 26.x, over HTTP. [ClickHouse](../clickhouse.md) has the tables, and queries to ask them.
//!
//! # Example
//!
//! ```yaml
//! sources:
//!   bus: {salt_bus: {}}
//! sinks:
//!   analytics:
//!     clickhouse:
//!       url: [https://ch-1:8443, https://ch-2:8443]
//!       database: salt
//!       user: saltern
//!       password: ${file:/etc/saltern/clickhouse-password}
//!       ttl: 90d
//! ```
//!
//! # Stored
//!
//! A batch is an insert into each table that it has rows for, complete in one request; the requests
//! of a batch, up to four, go side by side, and one after the other after a failure. Database,
//! tables and views are made when missing. From 22.1 on rows go as `RowBinaryWithNamesAndTypes`,
//! which the server compares with its columns, and before as `JSONEachRow`. The sink asks each
//! server for its version and uses what that version can do.
//!
//! # Servers
//!
//! Several servers take turns, batch by batch; one that fails rests for 5 s to 2 min. They may be
//! replicas, or hosts of one cluster. They must not be shards with tables that know nothing of each
//! other: a batch may be stored in part at one server, and is then sent to the next. A setting that
//! a server refuses is left away, with a warning.
//!
//! # Guarantee
//!
//! Every row has its `event_id`; from 22.2 on the server drops a batch that is sent again, before
//! that repeats are merged away. It drops it for as long as its deduplication window reaches (1000
//! inserts a table); the token of each insert is made of the batch's id. Until repeats are merged
//! `FINAL` or `GROUP BY event_id` hides them. A batch that the server refuses for one event is
//! halved, under new ids; rows that other tables have taken of it are there twice until they are
//! merged, and once more for each half that a table behind others refuses. Summaries count them
//! all.
//!
//! # Failures
//!
//! * a value cannot be parsed, a constraint is violated, a view throws (6, 27, 53, 72, 117, 395,
//!   469 …), HTTP 413 → the batch is halved until the bad event is alone → that event is a dead
//!   letter
//! * no such database, table or column (81, 60, 16 …) → tried again, after making what is missing →
//!   with `create: false` the message says how to
//! * too many parts (252), no memory (241), too busy (202), no disk (243), quota (201), timeouts,
//!   network → tried again, at another server if there is one → `saltern_sink_retries_total` rises
//! * read-only, or no rights (164, 242, 497) → the same → the same; the log has the server's words
//! * unknown user, wrong password (192, 193, 194, 516), HTTP 401 → the sink is parked until `user`
//!   and `password` are corrected → `/readyz` says no and names the sink
//! * HTTP 429 or 503 with `Retry-After`, of a proxy → tried again, not before then, an hour at the
//!   most → `saltern_sink_up` is 0
//! * a redirect → not followed; tried again → the message says where it leads
//! * anything else → tried again → the log has the server's words

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use self::body::Insert;
use self::errors::Meaning;
use self::features::Features;
use self::schema::Options;
use self::server::{Compression, Server};
use crate::client::auth::Auth;
use crate::client::http::Client;
use crate::client::servers::{Servers, Site, Url, Urls};
use crate::client::tls::TlsConfig;
use crate::event::batch::{Batch, BatchLimits};
use crate::sink::contract::{
    ConnectError, Context, Defaults, Migrated, Once, Preparer, Sink, TableWish, WriteError,
};
use crate::sink::http;
use crate::sync::blocking;
use crate::units::{ByteSize, Secret, Span};

mod body;
mod errors;
mod features;
mod frame;
mod migration;
mod rows;
mod schema;
mod server;
mod states;
mod tables;

/// A database of ClickHouse 18.16 or later.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schemars(rename = "Config")]
pub(crate) struct Config {
    /// The HTTP interface of a server, or a list of several that take turns. One that fails rests
    /// for a while. Several are replicas of one another, or hosts of one cluster with `Distributed`
    /// tables.
    url: Urls,
    /// The database.
    database: String,
    /// The user; without one the server takes `default`.
    user: Option<String>,
    /// The user's password.
    password: Option<Secret>,
    /// The login, for a proxy or a cloud that does not take `user` and `password`: `{token}`,
    /// `{user, password}` or `{header, value}`. `user` and `password` are then left out.
    #[serde(default)]
    auth: Auth,
    /// With `true` the database, tables and views that are missing are created, and those of an
    /// earlier release are brought up to date.
    #[serde(default = "crate::units::yes")]
    create: bool,
    /// The time for which rows stay, from their time on, in whole days (`90d`). Old rows are
    /// removed a week's worth at a time. For ever if not given. Takes effect where a table is
    /// created.
    #[serde(default, deserialize_with = "whole_days")]
    ttl: Option<Span>,
    /// The cluster, as the servers' configuration names it: creates replicated tables on each of
    /// its hosts, and `Distributed` tables before them.
    cluster: Option<String>,
    /// Compression on the way to the server. Default: `lz4`.
    #[serde(default)]
    compression: Compression,
    /// Let the server gather the rows of several inserts before it stores them (`async_insert`,
    /// from 21.11 on). Each is waited for all the same. For many small batches.
    #[serde(default)]
    async_insert: bool,
    /// The time that a server may take to answer. Should be less than the sink's `retry.timeout`.
    #[serde(default = "default_timeout", deserialize_with = "crate::units::positive")]
    timeout: Span,
    /// TLS, for URLs that begin with `https://`.
    #[serde(default)]
    tls: TlsConfig,
    /// Settings of the server that go with each insert (`max_insert_threads: 2`). One that it does
    /// not know is left away, with a warning. Default: none.
    #[serde(default)]
    settings: BTreeMap<String, Setting>,
}

/// Reads the settings and checks what two of them say together.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Config::deserialize(deserializer)?;
        config.who().map_err(de::Error::custom)?;
        Ok(config)
    }
}

const DAY: u64 = 24 * 3600;

/// Reads the time of whole days, in which ClickHouse counts.
fn whole_days<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    let span = Option::<Span>::deserialize(deserializer)?;
    let is_wrong = |span: Span| {
        span.0.is_zero() || span.0.subsec_nanos() > 0 || !span.0.as_secs().is_multiple_of(DAY)
    };
    match span.is_some_and(is_wrong) {
        true => Err(de::Error::custom("`ttl` is one whole day or several, such as 90d")),
        false => Ok(span),
    }
}

impl Config {
    /// The place of the tables, and the time that rows stay in them.
    fn tables(&self, wish: &TableWish) -> Options {
        Options {
            database: self.database.clone(),
            keep_days: self.ttl.map(|ttl| ttl.0.as_secs() / DAY),
            cluster: wish.cluster.clone().or_else(|| self.cluster.clone()),
        }
    }

    /// Creates the tables and columns that the servers lack; returns the statements, server by
    /// server.
    async fn migrate(&self, tables: &Options) -> Result<Vec<Migrated>, WriteError> {
        let client = self.client()?;
        let mut servers: Servers<Server> = Servers::new(&self.url);
        let mut all = Vec::new();
        for _ in 0..servers.count() {
            let url = &servers.turn().url;
            let server = Server::connect(url, &client, &self.database, self.compression).await?;
            let statements = migration::migrate(&server, tables).await?;
            all.push(Migrated { server: url.to_string(), statements });
        }
        Ok(all)
    }

    /// A client with the login.
    fn client(&self) -> Result<Client, WriteError> {
        let doing = "setting up connections to ClickHouse";
        let auth = self.who().map_err(|error| WriteError::fatal(doing, error))?;
        let tls = self.url.any_https().then_some(&self.tls);
        let client = blocking(|| Client::new(tls, &auth, self.timeout.0));
        client.map_err(|error| WriteError::fatal(doing, error))
    }

    /// The headers of the login.
    fn who(&self) -> Result<Auth, String> {
        let has_user = self.user.is_some() || self.password.is_some();
        if has_user && !self.auth.is_none() {
            return Err("`auth` stands in place of `user` and `password`; remove one".to_owned());
        }
        let mut auth = self.auth.clone();
        if let Some(user) = &self.user {
            auth = auth.with("x-clickhouse-user", &Secret::new(user.clone()))?;
        }
        if let Some(password) = &self.password {
            auth = auth.with("x-clickhouse-key", password)?;
        }
        Ok(auth)
    }
}

fn default_timeout() -> Span {
    Span::seconds(30)
}

/// The value of a server's setting.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Setting {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Anything else.
    Text(String),
}

impl Setting {
    /// The name as it stands in a URL.
    fn text(&self) -> String {
        match self {
            Setting::Bool(value) => u8::from(*value).to_string(),
            Setting::Int(value) => value.to_string(),
            Setting::Float(value) => value.to_string(),
            Setting::Text(value) => value.clone(),
        }
    }
}

/// The release that the SQL is printed for if none is given: the newest that the tests know.
const CURRENT: (u32, u32) = (26, 9);

pub(super) struct ClickHouse {
    config: Config,
    client: Client,
    servers: Servers<Server>,
    /// Events of a batch that failed and that are to come again. They go one table after the other:
    /// a proxy may take fewer requests at a time, and rows that one table refuses are to be stored
    /// by as few others as can be while the batch is halved.
    failed: usize,
}

/// The inserts of a batch, as they are sent.
pub(super) struct Inserts {
    /// The features of the servers that they are for.
    features: Features,
    inserts: Vec<Insert>,
}

impl Inserts {
    fn of(batch: &Batch, features: Features, compression: Compression) -> Self {
        let compressed =
            |insert: Insert| Insert { body: compression.compress(insert.body), ..insert };
        let inserts = rows::encode(batch, &features).into_iter().map(compressed).collect();
        Inserts { features, inserts }
    }
}

/// Makes the bodies of the INSERTs of a batch for a server of this version; returns their length.
pub(super) fn encode(batch: &Batch, version: (u32, u32)) -> usize {
    rows::encode(batch, &Features::of(version)).iter().map(|insert| insert.body.len()).sum()
}

impl Sink for ClickHouse {
    const NAME: &'static str = "clickhouse";
    const ABOUT: &'static str =
        "tables of a ClickHouse database for events, jobs, returns and states";
    const DEFAULTS: Defaults =
        Defaults::store(BatchLimits::new(10_000, ByteSize::mib(8), Span::millis(1000)));
    const ONCE: Once = Once::ByEvent;
    type Config = Config;
    type Prepared = Inserts;

    async fn connect(config: &Config, _context: &Context) -> Result<Self, ConnectError> {
        let client = config.client().map_err(WriteError::while_connecting)?;
        let mut servers = Servers::new(&config.url);
        for left in (0..servers.count()).rev() {
            match ready(servers.turn(), &client, config).await {
                Ok(_) => break,
                Err(ConnectError::Retry { .. }) if left > 0 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ClickHouse { config: config.clone(), client, servers, failed: 0 })
    }

    async fn write(&mut self, batch: &Batch, prepared: Option<Inserts>) -> Result<(), WriteError> {
        let site = self.servers.turn();
        let server = ready(site, &self.client, &self.config).await?;
        let features = server.features();
        let inserts = match prepared {
            Some(inserts) if features.takes_rows_for(inserts.features) => inserts,
            _ => blocking(|| Inserts::of(batch, features, self.config.compression)),
        };
        let stored = server.insert(inserts.inserts, batch.id(), self.failed == 0).await;
        let Err((table, refusal)) = stored else {
            self.failed = self.failed.saturating_sub(batch.len());
            site.worked();
            return Ok(());
        };
        self.failed = match refusal.meaning() {
            // It becomes a dead letter, and does not come again.
            Meaning::Rows if batch.len() == 1 => self.failed.saturating_sub(1),
            _ => self.failed.max(batch.len()),
        };
        match refusal.meaning() {
            // It may come back as another release, or without tables.
            Meaning::Unreachable | Meaning::Schema => site.server = None,
            _ => {}
        }
        if matches!(refusal.meaning(), Meaning::Unreachable | Meaning::Later(_)) {
            site.rest();
        }
        Err(refusal.into_sink_error(format!("inserting into {table} at {}", site.url)))
    }

    fn preparer(&self) -> Option<Preparer<Inserts>> {
        // Another server may get the batch, but servers of one sink are seldom of two releases.
        let features = self.servers.current().server.as_ref()?.features();
        let compression = self.config.compression;
        Some(Box::new(move |batch| Some(Inserts::of(batch, features, compression))))
    }

    fn tables(config: Option<&Config>, wish: &TableWish) -> Option<String> {
        let options = match config {
            Some(config) => config.tables(wish),
            None => {
                Options { database: "salt".into(), keep_days: None, cluster: wish.cluster.clone() }
            }
        };
        let features = Features::of(wish.server_version.unwrap_or(CURRENT));
        Some(schema::script(&features, &options))
    }

    fn check(config: &Config, limit: Duration) -> Vec<String> {
        let unused = config.tls.unused(config.url.any_https());
        unused.into_iter().chain(http::late(config.timeout.0, limit)).collect()
    }

    async fn migrate(
        config: &Config,
        _context: &Context,
        wish: &TableWish,
    ) -> Result<Vec<Migrated>, ConnectError> {
        let migrated = config.migrate(&config.tables(wish)).await;
        migrated.map_err(WriteError::while_connecting)
    }
}

/// The server of a site, with its features known, and with its tables if they are to be created.
async fn ready<'a>(
    site: &'a mut Site<Server>,
    client: &Client,
    config: &Config,
) -> Result<&'a mut Server, ConnectError> {
    let server = match site.server.take() {
        Some(server) => server,
        None => prepared(&site.url, client, config).await.inspect_err(|_| site.rest())?,
    };
    Ok(site.server.insert(server))
}

async fn prepared(url: &Url, client: &Client, config: &Config) -> Result<Server, ConnectError> {
    let server = Server::connect(url, client, &config.database, config.compression)
        .await
        .map_err(WriteError::while_connecting)?;
    if config.create {
        let migrated = migration::migrate(&server, &config.tables(&TableWish::default())).await;
        migrated.map_err(WriteError::while_connecting)?;
    }
    let features = server.features();
    // `Distributed` tables answer when their shards have stored the rows.
    let mut settings = vec![("insert_distributed_sync", "1")];
    settings.extend(rows::settings(&features));
    if features.async_insert {
        // This is sent also when it is off: a release, or the user's profile, may have it on.
        settings.push(("async_insert", if config.async_insert { "1" } else { "0" }));
        settings.push(("wait_for_async_insert", "1"));
    }
    if features.version >= (24, 8) {
        // Views too drop repeats. In earlier releases this drops more than that.
        settings.push(("deduplicate_blocks_in_dependent_materialized_views", "1"));
    }
    if features.dedup_token && config.async_insert {
        settings.push(("async_insert_deduplicate", "1"));
    }
    let ours = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let theirs = config.settings.iter().map(|(name, value)| (name.clone(), value.text()));
    Ok(server.with_settings(ours.chain(theirs)))
}
