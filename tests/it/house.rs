//! The order of the house: no cycle between files, few rooms, and imports between rooms as
//! `ARCHITECTURE.md` draws them. Comments keep to their width and words, and files of proptest are
//! where it looks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that `src/` may have at the most.
const ROOMS: usize = 26;

/// Columns of a comment.
const WIDTH: usize = 100;

/// Uses of a room by another that lead in a circle. Nothing may be added here.
const BACK: &[(&str, &str)] = &[("observe", "sync"), ("delivery", "sink")];

/// Words that make a clause of a sentence's beginning. No comment begins with one.
const SUBORDINATE: [&str; 8] = ["What", "Whether", "Where", "Why", "How", "When", "If", "Since"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below a folder.
fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let is_built = path.file_name().is_some_and(|name| name == "target" || name == "corpus");
        if path.is_dir() && !is_built {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

type Module = Vec<String>;

/// Stands before what tests alone have.
const TEST: &str = "#[cfg(test)]";

/// The files of `src/` by their modules, without their tests and comments.
fn modules() -> BTreeMap<Module, String> {
    let src = root().join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut modules = BTreeMap::new();
    let mut of_tests = Vec::new();
    for file in files {
        let path = file.strip_prefix(&src).unwrap().with_extension("");
        let mut module: Module =
            path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        if module != ["lib"] && module != ["main"] {
            let text = fs::read_to_string(&file).unwrap();
            let children = test_modules(&text);
            of_tests.extend(children.map(|child| [module.as_slice(), &[child]].concat()));
            modules.insert(module, code_of(&text));
        }
    }
    modules.retain(|module, _| !of_tests.iter().any(|tests| module.starts_with(tests)));
    modules
}

/// The modules with files of their own that a file declares for tests alone.
fn test_modules(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().skip_while(|line| *line != TEST);
    let pairs = lines.clone().zip(lines.skip(1));
    let declared = pairs.filter(|(before, _)| *before == TEST).filter_map(|(_, line)| {
        let (before, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
        (before.is_empty() || before.starts_with("pub")).then_some(name)
    });
    declared.map(str::to_owned)
}

/// The code of a file: without comments, tests, and visibilities, which name modules that are not
/// imported.
fn code_of(text: &str) -> String {
    let is_test = |line: &str| line.starts_with("mod tests {") || line.ends_with(" mod tests {");
    let mut before = "";
    let lines = text
        .lines()
        .take_while(|line| !is_test(line))
        .filter(|line| std::mem::replace(&mut before, line) != TEST || !line.ends_with(';'));
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    let mut out = String::new();
    for line in code {
        let mut rest = line;
        while let Some((before, behind)) = rest.split_once("pub(in ") {
            out += before;
            rest = behind.split_once(')').map_or("", |(_, rest)| rest);
        }
        out += rest;
        out.push('\n');
    }
    out
}

/// The paths that a tree of `use` stands for: `a::{b, c::{d, e}}` is `a::b`, `a::c::d`, `a::c::e`.
fn expand(before: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let (head, inner) = match tree.split_once('{') {
        Some((head, inner)) => (head, inner.trim_end().strip_suffix('}')),
        None => (tree.split(" as ").next().unwrap_or_default(), None),
    };
    let parts = head.split("::").map(str::trim).filter(|part| !part.is_empty());
    let path: Vec<String> = before.iter().cloned().chain(parts.map(str::to_owned)).collect();
    let Some(inner) = inner else { return paths.push(path) };
    let (mut depth, mut begin) = (0, 0);
    for (place, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&path, &inner[begin..place], paths);
                begin = place + 1;
            }
            _ => {}
        }
    }
    if !inner[begin..].trim().is_empty() {
        expand(&path, &inner[begin..], paths);
    }
}

