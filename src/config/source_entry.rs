//! A source in the configuration.

use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_128;

use super::entry::{kind_of, read_kind, tell_keys_below};
use super::schema_of_type::keys_of;
use crate::source::registry::{self, Reader, SourceKind};
use crate::yaml::{Node, Problem};

/// A source.
pub(crate) struct SourceConfig {
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: &'static SourceKind,
    /// Its kind's own settings, ready to run.
    pub(crate) reader: Arc<dyn Reader>,
    /// The master whose events it reads.
    pub(crate) master_id: String,
    /// Differs from that of another configuration if anything of the source does.
    pub(crate) fingerprint: u128,
    /// A command runs it, which fails where a daemon would try again.
    pub(crate) is_tried_once: bool,
}

/// The settings that every source takes besides its kind.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SourceOptions {
    /// The id of the master whose bus this is. Default: the `master_id` of the whole.
    master_id: Option<String>,
}

/// Tells each source of the buses that are read beside it.
pub(super) fn introduce(sources: &mut [SourceConfig]) {
    let buses: Vec<_> = sources.iter().filter_map(|source| source.reader.bus_socket()).collect();
    for source in sources {
        if let Some(reader) = Arc::get_mut(&mut source.reader)
            && reader.beside(&buses)
        {
            source.fingerprint ^= xxh3_128(format!("{buses:?}").as_bytes());
        }
    }
}

/// The keys that every entry takes besides its kind.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(keys_of::<SourceOptions>);

pub(super) fn source_of(
    name: &str,
    entry: &Node,
    default_master: &str,
    problems: &mut Vec<Problem>,
) -> Option<SourceConfig> {
    let known: Vec<_> = registry::KINDS.iter().map(|kind| kind.name).collect();
    let (kind, node) = kind_of("source", name, entry, &known, &KEYS, problems)?;
    let kind = SourceKind::named(kind)?;
    tell_keys_below(kind.name, entry, kind.schema, problems);
    let reader = read_kind(kind.name, node, &KEYS, problems, kind.read);
    let options = entry.without(|key| key == kind.name || !KEYS.iter().any(|known| known == key));
    let options: Option<SourceOptions> = options.read_noting(problems);
    let master_id = options?.master_id.unwrap_or_else(|| default_master.to_owned());
    // The id may be that of the whole, which the entry does not show.
    let fingerprint = entry.fingerprint() ^ xxh3_128(master_id.as_bytes());
    let (name, reader) = (name.to_owned(), reader?);
    Some(SourceConfig { name, kind, reader, master_id, fingerprint, is_tried_once: false })
}
