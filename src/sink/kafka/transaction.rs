//! A transaction a batch, and the marks that recognise batches that were committed before.
//!
//! The last committed batches are noted as the metadata of an offset. It is committed in the same
//! transaction, for a group that nobody reads with. After `kill -9`, for example, nobody knows if
//! the last batch was committed, so it comes again and is found there. There may be several such
//! batches: the next is begun before it is known on disk that the one before was stored. A mark
//! holds the batch's id and the places of the events that were refused: those were left out, and
//! may not be dead letters yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::outcome::{Outcome, sink_error};
use super::reports::Reports;
use super::unbounded_call::UnboundedCall;
use crate::client::kafka::ANSWER;
use crate::event::batch::BatchId;
use crate::observe::metrics::{self, Tally};
use crate::sink::contract::{Context, WriteError};
use crate::sync::blocking;

/// The time to block for an answer of the transaction's coordinator before the engine may stop us.
const SLICE: Duration = Duration::from_millis(500);

/// The time to block for a note. librdkafka begins it anew each time. Brokers that look for a new
/// coordinator need a second or two.
const NOTE: Duration = Duration::from_secs(5);

/// The time to ask in all, before a new producer finds out the fate of the transaction.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The time to wait before a question is asked again that the coordinator could not answer yet.
const AGAIN: Duration = Duration::from_millis(20);

/// Batches that are noted: more than can be begun and not yet known to be stored.
const MARKS: usize = 16;

/// Bytes that brokers keep as the metadata of an offset (`offset.metadata.max.bytes`).
const LONGEST_NOTE: usize = 4096;

/// The transactions of one writer.
pub(super) struct Transactions {
    group: Arc<ConsumerGroupMetadata>,
    notes: Notes,
    /// Noting marks, which may not return.
    noting: UnboundedCall,
    /// The marks that were there when we connected, or that we made since; the newest is the last.
    marks: Vec<Mark>,
    is_open: bool,
}

/// The numbers of transactions, by outcome. They stay zero in a sink without transactions.
pub(super) struct Counts {
    pub(super) committed: Tally,
    pub(super) taken_back: Tally,
    pub(super) known: Tally,
}

impl Counts {
    pub(super) fn new(sink: &str) -> Self {
        let tally = |outcome| Tally::new(metrics::SINK_KAFKA_TRANSACTIONS, &[sink, outcome]);
        Counts {
            committed: tally("committed"),
            taken_back: tally("taken_back"),
            known: tally("known"),
        }
    }
}

/// The place where marks are.
struct Notes {
    group: String,
    topic: String,
    client: ClientConfig,
}

/// The note on a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    batch: String,
    refused: Vec<usize>,
}

/// The transactional id of a writer: a second one with it ends the transactions of the first.
pub(super) fn transactional_id(context: &Context) -> String {
    let Context { name, writer, master_id, .. } = context;
    format!("saltern/{master_id}/{name}/{writer}")
}

impl Transactions {
    /// Ends the open transaction of an earlier producer of the same id, and reads its mark, in
    /// partition 0 of `topic`. Blocks.
    pub(super) fn open(
        producer: &ThreadedProducer<Reports>,
        client: &ClientConfig,
        context: &Context,
        topic: &str,
    ) -> Result<Self, WriteError> {
        let failed = |error| sink_error("beginning transactions", error, producer);
        let began = Instant::now();
        while let Err(error) = producer.init_transactions(SLICE) {
            if !is_unanswered(&error) || began.elapsed() > ANSWER {
                return Err(failed(error));
            }
        }
        let group = transactional_id(context);
        let notes = Notes { group, topic: topic.to_owned(), client: client.clone() };
        let consumer = notes.consumer().map_err(failed)?;
        let group = consumer.group_metadata().ok_or(KafkaError::Canceled).map_err(failed)?.into();
        let marks = notes.read(&consumer).map_err(failed)?;
        Ok(Transactions { group, notes, noting: UnboundedCall::default(), marks, is_open: false })
    }

    /// The places of the events that were refused, if this batch was committed before.
    pub(super) fn committed(&self, batch: BatchId) -> Option<&[usize]> {
        let batch = batch.to_string();
        self.marks.iter().find(|mark| mark.batch == batch).map(|mark| mark.refused.as_slice())
    }

    pub(super) fn begin(&mut self, producer: &ThreadedProducer<Reports>) -> Result<(), WriteError> {
        let begun = producer.begin_transaction();
        begun.map_err(|error| sink_error("beginning a transaction", error, producer))?;
        self.is_open = true;
        Ok(())
    }

    /// Commits the batch without those that were refused.
    pub(super) async fn commit(
        &mut self,
        producer: &Arc<ThreadedProducer<Reports>>,
        batch: BatchId,
        refused: &[usize],
    ) -> Result<(), WriteError> {
        let mut marks = self.marks.clone();
        marks.push(Mark { batch: batch.to_string(), refused: refused.to_vec() });
        marks.drain(..marks.len().saturating_sub(MARKS));
        let mut text = text_of(&marks);
        while text.len() > LONGEST_NOTE && marks.len() > 1 {
            marks.remove(0);
            text = text_of(&marks);
        }
        let mut committed = Ok(());
        // Without a mark the batch may be stored twice after a crash. With half of one, events that
        // were refused could be lost.
        if text.len() <= LONGEST_NOTE {
            committed = self.note(producer, &text).await;
        }
        if committed.is_ok() {
            let question = Question::new();
            loop {
                committed = blocking(|| producer.commit_transaction(SLICE));
                if !question.is_to_be_repeated(&committed).await {
                    break;
                }
            }
        }
        match committed {
            Ok(()) => {
                self.is_open = false;
                self.marks = marks;
                Ok(())
            }
            Err(error) => {
                let failed = sink_error("committing a transaction", error, producer);
                Err(failed.over_a_new_connection())
            }
        }
    }

