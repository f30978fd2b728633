//! Every relative link in the Markdown files leads to a file that is there, and to a heading of it.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn links_between_the_markdown_files_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    markdown_in(root, &mut files);
    let mut broken = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        for target in link_targets(&text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            let leads_there = match there.extension().is_some_and(|extension| extension == "md") {
                true if !anchor.is_empty() => fs::read_to_string(&there)
                    .is_ok_and(|text| anchors(&text).iter().any(|found| found == anchor)),
                _ => there.exists(),
            };
            if !leads_there {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn links_are_found_outside_code_only() {
    let text = "[a](x.md) ![i](i.png \"title\") [web](https://example.com) `[no](no.md)`\n```\n[no](no.md)\n```\n[r]: docs/y.md#part\n";
    assert_eq!(link_targets(text), ["x.md", "i.png", "docs/y.md#part"]);
}

#[test]
fn headings_have_the_anchors_that_github_gives_them() {
    let text = "# A `b_c` [d](e.md)\n```sh\n# no\n```\n## How a return went?\n## Salt's own\n## A `b_c` d\n";
    let expected = ["a-b_c-d", "how-a-return-went", "salts-own", "a-b_c-d-1"];
    assert_eq!(anchors(text), expected);
}

/// The anchors of the headings of a page.
fn anchors(text: &str) -> Vec<String> {
    let (mut anchors, mut slugs) = (Vec::new(), Vec::new());
    let mut in_code_block = false;
    for line in text.lines() {
        in_code_block ^= line.trim_start().starts_with("```");
        if in_code_block || !line.starts_with('#') {
            continue;
        }
        // Only the text of a link counts.
        let title: String = line
            .trim_start_matches('#')
            .split("](")
            .enumerate()
            .map(
                |(n, part)| if n == 0 { part } else { part.split_once(')').map_or("", |(_, p)| p) },
            )
            .collect();
        let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let slug = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let before = slugs.iter().filter(|known| **known == slug).count();
        anchors.push(if before == 0 { slug.clone() } else { format!("{slug}-{before}") });
        slugs.push(slug);
    }
    anchors
}

/// All Markdown files below `dir`, but none of build output or of hidden folders.
fn markdown_in(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            markdown_in(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
}

/// The targets of inline links and reference definitions that are no URLs.
fn link_targets(text: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    let mut in_code_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code_block = !in_code_block;
        }
        if in_code_block {
            continue;
        }
        if line.starts_with('[')
            && let Some((_, target)) = line.split_once("]: ")
        {
            targets.extend(target.split_whitespace().next());
        }
        // Every second piece between back quotes is code.
        for prose in line.split('`').step_by(2) {
            for link in prose.split("](").skip(1) {
                targets.extend(link.split([')', ' ']).next());
            }
        }
    }
    targets.retain(|target| !target.contains("://") && !target.starts_with("mailto:"));
    targets
}
