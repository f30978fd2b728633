//! The queries of `docs/clickhouse.md`, and of Grafana's dashboard, over the events of
//! `tests/fixtures/questions.jsonl`. Each is asked of ClickHouse 18.16 and of the engine of 26.9 in
//! chDB, and has the answer that the page gives.
//!
//! `UPDATE_GOLDEN=1` writes the answers of the newer engine into the page; read them before you
//! believe them.

use std::fs;
use std::path::{Path, PathBuf};

mod dashboard;

use crate::harness::clickhouse::ClickHouse;
use crate::harness::clickhouse::chdb::Chdb;
use crate::harness::daemon::Daemon;

/// The time at which the page is read.
const NOON: &str = "toDateTime('2026-11-21 12:00:00', 'UTC')";

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clickhouse.md")
}

/// A query of the page, and the answer that the page gives.
struct Question {
    title: String,
    sql: String,
    answer: Vec<Vec<String>>,
}

/// The questions of the page, with the query that is meant for a release before or from 25.3 on.
fn questions(is_new: bool) -> Vec<Question> {
    let page = fs::read_to_string(page()).unwrap();
    let mut questions = Vec::new();
    for section in page.split("\n### ").skip(1) {
        let mut blocks = section.split("\n```");
        let title = blocks.next().unwrap().lines().next().unwrap().to_owned();
        let (mut sql, mut answer) = (None, None);
        // Every other piece is the inside of a block.
        for block in blocks.step_by(2) {
            let (kind, text) = block.split_once('\n').unwrap_or((block, ""));
            match kind {
                "sql" => sql = Some(text),
                "sql from 25.3" if is_new => sql = Some(text),
                "sql before 25.3" if !is_new => sql = Some(text),
                "text" => answer = Some(words(text)),
                "text before 25.3" if !is_new => answer = Some(words(text)),
                "sql from 25.3" | "sql before 25.3" | "text before 25.3" => {}
                other => panic!("{title}: a block of `{other}`"),
            }
        }
        let sql = sql.unwrap_or_else(|| panic!("{title}: no query")).to_owned();
        let answer = answer.unwrap_or_else(|| panic!("{title}: no answer"));
        questions.push(Question { title, sql, answer });
    }
    assert!(questions.len() > 10, "there are {} questions", questions.len());
    questions
}

/// The words of each line: columns are apart, by one tab or by some spaces.
fn words(text: &str) -> Vec<Vec<String>> {
    text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Lets saltern write the events into the database `salt`.
fn fill(settings: &str) {
    let folder = tempfile::tempdir().unwrap();
    let events = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/questions.jsonl");
    let sections = format!(
        "sources: {{bus: {{replay: {{path: '{}'}}}}}}\nsinks: {{analytics: {{clickhouse: {{{settings}}}}}}}\n",
        events.display()
    );
    let daemon = Daemon::start(folder.path(), &sections);
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());
}

/// The query for the database `salt` at noon.
fn at_noon(sql: &str) -> String {
    let sql = sql.replace("now()", NOON).replace("today()", &format!("toDate({NOON})"));
    sql.replace("FROM salt_", "FROM salt.salt_") + "\nFORMAT TabSeparatedWithNames"
}

fn ask_all(is_new: bool, ask: impl Fn(&str) -> String) {
    for question in questions(is_new) {
        let found = ask(&at_noon(&question.sql));
        // Servers of 2018 escape an apostrophe.
        let found = words(&found.replace("\\'", "'"));
        assert!(found.len() > 1, "{}: no rows", question.title);
        assert_eq!(found, question.answer, "{}", question.title);
    }
}

#[test]
fn every_question_of_the_page_is_answered_by_18_16() {
    let server = ClickHouse::start();
    fill(&server.settings("salt"));
    ask_all(false, |sql| server.query(sql));
    dashboard::every_panel_has_data(|sql| server.query(sql));
}

#[test]
fn every_question_of_the_page_is_answered_by_chdb() {
    let server = Chdb::start();
    fill(&server.settings("salt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        update(|sql| server.query(sql));
    }
    ask_all(true, |sql| server.query(sql));
    dashboard::every_panel_has_data(|sql| server.query(sql));
}

/// Writes the answers into the page, in columns.
fn update(ask: impl Fn(&str) -> String) {
    let mut page = fs::read_to_string(page()).unwrap();
    for question in questions(true) {
        let answer = ask(&at_noon(&question.sql));
        let rows: Vec<Vec<&str>> = answer.lines().map(|line| line.split('\t').collect()).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let line = |row: &Vec<&str>| {
            let cells = row.iter().enumerate();
            let cells = cells.map(|(place, cell)| format!("{cell:0$}", width(place).unwrap()));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let lines: Vec<_> = rows.iter().map(line).collect();
        let section = page.find(&format!("\n### {}\n", question.title)).unwrap();
        let from = section + page[section..].find("\n```text").unwrap() + "\n```text".len();
        let to = from + page[from..].find("\n```").unwrap();
        page.replace_range(from..to, &format!("\n{}", lines.join("\n")));
    }
    fs::write(self::page(), page).unwrap();
}
