//! The tables and their columns, which [`super::schema`] makes and [`super::rows`] fills.
//!
//! A column names the values that it holds; their type depends on the server's features. Columns
//! are only ever added, so that an older saltern goes on writing into newer tables.

use super::features::Features;

/// The version of the tables below.
pub(super) const VERSION: u32 = 3;

/// A table that events are written to.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) comment: &'static str,
    pub(super) columns: &'static [Column],
    /// The key that rows are sorted by. Only repeats share its end, and these vanish.
    pub(super) order: &'static str,
    /// The expression that a partition is for.
    pub(super) partition: &'static str,
    /// Columns with an index that skips blocks without a value.
    pub(super) sought: &'static [&'static str],
    /// The expression by which a cluster distributes the rows.
    pub(super) shard: &'static str,
}

/// A column of a [`Table`].
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) holds: Holds,
    pub(super) comment: &'static str,
    /// The version of the tables that brought the column.
    pub(super) since: u32,
}

/// The content of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// A time; to the second where the server knows no better.
    Time,
    /// The microseconds that [`Holds::Time`] lacks there. There is no column if it lacks none.
    Micros,
    /// Text of which there are few.
    Symbol,
    /// Any text; empty if there is none.
    Text,
    /// The 32 hexadecimal digits of an event's id.
    Id,
    /// 0 or 1.
    Flag,
    /// 0, 1, or NULL.
    MaybeFlag,
    /// A number or NULL.
    MaybeInt,
    /// A number or NULL.
    MaybeFloat,
    /// A number.
    Count,
    /// JSON, which the server takes apart if it can.
    Json,
    /// A list of texts.
    Texts,
}

impl Holds {
    /// The type of such a column; `None` where there is no such column.
    pub(super) fn type_in(self, features: &Features) -> Option<&'static str> {
        Some(match self {
            Holds::Time if features.datetime64 => "DateTime64(6, 'UTC')",
            Holds::Time => "DateTime('UTC')",
            Holds::Micros if features.datetime64 => return None,
            Holds::Micros | Holds::Count => "UInt32",
            Holds::Symbol if features.version >= (19, 1) => "LowCardinality(String)",
            Holds::Json if features.json_type => "JSON(max_dynamic_paths=128)",
            Holds::Symbol | Holds::Text | Holds::Json => "String",
            Holds::Id => "FixedString(32)",
            Holds::Flag => "UInt8",
            Holds::MaybeFlag => "Nullable(UInt8)",
            Holds::MaybeInt => "Nullable(Int64)",
            Holds::MaybeFloat => "Nullable(Float64)",
            Holds::Texts => "Array(String)",
        })
    }
}

impl Table {
    /// The columns that the table has on such a server, with their types.
    pub(super) fn columns_in(
        &self,
        features: &Features,
    ) -> impl Iterator<Item = (&'static Column, &'static str)> {
        self.columns.iter().filter_map(|column| Some((column, column.holds.type_in(features)?)))
    }
}

/// Every table that events are written to.
pub(super) static TABLES: [&Table; 4] = [&EVENTS, &JOBS, &RETURNS, &STATES];

const fn column(name: &'static str, holds: Holds, comment: &'static str) -> Column {
    Column { name, holds, comment, since: 1 }
}

const TIME: Column =
    column("time", Holds::Time, "when the master put the event on its bus, else when it was read");
const MICROS: Column = column("time_us", Holds::Micros, "the microseconds of time");
const RECEIVED: Column = column("received", Holds::Time, "when saltern read the event");
const MASTER: Column = column("master", Holds::Symbol, "id of the master whose bus it came from");
const SOURCE: Column =
    column("source", Holds::Symbol, "name of the source in the configuration of saltern");
const JID: Column = column("jid", Holds::Text, "job id");
const MINION: Column = column("minion", Holds::Text, "minion id");
const FUNCTION: Column =
    column("function", Holds::Symbol, "execution or runner function; a list as JSON");
const USER: Column = column("user", Holds::Symbol, "who published the job");
const SUCCESS: Column = column(
    "success",
    Holds::MaybeFlag,
    "what the event says itself; of keys and logins its result",
);
const RETCODE: Column = column("retcode", Holds::MaybeInt, "return code");
const FAILED: Column = column(
    "failed",
    Holds::Flag,
    "1 if outcome is failed; of keys and logins 1 if their result is false",
);
const OUTCOME: Column = Column {
    since: 3,
    ..column(
        "outcome",
        Holds::Symbol,
        "worked, failed or unknown, by return code, success and states",
    )
};
const FUNCTIONS: Column = Column {
    since: 3,
    ..column("functions", Holds::Texts, "the function, or each of a job of several")
};
const EVENT_ID: Column =
    column("event_id", Holds::Id, "hash of tag and payload, the same in every store");

/// The sums of a [`Table`]'s rows, minute by minute. A view fills it with each insert.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) name: &'static str,
    pub(super) comment: &'static str,
    /// The table that it sums up.
    pub(super) of: &'static Table,
    /// The engine that adds rows of the same key up, without its prefix on a cluster.
    pub(super) engine: &'static str,
    /// Columns that tell rows apart, besides `minute`.
    pub(super) keys: &'static [&'static str],
    /// Name, type, expression and comment of each sum.
    pub(super) sums: &'static [[&'static str; 4]],
    /// The rows that count.
    pub(super) filter: &'static str,
}

