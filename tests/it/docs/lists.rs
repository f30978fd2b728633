//! Lists over all kinds: the table of guarantees, and blocks in pages that are written by hand.

use std::fs;

use saltern::import_master::without_sink;
use saltern::sink::registry as sinks;
use saltern::source::registry as sources;

use super::head::Head;
use super::kinds::{listed, once};
use super::{assert_written, in_repository};

#[test]
fn the_page_of_guarantees_is_what_the_code_says() {
    let mut page = String::from(
        "# Guarantees\n\nWhat each kind promises. An event that was read is delivered to every sink \
         that wants it until it is stored, in order; see [Spill and dead letters](spill.md) for what \
         survives what.\n\n## Sinks\n\n| sink | an event that is written twice | more |\n|---|---|---|\n",
    );
    for kind in sinks::KINDS {
        let name = kind.name;
        let more = first_sentence(&Head::of("sink", name).take("Guarantee").unwrap_or_default());
        page.push_str(&format!("| [`{name}`](sinks/{name}.md) | {} | {more} |\n", once(kind)));
    }
    page.push_str("\n## Sources\n\n| source | guarantee |\n|---|---|\n");
    for kind in sources::KINDS {
        let name = kind.name;
        let guarantee = first_sentence(&Head::of("source", name).need("Guarantee"));
        page.push_str(&format!("| [`{name}`](sources/{name}.md) | {guarantee} |\n"));
    }
    assert_written("docs/guarantees.md", &page);
}

#[test]
fn the_lists_of_kinds_are_what_the_code_says() {
    let list = |folder: &str, kinds: Vec<(&str, &str)>| {
        let lines = kinds
            .into_iter()
            .map(|(name, about)| format!("- [`{name}`]({folder}/{name}.md): {about}\n"));
        lines.collect::<String>()
    };
    let of_sinks = list("sinks", sinks::KINDS.iter().map(|kind| (kind.name, kind.about)).collect());
    let of_sources =
        list("sources", sources::KINDS.iter().map(|kind| (kind.name, kind.about)).collect());
    write_blocks("docs/README.md", &[("sinks", &of_sinks), ("sources", &of_sources)]);
    write_blocks("docs/sources.md", &[("sources", &of_sources)]);
    write_blocks("docs/sinks.md", &[("sinks", &of_sinks), ("returners", &returners())]);
}

#[test]
fn the_readme_names_every_kind() {
    let link = |folder: &str, name: &str| format!("[`{name}`](docs/{folder}/{name}.md)");
    let of_sinks: Vec<_> = sinks::KINDS.iter().map(|kind| link("sinks", kind.name)).collect();
    let of_sources: Vec<_> = sources::KINDS.iter().map(|kind| link("sources", kind.name)).collect();
    let readme = fs::read_to_string(in_repository("README.md")).unwrap();
    let lines = readme.lines().map(|line| match line {
        line if line.starts_with("| sources |") => {
            format!("| sources | {} |", of_sources.join(", "))
        }
        line if line.starts_with("| sinks |") => format!("| sinks | {} |", of_sinks.join(", ")),
        line => line.to_owned(),
    });
    let page = lines.map(|line| line + "\n").collect::<String>();
    assert!(page.contains(&of_sinks.join(", ")) && page.contains(&of_sources.join(", ")));
    assert_written("README.md", &page);
}

/// The table of Salt's returners and the sinks that stand for them.
fn returners() -> String {
    let mut table = String::from("| Salt's returner | sink | what is left |\n|---|---|---|\n");
    for kind in sinks::KINDS {
        let (Some(salt), name) = (&kind.salt, kind.name) else { continue };
        let note = salt.note.unwrap_or_default();
        let names = listed(salt.names);
        table.push_str(&format!("| {names} | [`{name}`](sinks/{name}.md) | {note} |\n"));
    }
    let others: Vec<_> = without_sink().collect();
    format!("{table}\nNo sink yet: {}.\n", listed(&others))
}

/// Puts these texts between the marks `<!-- NAME -->` and `<!-- /NAME -->` of a page.
pub(super) fn write_blocks(path: &str, blocks: &[(&str, &str)]) {
    let mut page = fs::read_to_string(in_repository(path)).unwrap();
    for (name, text) in blocks {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let parts = page.split_once(&begin).and_then(|(before, rest)| {
            let (_, behind) = rest.split_once(&end)?;
            Some(format!("{before}{begin}{text}{end}{behind}"))
        });
        page = parts.unwrap_or_else(|| panic!("{path} has no block {name}"));
    }
    assert_written(path, &page);
}

/// The first sentence of a text, on one line.
fn first_sentence(text: &str) -> String {
    let line = text.split("\n\n").next().unwrap().replace('\n', " ");
    let end = line.find(". ").map_or(line.len(), |end| end + 1);
    // Links lead from the folder of the page of all kinds.
    line.get(..end).unwrap().replace("](../", "](")
}