/// The paths of a file's `use` lines, and those that it names in full elsewhere.
fn paths_of(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = String::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let words = line.trim_start();
        let words = match words.strip_prefix("pub") {
            Some(words) => words.split_once(" use ").map_or(words, |(_, tree)| tree),
            None => words.strip_prefix("use ").unwrap_or(words),
        };
        if words.len() == line.trim_start().len() || !line.contains("use ") {
            rest += line;
            rest.push('\n');
            continue;
        }
        let mut tree = words.to_owned();
        while !tree.contains(';') {
            let Some(more) = lines.next() else { break };
            tree += more;
        }
        expand(&[], tree.split(';').next().unwrap_or_default(), &mut paths);
    }
    for root in ["crate::", "super::"] {
        for (place, _) in rest.match_indices(root) {
            let is_inside =
                rest[..place].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let end = rest[place..].find(|c| !is_path(c)).unwrap_or(rest.len() - place);
            if !is_inside {
                let path = rest[place..place + end].split("::").filter(|part| !part.is_empty());
                paths.push(path.map(str::to_owned).collect());
            }
        }
    }
    paths
}

/// The module that a path in a file leads to, from the crate's root on.
fn absolute(module: &Module, path: &[String], children: &BTreeSet<&str>) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([module.as_slice(), rest].concat()),
        "super" => {
            let up = path.iter().take_while(|part| *part == "super").count();
            let above = module.get(..module.len().checked_sub(up)?)?;
            Some([above, &path[up..]].concat())
        }
        child if children.contains(child) => Some([module.as_slice(), path].concat()),
        _ => None,
    }
}

/// The modules that each module imports.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, code) in &modules {
        let below = |other: &&Module| other.len() == module.len() + 1 && other.starts_with(module);
        let children: BTreeSet<&str> =
            modules.keys().filter(below).filter_map(|child| Some(child.last()?.as_str())).collect();
        let imported = imports.entry(module.clone()).or_default();
        for path in paths_of(code) {
            let Some(mut path) = absolute(module, &path, &children) else { continue };
            while !path.is_empty() && !modules.contains_key(&path) {
                path.pop();
            }
            if !path.is_empty() && path != *module {
                imported.insert(path);
            }
        }
        for child in children {
            let called = format!("{child}::");
            let is_named = code.match_indices(&called).any(|(place, _)| {
                !code[..place].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if is_named {
                imported.insert([module.as_slice(), &[child.to_owned()]].concat());
            }
        }
    }
    imports
}

/// The modules that can be reached from a module.
fn reached<'a>(
    from: &'a Module,
    imports: &'a BTreeMap<Module, BTreeSet<Module>>,
) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Module> = imports[from].iter().collect();
    while let Some(module) = open.pop() {
        if found.insert(module) {
            open.extend(&imports[module]);
        }
    }
    found
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let imports = imports();
    let mut cycles = BTreeSet::new();
    for module in imports.keys() {
        let there = reached(module, &imports);
        if there.contains(module) {
            let back = |other: &&&Module| reached(other, &imports).contains(module);
            let cycle: BTreeSet<String> =
                there.iter().filter(back).map(|module| module.join("::")).collect();
            cycles.insert(cycle);
        }
    }
    assert!(cycles.is_empty(), "these files import each other: {cycles:#?}");
}

#[test]
fn there_are_few_rooms() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let is_room =
        |line: &&str| (line.starts_with("mod ") || line.starts_with("pub")) && line.ends_with(';');
    let rooms = lib.lines().filter(is_room).count();
    assert!(rooms <= ROOMS, "src/ has {rooms} rooms, and {ROOMS} are the most");
}

/// The table of `ARCHITECTURE.md` that says which rooms a room uses.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = page.lines().skip_while(|line| !line.starts_with("| room | uses |")).skip(2);
    let names = |text: &str| {
        let quoted = text.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|');
        let (rooms, uses) = (names(cells.next()?), names(cells.next()?));
        Some(rooms.into_iter().map(move |room| (room, uses.clone())).collect::<Vec<_>>())
    };
    table.take_while(|line| line.starts_with('|')).filter_map(row).flatten().collect()
}

/// The rooms that each room uses.
fn used() -> BTreeMap<Module, BTreeSet<Module>> {
    let mut used: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, imported) in imports() {
        let rooms = used.entry(module[..1].to_vec()).or_default();
        rooms
            .extend(imported.iter().map(|other| other[..1].to_vec()).filter(|o| *o != module[..1]));
    }
    used
}

