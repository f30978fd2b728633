//! Streams of events at a server: one program writes them and another reads them.

/// A stream of events at a server: a topic, a queue, a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    /// The server, as the configuration has it.
    pub(crate) server: String,
    /// The stream, with the word for it: `` the topic `salt.events` ``.
    pub(crate) name: String,
    /// The keys in the kind's settings that lead to the name.
    pub(crate) keys: Vec<String>,
}
