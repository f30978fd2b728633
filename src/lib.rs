//! saltern reads every event off a Salt master's bus and delivers it, in batches, to many stores.
//!
//! Events run one way. A [`source`] reads frames and knows nothing else. The dispatcher
//! ([`dispatch`]) makes [`event`]s of them, hides what is to be hidden ([`redact`]), asks each
//! sink's [`filter`] and shares them out in [`chunk`]s. Each sink has a [`spooler`], a thread that
//! owns the sink's [`queue`] and cuts it into [`batch`]es, and writers that [`delivery`] drives:
//! connect, write, back off ([`backoff`], [`breaker`]), split what is refused. A [`sink`] knows its
//! store and nothing else.
//!
//! [`pipeline`] puts this together from a [`config`] (read by way of [`yaml`] and [`units`]) and
//! changes it while it runs ([`reload`]); [`state`] and [`metrics`] are what can be seen of it,
//! [`estate`] what can be seen of the Salt estate, [`http`] serves them, [`shutdown`] ends it,
//! [`cli`] is the command line, [`log_repeats`] holds log lines back that repeat, [`line`] an event
//! as people and scripts see it, [`demo`] makes up events for trying all this out. Payloads stay
//! msgpack ([`msgpack`]) until a sink asks for [`json`].

// A build without a kind leaves some of what all kinds share unused.
#![cfg_attr(not(feature = "kafka"), allow(dead_code))]

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
