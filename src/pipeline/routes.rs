//! Routes of events to sinks: the filters of all sinks, asked together.
//!
//! Twenty sinks with ten globs each would be twenty searches in every tag. Here the globs of all of
//! them are one automaton, which walks over a tag once and says which globs match. A field of the
//! payload is looked up once an event, however many filters ask for it.

use std::cell::OnceCell;

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchError, MatchKind};
use tracing::warn;

use crate::event::Event;
use crate::event::filter::{Asked, Filter, TagGlob, Tagged};

/// The filters of all sinks.
pub struct Routes {
    tags: Option<Tags>,
    /// The matches of the globs with one tag, for each filter.
    tagged: Vec<Tagged>,
    /// The places of the events that each filter takes.
    picks: Vec<Vec<u32>>,
}

impl Routes {
    /// The routes to these filters, in this order.
    pub fn new<'a>(filters: impl Iterator<Item = &'a Filter> + Clone) -> Self {
        let count = filters.clone().count();
        let tags = Tags::new(filters).unwrap_or_else(|error| {
            warn!(%error, "the globs of the sinks cannot be matched together, which costs time only");
            None
        });
        Routes { tags, tagged: vec![Tagged::default(); count], picks: vec![Vec::new(); count] }
    }

    /// Asks the filters of these routes. Returns for each filter the places of the events that it
    /// takes, ascending. The list of a filter that takes all is empty.
    pub fn picks<'a>(
        &mut self,
        filters: impl Iterator<Item = &'a Filter> + Clone,
        events: &[Event],
    ) -> &[Vec<u32>] {
        self.picks.iter_mut().for_each(Vec::clear);
        if filters.clone().all(Filter::takes_all) {
            return &self.picks;
        }
        for (place, event) in (0_u32..).zip(events) {
            let is_told = match &mut self.tags {
                Some(tags) => tags.tell(event.tag(), &mut self.tagged).is_ok(),
                None => false,
            };
            let looked_up = OnceCell::new();
            let asked = || looked_up.get_or_init(|| Asked::of(event));
            let picks = self.picks.iter_mut().zip(&self.tagged);
            for (filter, (picks, tagged)) in filters.clone().zip(picks) {
                if filter.takes_all() {
                    continue;
                }
                let tagged = if is_told { *tagged } else { filter.tagged(event.tag()) };
                if filter.takes_tagged(event, tagged, asked) {
                    picks.push(place);
                }
            }
        }
        &self.picks
    }
}

/// The tag globs of all filters as one automaton.
struct Tags {
    automaton: DFA,
    states: Cache,
    /// The filter of each glob, and the list of that filter.
    owners: Vec<(usize, TagGlob)>,
}

impl Tags {
    /// `None` if there are no globs.
    fn new<'a>(
        filters: impl Iterator<Item = &'a Filter>,
    ) -> Result<Option<Self>, Box<regex_automata::hybrid::BuildError>> {
        let (mut patterns, mut owners) = (Vec::new(), Vec::new());
        for (place, filter) in filters.enumerate() {
            for (list, pattern) in filter.tag_patterns() {
                patterns.push(pattern);
                owners.push((place, list));
            }
        }
        if patterns.is_empty() {
            return Ok(None);
        }
        let automaton = DFA::builder()
            .configure(DFA::config().match_kind(MatchKind::All).skip_cache_capacity_check(true))
            // Globs match bytes, line feeds among them, as globset has it.
            .syntax(syntax::Config::new().utf8(false).dot_matches_new_line(true))
            .thompson(thompson::Config::new().utf8(false))
            .build_many(&patterns)?;
        let states = automaton.create_cache();
        Ok(Some(Tags { automaton, states, owners }))
    }

    /// Sets the matches of a tag, for each filter.
    fn tell(&mut self, tag: &str, tagged: &mut [Tagged]) -> Result<(), MatchError> {
        tagged.fill(Tagged::default());
        let (automaton, states) = (&self.automaton, &mut self.states);
        let input = Input::new(tag).anchored(Anchored::Yes);
        let gave_up = |at| move |_| MatchError::gave_up(at);
        let mut state = automaton.start_state_forward(states, &input)?;
        for (at, byte) in tag.bytes().enumerate() {
            state = automaton.next_state(states, state, byte).map_err(gave_up(at))?;
            if state.is_dead() {
                return Ok(());
            }
        }
        // A glob matches to the end of the tag or not at all.
        state = automaton.next_eoi_state(states, state).map_err(gave_up(tag.len()))?;
        if !state.is_match() {
            return Ok(());
        }
        for place in 0..automaton.match_len(states, state) {
            let glob = automaton.match_pattern(states, state, place).as_usize();
            let Some((filter, list)) = self.owners.get(glob) else { continue };
            let Some(tagged) = tagged.get_mut(*filter) else { continue };
            match list {
                TagGlob::Take => tagged.take = true,
                TagGlob::LeaveOut => tagged.leave_out = true,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::event::filter::FilterConfig;
    use crate::pipeline::routes::*;

    fn filters() -> impl Strategy<Value = Vec<Filter>> {
        let globs = || prop::collection::vec("[a-c*?/]{0,5}|\\{a,b/\\}\\*|\\[ab\\]\\*|ü\\*", 0..4);
        let filter = (globs(), globs(), prop::option::of(any::<bool>()));
        prop::collection::vec(filter, 1..6).prop_map(|filters| {
            let filter = |(tags, not_tags, success)| {
                let config = FilterConfig { tags, not_tags, success, ..FilterConfig::default() };
                Filter::new(&config).unwrap()
            };
            filters.into_iter().map(filter).collect()
        })
    }

    proptest! {
        #[test]
        fn together_they_say_what_each_says_alone(
            filters in filters(),
            events in prop::collection::vec(("[a-cü/\n]{0,6}", prop::option::of(any::<bool>())), 1..8),
        ) {
            let event = |(tag, success): (String, Option<bool>)| {
                let data = serde_json::json!({"success": success});
                Event::new(&tag, &rmp_serde::to_vec(&data).unwrap())
            };
            let events: Vec<_> = events.into_iter().map(event).collect();
            let mut routes = Routes::new(filters.iter());
            // This runs twice, since nothing may stay of the chunk before.
            for _ in 0..2 {
                let picks = routes.picks(filters.iter(), &events);
                for (filter, picks) in filters.iter().zip(picks) {
                    let taken = (0_u32..).zip(&events).filter(|(_, event)| filter.takes(event));
                    let alone: Vec<_> = match filter.takes_all() {
                        true => Vec::new(),
                        false => taken.map(|(place, _)| place).collect(),
                    };
                    prop_assert_eq!(picks, &alone);
                }
            }
        }
    }
}
