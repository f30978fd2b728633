//! The SQL that makes the tables of [`super::tables`], for a server of any release and for a
//! cluster.
//!
//! Features that a server does not know yet are left out: [`notes`] names them. On a cluster the
//! rows are in replicated tables `…_local`, and a `Distributed` table of the plain name spreads and
//! gathers them.

use super::features::Features;
use super::tables::{Column, Holds, SUMMARIES, Summary, TABLES, Table, VERSION};

/// The place of the tables, and the time that rows stay.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The database.
    pub(crate) database: String,
    /// Days that rows stay, from their time on; `None` is for ever. Takes effect where a table is
    /// made.
    pub(crate) keep_days: Option<u64>,
    /// The cluster, as the servers' configuration names it.
    pub(crate) cluster: Option<String>,
}

/// The object that a [`Statement`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Makes {
    Database,
    /// A table or view of this name, with this ending.
    Table(&'static str, &'static str),
    /// A column of the table of this name, with this ending.
    Column(&'static str, &'static str, &'static str),
}

/// One statement. It does no harm if its object is there already, unless that is a column.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) makes: Makes,
    pub(super) sql: String,
}

/// The table with the version of the others.
pub(super) const VERSIONS: &str = "salt_schema";

/// The ending of the tables that hold rows on a cluster, and of the views that fill summaries.
const LOCAL: &str = "_local";
const VIEW: &str = "_mv";

/// Everything as one script, in the order in which it can be run. It does no harm a second time. It
/// brings tables of an earlier version up to date if the server knows `ADD COLUMN IF NOT EXISTS`.
pub(super) fn script(features: &Features, options: &Options) -> String {
    let mut script = String::new();
    for note in notes(features) {
        script += &format!("-- {note}\n");
    }
    for Statement { makes, sql } in statements(features, options) {
        match makes {
            Makes::Column(..) if features.version < (20, 1) => {}
            Makes::Column(..) => {
                script += &sql.replacen("ADD COLUMN", "ADD COLUMN IF NOT EXISTS", 1);
                script += ";\n\n";
            }
            _ => script += &(sql + ";\n\n"),
        }
    }
    script + &record(options) + ";\n"
}

/// The features that the tables go without on such a server.
fn notes(features: &Features) -> Vec<&'static str> {
    let (old, version) = (features.version < (20, 1), features.version);
    let notes = [
        (version < (19, 1), "no LowCardinality before 19.1: such columns are of the type String"),
        (
            !features.datetime64,
            "no DateTime64 before 20.1: times are to the second, and time_us has the rest",
        ),
        (!features.json_type, "no type JSON before 25.3: payload is of the type String"),
        (old, "no TTL, CODEC and INDEX before 20.1: drop old partitions yourself"),
        (old, "no ADD COLUMN IF NOT EXISTS before 20.1: tables of an earlier version need --apply"),
        (
            !features.dedup_window,
            "no deduplication window before 21.3: a batch that is sent again counts twice in the summaries",
        ),
    ];
    notes.into_iter().filter_map(|(is_so, note)| is_so.then_some(note)).collect()
}

/// Every statement, in the order in which they can be run.
pub(super) fn statements(features: &Features, options: &Options) -> Vec<Statement> {
    let sql = format!("CREATE DATABASE IF NOT EXISTS {}{}", quoted(&options.database), on(options));
    let mut all = vec![Statement { makes: Makes::Database, sql }];
    for table in TABLES {
        all.extend(of_table(table, features, options));
    }
    for summary in &SUMMARIES {
        all.extend(of_summary(summary, features, options));
    }
    // This comes last: it says that the others are there.
    let columns = "    version UInt32 COMMENT 'version of the tables',\n    \
                   applied DateTime('UTC') DEFAULT now() COMMENT 'since when'";
    let comment = "versions of the tables that begin with salt_";
    let tail = " ORDER BY version";
    all.push(holding(VERSIONS, columns, "ReplacingMergeTree()", tail, comment, features, options));
    all.extend(spread(VERSIONS, "version", options));
    all
}

/// Notes that the tables are of this version.
pub(super) fn record(options: &Options) -> String {
    format!("INSERT INTO {} (version) VALUES ({VERSION})", name(options, VERSIONS, ""))
}

/// A table's name with its database.
pub(super) fn name(options: &Options, table: &str, ending: &str) -> String {
    format!("{}.{}", quoted(&options.database), quoted(&format!("{table}{ending}")))
}

