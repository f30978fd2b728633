//! saltern reads every event off a Salt master's bus and delivers it, in batches, to many stores.
//!
//! Events run one way. A [`source`] reads frames and knows nothing else. The dispatcher
//! ([`pipeline::dispatch`]) makes [`event`]s of them, hides what the rules name
//! ([`event::redact`]), asks each sink's [filter](event::filter), and shares the events out in
//! [chunks](event::chunk). Each sink has a spooler, a thread that owns the sink's [`queue`] and
//! cuts it into [batches](event::batch). Its writers are driven by [`delivery`]: connect, write,
//! back off, split refused batches. A [`sink`] knows its store and nothing else.
//!
//! [`pipeline`] puts this together from a [`config`], which is [`yaml`] with [`units`], and changes
//! it while it runs. [`observe`] has the state of the daemon, [`estate`] the metrics of the Salt
//! estate, and [`jobs`] the job cache; [`http`] serves all three. [`cli`] is the command line,
//! [`import_master`] reads a master's configuration, and [`demo`] makes up events for trying all
//! this out. Payloads stay msgpack ([`codec::msgpack`]) until a sink asks for JSON
//! ([`codec::json`]). `ARCHITECTURE.md` draws the rooms and their uses.

pub mod cli;
pub(crate) mod client;
pub mod codec;
pub mod config;
pub mod delivery;
pub mod demo;
pub(crate) mod error;
pub mod estate;
pub mod event;
pub mod files;
pub mod http;
pub mod import_master;
pub mod jobs;
pub mod observe;
pub mod pipeline;
pub mod queue;
pub mod sink;
pub mod source;
pub mod sync;
pub mod units;
pub mod yaml;
