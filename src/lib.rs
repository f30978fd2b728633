//! saltern reads every event off a Salt master's bus and delivers it, in batches, to many stores.
//!
//! Events run one way. A [`source`] reads frames and knows nothing else. The dispatcher
//! ([`dispatch`]) makes [`event`]s of them, hides what is to be hidden ([`redact`]), asks each
//! sink's [`filter`] and shares them out in [`chunk`]s. Each sink has a [`spooler`], a thread that owns the sink's [`queue`] and cuts it into
//! [`batch`]es, and writers that [`delivery`] drives: connect, write, back off ([`backoff`],
//! [`breaker`]), split what is refused. A [`sink`] knows its store and nothing else.
//!
//! [`pipeline`] puts this together from a [`config`] (read by way of [`yaml`] and [`units`]) and
//! changes it while it runs ([`reload`]);
//! [`state`] and [`metrics`] are what can be seen of it, [`estate`] what can be seen of the Salt
//! estate, [`http`] serves them, [`shutdown`] ends
//! it, [`cli`] is the command line, [`fold`] holds log lines back that repeat, [`line`] an event as people and scripts see it, [`demo`] makes
//! up events for trying all this out. Payloads stay msgpack ([`msgpack`]) until a sink asks for
//! [`json`].

pub mod backoff;
pub mod batch;
pub mod breaker;
pub mod chunk;
pub mod cli;
pub mod config;
pub mod dead_letter;
mod deaths;
pub mod dedupe;
pub mod delivery;
pub mod demo;
pub mod dispatch;
pub mod doorbell;
pub mod estate;
pub mod event;
pub mod excerpt;
pub mod filter;
pub mod fold;
mod hex;
pub mod http;
pub mod import_master;
pub mod jobs;
pub mod json;
pub mod kafka_client;
pub mod kafka_loop;
pub mod lenient_json;
pub mod line;
pub mod local_cache;
mod log_line;
mod long_json;
pub mod metrics;
pub mod msgpack;
mod open_queue;
pub mod pipeline;
mod process;
pub mod python;
pub mod queue;
pub mod receipt;
pub mod redact;
mod regular_file;
pub mod reload;
pub mod replay_letters;
pub mod routes;
mod running_sink;
mod running_sources;
pub mod shutdown;
pub mod sink;
mod socket_file;
pub mod source;
pub mod spill;
pub mod spill_desk;
pub mod spooler;
mod standing;
pub mod state;
pub mod state_dir;
mod state_file;
mod supervisor;
pub mod threads;
mod tls;
pub mod trimmed;
pub mod unit_paths;
pub mod units;
mod unopened;
mod unwritable;
pub mod visible;
mod writers;
pub mod yaml;