fn of_table(table: &'static Table, features: &Features, options: &Options) -> Vec<Statement> {
    let mut lines: Vec<_> = table
        .columns_in(features)
        .map(|(column, kind)| format!("    {}", declared(column, kind, features)))
        .collect();
    let has_indexes = features.version >= (20, 1);
    lines.extend(table.sought.iter().filter(|_| has_indexes).map(|column| {
        format!("    INDEX by_{column} {column} TYPE bloom_filter(0.01) GRANULARITY 4")
    }));
    let mut tail = format!(" PARTITION BY {} ORDER BY ({})", table.partition, table.order);
    let mut settings = Vec::new();
    if let Some(days) = options.keep_days.filter(|_| features.version >= (20, 1)) {
        tail += &format!(" TTL toDateTime(time) + toIntervalDay({days})");
        settings.push("ttl_only_drop_parts = 1");
    }
    if features.dedup_window && options.cluster.is_none() {
        settings.push("non_replicated_deduplication_window = 1000");
    }
    if !settings.is_empty() {
        tail += &format!(" SETTINGS {}", settings.join(", "));
    }
    let (columns, comment) = (lines.join(",\n"), table.comment);
    let engine = "ReplacingMergeTree()";
    let mut all = vec![holding(table.name, &columns, engine, &tail, comment, features, options)];
    let later = || table.columns_in(features).filter(|(column, _)| column.since > 1);
    for (column, kind) in later() {
        let mut declared = declared(column, kind, features);
        if features.version < (20, 1) {
            // Servers of 2018 forget the comment of a column that is added.
            declared += &format!(", COMMENT COLUMN {} {}", column.name, text(column.comment));
        }
        all.push(added(table.name, ending(options), column, &declared, options));
    }
    if let Some(spread) = spread(table.name, table.shard, options) {
        all.push(spread);
        for (column, kind) in later() {
            let declared = format!("{} {kind} COMMENT {}", column.name, text(column.comment));
            all.push(added(table.name, "", column, &declared, options));
        }
    }
    all
}

fn of_summary(summary: &'static Summary, features: &Features, options: &Options) -> Vec<Statement> {
    let kinds = |key: &&str| {
        let column = summary.of.columns_in(features).find(|(column, _)| column.name == *key);
        column.map(|(column, kind)| format!("    {key} {kind} COMMENT {}", text(column.comment)))
    };
    let minute = "    minute DateTime('UTC') COMMENT 'the minute, by its first second'".to_owned();
    let sums = summary
        .sums
        .iter()
        .map(|[name, kind, _, comment]| format!("    {name} {kind} COMMENT {}", text(comment)));
    let columns: Vec<_> =
        [minute].into_iter().chain(summary.keys.iter().filter_map(kinds)).chain(sums).collect();
    let keys = summary.keys.join(", ");
    let mut tail = format!(" PARTITION BY toYYYYMM(minute) ORDER BY (minute, {keys})");
    if features.dedup_window && options.cluster.is_none() {
        tail += " SETTINGS non_replicated_deduplication_window = 1000";
    }
    let (columns, comment) = (columns.join(",\n"), summary.comment);
    let mut all =
        vec![holding(summary.name, &columns, summary.engine, &tail, comment, features, options)];
    all.extend(spread(summary.name, &format!("cityHash64({keys})"), options));
    let ending = ending(options);
    let sums: Vec<_> =
        summary.sums.iter().map(|[name, _, sum, _]| format!("{sum} AS {name}")).collect();
    all.push(Statement {
        makes: Makes::Table(summary.name, VIEW),
        sql: format!(
            "CREATE MATERIALIZED VIEW IF NOT EXISTS {}{} TO {} AS\n\
             SELECT toStartOfMinute(time) AS minute, {keys}, {}\n\
             FROM {}{} GROUP BY minute, {keys}",
            name(options, summary.name, VIEW),
            on(options),
            name(options, summary.name, ending),
            sums.join(", "),
            name(options, summary.of.name, ending),
            summary.filter,
        ),
    });
    all
}

