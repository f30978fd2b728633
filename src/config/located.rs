//! The part of a configuration that leads to its daemon, for commands that need no more.
//!
//! It also serves users who may not read a secret beside it, and commands while there is a mistake
//! elsewhere in the file. A mistake in the place itself ends them: they would ask another daemon.

use std::path::Path;

use super::{Config, ConfigError, General, read_text};
use crate::yaml::{Node, Problem};

/// The settings that lead to the daemon of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Located {
    /// `state_dir` and `http` alone where the file has mistakes. A secret that cannot be read is
    /// left out.
    pub(crate) general: General,
    /// The reason for which `http.token` is not known, if it is in the file.
    pub(crate) unread_token: Option<String>,
}

impl Located {
    /// Reads it from the file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        match Config::parse(&text) {
            Ok(config) => Ok(Located { general: config.general, unread_token: None }),
            Err(problems) => Located::of(&text)
                .ok_or_else(|| ConfigError::wrong(path, &text, problems, Vec::new())),
        }
    }

    /// The same of a text with mistakes; `None` if they may be about where the daemon is.
    fn of(text: &str) -> Option<Self> {
        let root = Node::parse(text).ok()?.without(|key| key != "state_dir" && key != "http");
        let mut root = root.with_none_said(&super::NULL_IN_GENERAL);
        let mut problems = Vec::new();
        root.interpolate(&mut problems);
        let written = PLACES.map(|place| holds(&root, place));
        let token = root.place_of(&["http", "token"]);
        let is_of_token = |problem: &&Problem| problem.place == Some(token);
        let unread_token = problems.iter().find(is_of_token).map(|p| p.message.clone());
        for place in problems.into_iter().filter_map(|problem| problem.place) {
            root.leave_out(place);
        }
        let general = root.read_rest()?;
        let is_whole = PLACES.map(|place| holds(&root, place)) == written;
        is_whole.then_some(Located { general, unread_token })
    }
}

/// The settings that say where the daemon is.
const PLACES: [&[&str]; 5] = [
    &["state_dir"],
    &["http"],
    &["http", "listen"],
    &["http", "socket"],
    &["http", "socket", "path"],
];

fn holds(node: &Node, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    let pairs = node.pairs().unwrap_or_default();
    pairs.iter().any(|(key, inner)| key.name == *first && holds(inner, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_without_an_address_has_its_socket() {
        let located = Located::of("http: null\nmemory: much\n").unwrap();
        assert_eq!(located.general.http.listen, None);
        assert!(located.general.http.socket.is_some());
    }

    #[test]
    fn mistakes_elsewhere_and_secrets_that_cannot_be_read_hide_no_daemon() {
        let located = Located::of(
            "state_dir: /srv/saltern\n\
             http: {listen: 127.0.0.1:4600, token: '${file:/nowhere/token}', read_token: r, x: 1}\n\
             sinks: {out: {no_such_kind: {}}}\n\
             memory: much\n",
        );
        let Located { general, unread_token } = located.unwrap();
        assert_eq!(general.state_dir, Path::new("/srv/saltern"));
        assert_eq!(general.http.listen, "127.0.0.1:4600".parse().ok());
        assert!(general.http.token.is_none() && general.http.read_token.is_some());
        assert!(unread_token.unwrap().contains("cannot read /nowhere/token"));
    }

    #[test]
    fn a_mistake_in_the_place_leads_to_no_other_daemon() {
        for text in [
            "state_dir: ${NO_SUCH_VARIABLE_OF_OURS}",
            "state_dir: [1]",
            "http: {socket: {path: '${file:/nowhere/path}'}}",
            "http: {socket: {path: [1]}}",
            "http: {listen: nowhere}",
            "http: 5",
            "{",
        ] {
            assert!(Located::of(text).is_none(), "{text}");
        }
    }
}
