//! The features of a ClickHouse server, which decide how rows are sent to it.

/// The features of a server, told from its version.
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

    /// Rows for a server with the others are rows for this one.
    pub(super) fn takes_rows_for(self, others: Features) -> bool {
        let rows = |of: Features| (of.format(), of.datetime64, of.json_type);
        rows(self) == rows(others)
    }

    /// The format of rows: the one in which the server finds mistakes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_with_releases() {
        let old = Features::of((18, 16));
        assert_eq!(old.format(), Format::JsonEachRow);
        assert!(!old.dedup_token && !old.datetime64 && !old.json_type);
        let new = Features::of((26, 9));
        assert_eq!(new.format(), Format::RowBinary);
        assert!(new.dedup_token && new.dedup_window && new.json_type && new.async_insert);
    }
}