/// Every summary. All came with version 2.
pub(super) static SUMMARIES: [Summary; 3] = [
    Summary {
        name: "salt_rates",
        comment: "events by minute, master and kind",
        of: &EVENTS,
        engine: "SummingMergeTree((events, failures))",
        keys: &["master", "kind"],
        sums: &[
            ["events", "UInt64", "count()", "events"],
            ["failures", "UInt64", "sum(failed)", "events that failed"],
        ],
        filter: "",
    },
    Summary {
        name: "salt_failures",
        comment: "returns by minute, master and function",
        of: &RETURNS,
        engine: "SummingMergeTree((returns, failures))",
        keys: &["master", "function"],
        sums: &[
            ["returns", "UInt64", "count()", "returns"],
            ["failures", "UInt64", "sum(failed)", "returns that failed"],
        ],
        filter: "",
    },
    Summary {
        name: "salt_durations",
        comment: "states that say how long they took, by minute, master, sls and state function",
        of: &STATES,
        engine: "AggregatingMergeTree()",
        keys: &["master", "sls", "state"],
        sums: &[
            ["runs", "AggregateFunction(count)", "countState()", "states; read with countMerge"],
            [
                "failures",
                "AggregateFunction(sum, UInt8)",
                "sumState(toUInt8(ifNull(result = 0, 0)))",
                "states that failed; read with sumMerge",
            ],
            [
                "durations",
                "AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Float64)",
                "quantilesTDigestState(0.5, 0.95, 0.99)(assumeNotNull(duration))",
                "milliseconds; read with quantilesTDigestMerge(0.5, 0.95, 0.99)",
            ],
        ],
        filter: " WHERE duration IS NOT NULL",
    },
];

/// A row for each event.
pub(super) static EVENTS: Table = Table {
    name: "salt_events",
    comment: "every event of the bus",
    columns: &[
        TIME,
        MICROS,
        RECEIVED,
        MASTER,
        SOURCE,
        column("tag", Holds::Text, "the event's tag"),
        column("kind", Holds::Symbol, "what the tag says the event is: job_return, auth, …"),
        JID,
        MINION,
        FUNCTION,
        SUCCESS,
        RETCODE,
        FAILED,
        column("duration", Holds::MaybeFloat, "milliseconds; of a highstate the sum of its states"),
        column("payload", Holds::Json, "the event's data"),
        EVENT_ID,
        Column { since: 2, ..USER },
        Column {
            since: 2,
            ..column("act", Holds::Symbol, "what became of a key: accept, pend, reject, delete, …")
        },
        OUTCOME,
    ],
    order: "kind, time, event_id",
    partition: "toMonday(time)",
    sought: &["minion", "jid", "event_id"],
    shard: "cityHash64(event_id)",
};

/// A row for each time that a job was published; a batch publishes one job several times.
pub(super) static JOBS: Table = Table {
    name: "salt_jobs",
    comment: "published jobs",
    columns: &[
        TIME,
        MICROS,
        RECEIVED,
        MASTER,
        SOURCE,
        JID,
        USER,
        FUNCTION,
        column("arguments", Holds::Text, "arguments as JSON"),
        column("target", Holds::Text, "whom the job was for; a list as JSON"),
        column("target_type", Holds::Symbol, "how to read the target: glob, list, compound, …"),
        column("minions", Holds::Texts, "minions that are expected to return"),
        column("missing", Holds::Texts, "minions of the target that are not connected"),
        EVENT_ID,
        FUNCTIONS,
    ],
    order: "jid, event_id",
    partition: "toYYYYMM(time)",
    sought: &[],
    shard: "cityHash64(jid)",
};

/// A row for each return of a minion.
pub(super) static RETURNS: Table = Table {
    name: "salt_returns",
    comment: "what minions returned",
    columns: &[
        TIME,
        MICROS,
        RECEIVED,
        MASTER,
        SOURCE,
        JID,
        MINION,
        FUNCTION,
        column("arguments", Holds::Text, "arguments as JSON"),
        USER,
        column("schedule", Holds::Symbol, "name of the minion's schedule that ran the function"),
        SUCCESS,
        RETCODE,
        FAILED,
        column("duration", Holds::MaybeFloat, "milliseconds of all states; NULL without states"),
        column("states", Holds::Count, "how many states the return lists"),
        column("return", Holds::Text, "the return value as JSON"),
        EVENT_ID,
        OUTCOME,
        FUNCTIONS,
    ],
    order: "jid, minion, event_id",
    partition: "toMonday(time)",
    sought: &["minion"],
    shard: "cityHash64(jid)",
};

/// A row for each state that a return lists.
pub(super) static STATES: Table = Table {
    name: "salt_states",
    comment: "the states of highstates, of single states, and of orchestrations",
    columns: &[
        TIME,
        MICROS,
        RECEIVED,
        MASTER,
        SOURCE,
        JID,
        column("minion", Holds::Text, "minion id; of an orchestration the master"),
        FUNCTION,
        column("position", Holds::Count, "place of the state in the return, from 0"),
        column("run", Holds::Count, "place in the order in which states ran, from 0"),
        column("id", Holds::Text, "id of the state in its sls"),
        column("sls", Holds::Symbol, "the file that declares the state"),
        column("state", Holds::Symbol, "state function: file.managed, pkg.installed, …"),
        column("name", Holds::Text, "the state's name"),
        column("result", Holds::MaybeFlag, "1 good, 0 failed, NULL would change (test=True)"),
        column("changed", Holds::Flag, "1 if it changed something"),
        column("duration", Holds::MaybeFloat, "milliseconds"),
        column("comment", Holds::Text, "what the state says of itself"),
        column("changes", Holds::Text, "the changes as JSON; empty if there are none"),
        EVENT_ID,
    ],
    order: "minion, time, event_id, position",
    partition: "toMonday(time)",
    sought: &["jid"],
    shard: "cityHash64(minion)",
};