/// A table that holds rows.
fn holding(
    table: &'static str,
    columns: &str,
    engine: &str,
    tail: &str,
    comment: &str,
    features: &Features,
    options: &Options,
) -> Statement {
    let ending = ending(options);
    let engine = match (&options.cluster, engine.split_once('(')) {
        (Some(_), Some((engine, arguments))) => {
            let comma = if arguments == ")" { "" } else { ", " };
            let path = format!("/clickhouse/tables/{{shard}}/{}/{table}", options.database);
            format!("Replicated{engine}({}, '{{replica}}'{comma}{arguments}", text(&path))
        }
        _ => engine.to_owned(),
    };
    let comment = match features.version >= (21, 11) {
        true => format!(" COMMENT {}", text(comment)),
        false => String::new(),
    };
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {}{} (\n{columns}\n) ENGINE = {engine}{tail}{comment}",
        name(options, table, ending),
        on(options),
    );
    Statement { makes: Makes::Table(table, ending), sql }
}

/// The table that spreads rows over a cluster and gathers them.
fn spread(table: &'static str, shard: &str, options: &Options) -> Option<Statement> {
    let cluster = text(options.cluster.as_deref()?);
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {}{} AS {}\nENGINE = Distributed({cluster}, {}, {}, {shard})",
        name(options, table, ""),
        on(options),
        name(options, table, LOCAL),
        text(&options.database),
        text(&format!("{table}{LOCAL}")),
    );
    Some(Statement { makes: Makes::Table(table, ""), sql })
}

/// A column that a later version brought.
fn added(
    table: &'static str,
    ending: &'static str,
    column: &'static Column,
    declared: &str,
    options: &Options,
) -> Statement {
    let table_name = name(options, table, ending);
    let sql = format!("ALTER TABLE {table_name}{} ADD COLUMN {declared}", on(options));
    Statement { makes: Makes::Column(table, ending, column.name), sql }
}

/// A column as CREATE and ALTER have it.
fn declared(column: &Column, kind: &str, features: &Features) -> String {
    let mut declared = format!("{} {kind} COMMENT {}", column.name, text(column.comment));
    if features.version >= (20, 1) {
        declared += match column.holds {
            Holds::Time => " CODEC(DoubleDelta, ZSTD(1))",
            Holds::Json | Holds::Text => " CODEC(ZSTD(3))",
            _ => " CODEC(ZSTD(1))",
        };
    }
    declared
}

fn ending(options: &Options) -> &'static str {
    if options.cluster.is_some() { LOCAL } else { "" }
}

fn on(options: &Options) -> String {
    options
        .cluster
        .as_ref()
        .map_or(String::new(), |cluster| format!(" ON CLUSTER {}", quoted(cluster)))
}

/// A name of any characters, quoted.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A text of any characters, quoted.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { database: "salt".into(), keep_days: Some(90), cluster: None }
    }

    #[test]
    fn a_second_run_of_the_script_does_no_harm() {
        for version in [(18, 16), (22, 8), (26, 9)] {
            for cluster in [None, Some("main".to_owned())] {
                let script = script(&Features::of(version), &Options { cluster, ..options() });
                for line in script.lines() {
                    let makes = line.starts_with("CREATE ") || line.starts_with("ALTER ");
                    assert!(!makes || line.contains(" IF NOT EXISTS "), "{line}");
                }
            }
        }
    }

    #[test]
    fn names_and_texts_are_quoted() {
        let options =
            Options { database: r"a`b\'c".into(), cluster: Some("x`; DROP".into()), ..options() };
        let script = script(&Features::of((26, 9)), &options);
        assert!(
            script.contains(r"CREATE DATABASE IF NOT EXISTS `a\`b\\'c` ON CLUSTER `x\`; DROP`;")
        );
        assert!(script.contains(r"Distributed('x`; DROP', 'a`b\\\'c', 'salt_jobs_local', "));
    }

    #[test]
    fn what_is_left_out_is_said() {
        let old = script(&Features::of((18, 16)), &options());
        assert!(old.starts_with("-- no LowCardinality before 19.1"), "{old}");
        for word in
            ["LowCardinality(", "DateTime64(", "JSON(", "TTL ", "CODEC(", "INDEX ", "ALTER "]
        {
            let sql = old.lines().filter(|line| !line.starts_with("--"));
            assert_eq!(sql.filter(|line| line.contains(word)).count(), 0, "{word}");
        }
        let new = script(&Features::of((26, 9)), &options());
        assert!(new.starts_with("CREATE DATABASE"), "{new}");
        assert!(new.contains(" TTL toDateTime(time) + toIntervalDay(90) SETTINGS"), "{new}");
        let forever = Options { keep_days: None, ..options() };
        assert!(!script(&Features::of((26, 9)), &forever).contains("TTL"));
    }
}
