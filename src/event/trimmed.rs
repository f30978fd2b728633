//! Values that the master left out of an event that was over its `max_event_size`.

use memchr::memmem::Finder;

use crate::codec::msgpack::{Item, Walker};

/// The text that Salt puts in place of a value (`salt.utils.dicttrim`).
const TRIMMED: &[u8] = b"VALUE_TRIMMED";

/// The text that is searched for before a payload is walked. It lacks the underscore, which abounds
/// in Salt's states and would stop the search at each.
const HINT: &[u8] = b"TRIMMED";

/// Looks for values that were trimmed.
pub(crate) struct Trimmed(Finder<'static>);

impl Default for Trimmed {
    fn default() -> Self {
        Trimmed(Finder::new(HINT))
    }
}

impl Trimmed {
    /// The number of the payload's values that are the text of a trimmed one.
    pub(crate) fn count(&self, payload: &[u8]) -> u64 {
        if self.0.find(payload).is_none() {
            return 0;
        }
        let mut walker = Walker::new(payload);
        let mut count = 0;
        while let Ok(item) = walker.item() {
            if item.bytes() == Some(TRIMMED) && !matches!(item, Item::Bin(_)) {
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use crate::event::trimmed::*;

    #[test]
    fn trimmed_values_are_counted_where_they_are_whole_values() {
        let data = serde_json::json!({
            "return": "VALUE_TRIMMED",
            "more": ["VALUE_TRIMMED", "not VALUE_TRIMMED at all"],
        });
        assert_eq!(Trimmed::default().count(&rmp_serde::to_vec(&data).unwrap()), 2);
    }
}