#[test]
fn rooms_use_the_rooms_that_the_architecture_draws() {
    let used: BTreeMap<String, BTreeSet<String>> = used()
        .into_iter()
        .map(|(room, rooms)| (room.concat(), rooms.into_iter().flatten().collect()))
        .collect();
    let mut allowed = allowed();
    for (room, rooms) in used {
        let drawn = allowed.remove(&room).unwrap_or_default();
        let new: Vec<_> = rooms.difference(&drawn).collect();
        assert!(new.is_empty(), "ARCHITECTURE.md does not draw that `{room}` uses {new:?}");
        let gone: Vec<_> = drawn.difference(&rooms).collect();
        assert!(
            gone.is_empty(),
            "ARCHITECTURE.md draws that `{room}` uses {gone:?}, and it does not"
        );
    }
    assert!(allowed.is_empty(), "ARCHITECTURE.md draws rooms that are not there: {allowed:?}");
}

#[test]
fn rooms_do_not_use_each_other_in_a_circle() {
    let all = used();
    let room = |name: &str| vec![name.to_owned()];
    let mut forward = all.clone();
    for (from, to) in BACK {
        let rooms = forward.get_mut(&room(from)).unwrap();
        assert!(rooms.remove(&room(to)), "`{from}` no longer uses `{to}`: take it from BACK");
    }
    let circle: Vec<_> =
        forward.keys().filter(|name| reached(name, &forward).contains(name)).collect();
    assert!(circle.is_empty(), "these rooms use each other in a circle: {circle:?}");
    for (from, to) in BACK {
        let leads_back = room(to);
        assert!(
            reached(&leads_back, &forward).contains(&room(from)),
            "`{from}` may use `{to}`, which does not lead back to it: take it from BACK"
        );
    }
}

/// The files of Rust in the repository, with their texts.
fn all_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "bench", "load-tests", "fuzz"] {
        rust_files(&root().join(folder), &mut files);
    }
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        (file, text)
    };
    files.into_iter().map(read).collect()
}

#[test]
fn no_comment_is_wider_than_a_hundred_columns() {
    let mut wide = Vec::new();
    for (file, text) in all_files() {
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") && line.chars().count() > WIDTH {
                wide.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(wide.is_empty(), "these comments are too wide: {wide:#?}");
}

/// The places where a comment begins with a clause.
fn clauses(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut begins = true;
    for (number, line) in text.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            begins = true;
            continue;
        };
        let comment = comment.trim_start_matches(['/', '!']).trim_start();
        let first = comment.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        if begins && SUBORDINATE.contains(&first) {
            found.push(format!("{}:{}", file.display(), number + 1));
        }
        begins = comment.is_empty();
    }
    found
}

#[test]
fn no_comment_begins_with_a_clause() {
    let found: Vec<_> = all_files().iter().flat_map(|(file, text)| clauses(file, text)).collect();
    assert!(found.is_empty(), "these comments begin with one of {SUBORDINATE:?}: {found:#?}");
    let text =
        "/// What it is.\n/// If so.\n//!\n//! Why.\n// Is it?\nfn f() {} // If\n    // Whatever";
    assert_eq!(clauses(Path::new("x"), text), ["x:1", "x:4"]);
}

/// Proptest keeps the failures of a file of `src` below `proptest-regressions`, by the same path.
#[test]
fn what_proptest_remembers_is_tried_again() {
    let kept = root().join("proptest-regressions");
    let mut open = vec![kept.clone()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let of = path.strip_prefix(&kept).unwrap().with_extension("rs");
            let source = fs::read_to_string(root().join("src").join(&of)).unwrap_or_default();
            assert!(
                source.contains("proptest! {"),
                "proptest never reads {}: src/{} has no test of it",
                path.display(),
                of.display()
            );
        }
    }
}

#[test]
fn imports_are_read_as_they_are_written() {
    let text = "use crate::a::{self, b::C, d::{e, f as g}};\npub(crate) use super::h;\n\
                pub(in crate::x) fn i() { crate::j::k(); }\n// crate::no\n\
                #[cfg(test)]\nuse crate::no;\n#[cfg(test)]\npub(crate) mod model;\n\
                mod tests {\nuse crate::no;\n}";
    let paths: Vec<String> = paths_of(&code_of(text)).iter().map(|path| path.join("::")).collect();
    let expected = [
        "crate::a::self",
        "crate::a::b::C",
        "crate::a::d::e",
        "crate::a::d::f",
        "super::h",
        "crate::j::k",
    ];
    assert_eq!(paths, expected);
    assert_eq!(test_modules(text).collect::<Vec<_>>(), ["model"]);
}
