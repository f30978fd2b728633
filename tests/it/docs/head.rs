//! The head of a kind's file, its `//!` comment, from which the prose of its page is taken.

use std::fs;

use super::in_repository;

/// The text in front of the first heading, and the sections behind it.
pub(super) struct Head {
    /// The file, from the root of the repository.
    pub(super) file: String,
    pub(super) intro: String,
    sections: Vec<(String, String)>,
}

impl Head {
    /// The head of the file of this kind, in `src/sink` or `src/source`.
    pub(super) fn of(folder: &str, kind: &str) -> Head {
        let files = [format!("src/{folder}/{kind}.rs"), format!("src/{folder}/{kind}/mod.rs")];
        let found = files.into_iter().find(|file| in_repository(file).exists());
        let file = found.unwrap_or_else(|| panic!("the kind {kind} has no file in src/{folder}"));
        let source = fs::read_to_string(in_repository(&file)).unwrap();
        let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
        let text: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        Head { file, ..Head::parse(&text.join("\n")) }
    }

    fn parse(text: &str) -> Head {
        let mut parts = vec![(String::new(), String::new())];
        let mut is_code = false;
        for line in without_rust_links(text).lines() {
            is_code ^= line.starts_with("```");
            match line.strip_prefix("# ").filter(|_| !is_code) {
                Some(title) => parts.push((title.to_owned(), String::new())),
                None => {
                    let (_, body) = parts.last_mut().unwrap();
                    body.push_str(line);
                    body.push('\n');
                }
            }
        }
        let trimmed = parts.into_iter().map(|(title, body)| (title, body.trim().to_owned()));
        let mut sections: Vec<_> = trimmed.collect();
        let intro = sections.remove(0).1;
        Head { file: String::new(), intro, sections }
    }

    /// Takes the section with this title, if there is one.
    pub(super) fn take(&mut self, title: &str) -> Option<String> {
        let place = self.sections.iter().position(|(found, _)| found == title)?;
        Some(self.sections.remove(place).1)
    }

    /// Takes a section like [`Head::take`]; the section has to be there.
    pub(super) fn need(&mut self, title: &str) -> String {
        let found = self.take(title);
        found.unwrap_or_else(|| panic!("the head of {} lacks a section `# {title}`", self.file))
    }

    /// The sections that were not taken. `Inside` is for readers of the code alone.
    pub(super) fn rest(self) -> impl Iterator<Item = (String, String)> {
        self.sections.into_iter().filter(|(title, _)| title != "Inside")
    }
}

/// Makes links to items of the code plain: ``[`x`](super::x)`` and ``[`crate::x`]`` become `x`.
fn without_rust_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        out.push_str(before);
        let Some((name, behind)) = link.split_once("`]") else {
            out.push_str("[`");
            rest = link;
            continue;
        };
        let target = behind.strip_prefix('(').and_then(|target| target.split_once(')'));
        match target {
            Some((target, _)) if target.contains(".md") || target.contains("://") => {
                out.push_str(&format!("[`{name}`]"));
                rest = behind;
            }
            other => {
                let name = name.rsplit("::").next().unwrap();
                out.push_str(&format!("`{name}`"));
                rest = other.map_or(behind, |(_, behind)| behind);
            }
        }
    }
    out + rest
}

/// The table of a list `* WHEN → THEN → SEEN`, whose points may go on in lines that are indented.
pub(super) fn table_of_failures(file: &str, list: &str) -> String {
    let mut table =
        String::from("| what happens | what saltern does | what you see |\n|---|---|---|\n");
    let (points, behind) = list.split_once("\n\n").unwrap_or((list, ""));
    let joined = points.replace("\n  ", " ");
    for line in joined.lines() {
        let point = line.strip_prefix("* ").map(|point| point.split(" → ").collect::<Vec<_>>());
        match point.as_deref() {
            Some([when, then, seen]) => {
                table.push_str(&format!("| {when} | {then} | {seen} |\n"));
            }
            _ => panic!("{file}: `# Failures` is a list of `* WHEN → THEN → SEEN`, not: {line}"),
        }
    }
    match behind {
        "" => table,
        behind => format!("{table}\n{behind}\n"),
    }
}

#[test]
fn a_head_falls_apart_into_its_sections() {
    let text = "`x`: does [`y`](super::y), see [`crate::a::b`] and [`z`](../z.md).\n\n\
                # Example\n\n```yaml\n# no heading\n```\n\n# Inside\n\nCode.\n\n# Limits\n\nFew.";
    let mut head = Head::parse(text);
    assert_eq!(head.intro, "`x`: does `y`, see `b` and [`z`](../z.md).");
    assert_eq!(head.need("Example"), "```yaml\n# no heading\n```");
    assert_eq!(head.take("Failures"), None);
    assert_eq!(head.rest().collect::<Vec<_>>(), [("Limits".to_owned(), "Few.".to_owned())]);
}

#[test]
fn failures_become_a_table() {
    let table = table_of_failures("x", "* a → b → c\n* d\n  e → f → g\n\nMore.");
    assert!(table.ends_with("| a | b | c |\n| d e | f | g |\n\nMore.\n"), "{table}");
}