    /// Notes the marks in the open transaction.
    async fn note(
        &mut self,
        producer: &Arc<ThreadedProducer<Reports>>,
        text: &str,
    ) -> KafkaResult<()> {
        let offsets = self.notes.offsets(Some(text))?;
        let question = Question::new();
        loop {
            let (producer, group) = (Arc::clone(producer), Arc::clone(&self.group));
            let offsets = offsets.clone();
            let note = move || producer.send_offsets_to_transaction(&offsets, &group, NOTE);
            let answer = self.noting.make(ANSWER_LIMIT, note).await;
            if !question.is_to_be_repeated(&answer).await {
                return answer;
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Leaves the open transaction to the next producer, which takes it back.
    pub(super) fn give_up(&mut self) {
        self.is_open = false;
    }

    /// The error after our producer lost its id to another one. Brokers also take the id of a
    /// producer that leaves a transaction open for too long: after a cut of the network, say. So
    /// only a mark that is not ours tells that there is another saltern; the one of us that finds
    /// it gives in.
    pub(super) fn fenced(&self, batch: BatchId, failed: WriteError) -> WriteError {
        let found = self.notes.consumer().and_then(|consumer| self.notes.read(&consumer));
        let is_ours = |marks: &[Mark]| {
            *marks == *self.marks
                || marks.last().is_some_and(|mark| mark.batch == batch.to_string())
        };
        match found {
            Ok(marks) if !is_ours(&marks) => {
                let id = &self.notes.group;
                let cause = format!(
                    "another saltern uses the transactional id `{id}` (master_id, sink and \
                     writer), so this one has stopped: stop one of them, or rename its sink"
                );
                WriteError::fatal("writing in a transaction", cause)
            }
            _ => failed,
        }
    }

    /// Takes an open transaction back at once, so that readers need not wait until the brokers give
    /// it up. Returns true if there was one. Blocks.
    pub(super) fn leave(&mut self, producer: &ThreadedProducer<Reports>) -> bool {
        self.noting.wait();
        if self.is_open {
            // The brokers give it up later, or at our next connect, if it fails.
            let _ = producer.abort_transaction(SLICE);
        }
        self.is_open
    }
}

impl Notes {
    fn consumer(&self) -> KafkaResult<BaseConsumer> {
        let mut client = self.client.clone();
        client.set("group.id", &self.group).set("enable.auto.commit", "false").create()
    }

    fn offsets(&self, text: Option<&str>) -> KafkaResult<TopicPartitionList> {
        let mut offsets = TopicPartitionList::new();
        let mut offset = offsets.add_partition(&self.topic, 0);
        if let Some(text) = text {
            offset.set_offset(Offset::Offset(0))?;
            offset.set_metadata(text);
        }
        Ok(offsets)
    }

    fn read(&self, consumer: &BaseConsumer) -> KafkaResult<Vec<Mark>> {
        let committed = consumer.committed_offsets(self.offsets(None)?, ANSWER)?;
        let mut marks = Vec::new();
        for offset in committed.elements() {
            offset.error()?;
            marks = offset.metadata().split(';').filter_map(Mark::parse).collect();
        }
        Ok(marks)
    }
}

impl Mark {
    /// The id, and behind it the places: `0123…ef 3,17-40`.
    fn text(&self) -> String {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for place in &self.refused {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *place => *last = *place,
                _ => runs.push((*place, *place)),
            }
        }
        let runs: Vec<_> = runs.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        format!("{} {}", self.batch, runs.join(","))
    }

    fn parse(text: &str) -> Option<Self> {
        let (batch, runs) = text.split_once(' ')?;
        let mut refused = Vec::new();
        for run in runs.split(',').filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-')?;
            refused.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
        }
        Some(Mark { batch: batch.to_owned(), refused })
    }
}

/// The marks as they are noted, `;` between them.
fn text_of(marks: &[Mark]) -> String {
    marks.iter().map(Mark::text).collect::<Vec<_>>().join(";")
}

/// A question that is put to a coordinator until it has answered, or has taken too long.
struct Question {
    asked: Instant,
}

impl Question {
    fn new() -> Self {
        Question { asked: Instant::now() }
    }

    /// This is no answer and it is early enough to ask again; waits a little before that.
    async fn is_to_be_repeated(&self, answer: &KafkaResult<()>) -> bool {
        let is_open = |error| is_unanswered(error) && self.asked.elapsed() < ANSWER_LIMIT;
        if !answer.as_ref().is_err_and(is_open) {
            return false;
        }
        tokio::time::sleep(AGAIN).await;
        true
    }
}

/// An operation goes on, and has to be asked for again.
fn is_unanswered(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => {
            error.is_retriable() && Outcome::of(error.code()) == Outcome::Later
        }
        KafkaError::Flush(code) => *code == Code::OperationTimedOut,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written() {
        for (refused, text) in
            [(vec![], "ab "), (vec![3], "ab 3-3"), (vec![0, 1, 2, 7, 9, 10], "ab 0-2,7-7,9-10")]
        {
            let mark = Mark { batch: "ab".into(), refused };
            assert_eq!(mark.text(), text);
            assert_eq!(Mark::parse(text), Some(mark));
        }
        for wrong in ["", "ab", "ab x", "ab 1-x", "ab 1"] {
            assert_eq!(Mark::parse(wrong), None, "{wrong}");
        }
    }
}
