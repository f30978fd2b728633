//! `saltern dead-letters`: the events that sinks have refused.
//!
//! All of it works on the database in the state directory, with or without a daemon. If the daemon
//! that answers has another database, this one is not touched. A replay only marks letters: the
//! daemon looks for them every second and hands them to their sinks.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::daemon::{meant, state_dir_of};
use super::spill::{rfc3339, table};
use crate::cli::output::{Failure, Output, print, print_json};
use crate::cli::runtime::runtime;
use crate::cli::target::{Target, look_into};
use crate::codec::lenient_json;
use crate::codec::visible::{self, Visible};
use crate::delivery::dead_letter::{DeadLetterError, DeadLetters, Letter, LetterSelection};
use crate::error::chain;
use crate::files::state_dir::is_taken;

/// The time that a replay may stand still before the command gives up waiting.
const STANDSTILL: Duration = Duration::from_secs(15);

/// The interval at which the command looks how far a replay is.
const LOOK: Duration = Duration::from_millis(200);

/// The number of letters that are read before they are shown.
const SHOWN_TOGETHER: usize = 100;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List letters, the oldest first.
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// A table, or JSON for machines.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show letters with their events.
    Show {
        #[command(flatten)]
        which: Which,
        /// Lines, or JSON for machines, an object a line.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Hand letters to their sinks once more, as the same events with the same ids.
    Replay {
        #[command(flatten)]
        which: Which,
        /// All of them.
        #[arg(long)]
        all: bool,
        /// Do not wait until the daemon has handed them over.
        #[arg(long)]
        no_wait: bool,
    },
    /// Discard letters.
    Drop {
        #[command(flatten)]
        which: Which,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

/// A selection of letters. A letter has to match everything that is given.
#[derive(Args)]
struct Which {
    /// Letters of this sink.
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Letters of events whose tag matches.
    #[arg(long, value_name = "GLOB")]
    tag: Option<String>,
    /// Letters whose reason contains this.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// The letter of this number, or of the event with this id.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

impl Which {
    fn selection(&self) -> LetterSelection {
        let Which { sink, tag, reason, id } = self;
        let (sink, tag) = (sink.clone(), tag.clone());
        LetterSelection { sink, tag, reason: reason.clone(), id: id.clone() }
    }

    /// The selection; to select everything an option has to say so.
    fn selection_or_all(&self, all: bool, verb: &str) -> Result<LetterSelection, Failure> {
        let Which { sink, tag, reason, id } = self;
        let is_empty = [sink, tag, reason, id].iter().all(|given| given.is_none());
        if is_empty && !all {
            let message = format!("say what to {verb}: --sink, --tag, --reason, --id, or --all");
            return Err(Failure::Usage(message));
        }
        Ok(self.selection())
    }
}

pub(super) fn dead_letters(target: &Target, arguments: &Arguments) -> Result<(), Failure> {
    let target = &meant(target, false)?;
    let state_dir = state_dir_of(target)?;
    if !state_dir.is_dir() {
        let message = format!("{} is no state directory", state_dir.display());
        return Err(Failure::Usage(message));
    }
    look_into(&state_dir, target)?;
    let letters = DeadLetters::existing(&state_dir).map_err(failed)?;
    match &arguments.action {
        Action::List { which, limit, output } => {
            list(&found(letters.as_ref(), &which.selection(), 0, *limit)?, *output)
        }
        Action::Show { which, output } => {
            let (selection, mut after) = (which.selection(), 0);
            loop {
                let page = found(letters.as_ref(), &selection, after, SHOWN_TOGETHER)?;
                let Some(last) = page.last() else { return Ok(()) };
                after = last.id;
                show(&page, *output)?;
            }
        }
        Action::Replay { which, all, no_wait } => {
            let selection = which.selection_or_all(*all, "replay")?;
            replay(letters.as_ref(), &selection, &state_dir, *no_wait)
        }
        Action::Drop { which, all } => {
            let selection = which.selection_or_all(*all, "drop")?;
            let discarded = letters.map_or(Ok(0), |letters| letters.discard(&selection));
            print(&format!("{} discarded\n", counted(discarded.map_err(failed)?)))
        }
    }
}

fn found(
    letters: Option<&DeadLetters>,
    selection: &LetterSelection,
    after: i64,
    limit: usize,
) -> Result<Vec<Letter>, Failure> {
    let listed = letters.map_or(Ok(Vec::new()), |letters| letters.list(selection, after, limit));
    listed.map_err(failed)
}

fn list(letters: &[Letter], output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return print_json(&json!(letters).to_string());
    }
    let heads = ["ID", "TIME", "SINK", "TRIES", "TAG", "REASON", ""];
    let mut rows = vec![heads.map(str::to_owned)];
    for letter in letters {
        rows.push([
            letter.id.to_string(),
            rfc3339(u64::try_from(letter.time).unwrap_or_default()),
            letter.sink.clone(),
            letter.attempts.to_string(),
            letter.tag.clone(),
            letter.reason.clone(),
            if letter.replay { "waits for replay" } else { "" }.to_owned(),
        ]);
    }
    print(&table(&rows))
}

fn show(letters: &[Letter], output: Output) -> Result<(), Failure> {
    let mut text = String::new();
    for letter in letters {
        let event = letter.event();
        let mut scratch = Vec::new();
        let data = event.as_ref().map_or(&b"null"[..], |event| event.json(&mut scratch));
        let data = lenient_json::read(data).map(|(data, _)| data).unwrap_or_default();
        if output == Output::Json {
            let mut shown = json!(letter);
            if let Some(shown) = shown.as_object_mut() {
                shown.insert("data".to_owned(), data);
            }
            text.push_str(&visible::json(&format!("{shown}\n")));
            continue;
        }
        let time = |micros: i64| rfc3339(u64::try_from(micros).unwrap_or_default());
        text.push_str(&format!(
            "letter   {}\nsink     {}\nevent    {}\ntag      {}\nreason   {}\nrefused  {}, after {} tries\n\
             read     {} from {} of {}\ndata     {}\n\n",
            letter.id,
            Visible(&letter.sink),
            letter.event_id,
            Visible(&letter.tag),
            Visible(&letter.reason),
            time(letter.time),
            letter.attempts,
            time(letter.received),
            Visible(&letter.source),
            Visible(&letter.master_id),
            visible::json(&format!("{data:#}")),
        ));
    }
    print(&text)
}

fn replay(
    letters: Option<&DeadLetters>,
    selection: &LetterSelection,
    state_dir: &Path,
    no_wait: bool,
) -> Result<(), Failure> {
    let Some(letters) = letters else { return print("0 letters marked\n") };
    let marked = letters.mark_for_replay(selection).map_err(failed)?;
    print(&format!("{} marked for replay\n", counted(marked)))?;
    if marked == 0 || no_wait {
        return Ok(());
    }
    if !is_taken(state_dir) {
        return print("no daemon runs on this state directory; they are replayed when it starts\n");
    }
    runtime()?.block_on(wait(letters))
}

/// Waits until no letter is marked any more.
async fn wait(letters: &DeadLetters) -> Result<(), Failure> {
    let shows_progress = stderr().is_terminal();
    let marked = || -> Result<u64, Failure> {
        Ok(letters.marked().map_err(failed)?.iter().map(|(_, count)| count).sum())
    };
    let mut left = marked()?;
    let mut since = Instant::now();
    while left > 0 {
        if since.elapsed() > STANDSTILL {
            return Err(Failure::Running(format!(
                "{left} letters still wait: their sink may be full, or not be in the daemon's \
                 configuration; they stay marked"
            )));
        }
        tokio::time::sleep(LOOK).await;
        let now = marked()?;
        if now != left {
            since = Instant::now();
        }
        left = now;
        if shows_progress {
            eprint!("\r{left} left ");
        }
    }
    if shows_progress {
        eprintln!();
    }
    print("handed to their sinks; an event that is refused again becomes a new letter\n")
}

fn counted(count: usize) -> String {
    format!("{count} letter{}", if count == 1 { "" } else { "s" })
}

fn failed(error: DeadLetterError) -> Failure {
    Failure::Running(chain(&error))
}
