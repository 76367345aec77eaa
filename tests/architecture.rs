//! The rooms of `docs/ARCHITECTURE.md` and the code agree: a room uses what its row names, and
//! arrows point down. And what rustfmt leaves alone, comments and literals, stays within its width.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Rooms that every other may use.
const EVERYBODYS: [&str; 2] = ["refusal", "text"];

/// The most columns of a line: rustfmt's `max_width`.
const MOST_COLUMNS: usize = 100;

struct Room {
    name: String,
    may_use: BTreeSet<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of the table, from top to bottom.
fn rooms() -> Vec<Room> {
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let rows: Vec<(String, String)> = text.lines().filter_map(row).collect();
    let below = |place: usize| rows[place + 1..].iter().map(|(name, _)| name.clone());
    let room = |(place, (name, uses)): (usize, &(String, String))| Room {
        name: name.clone(),
        may_use: match uses.contains("all below") {
            true => below(place).collect(),
            false => words(uses).map(str::to_owned).collect(),
        },
    };
    rows.iter().enumerate().map(room).collect()
}

/// The name of a room, and what it may use.
fn row(line: &str) -> Option<(String, String)> {
    let mut columns = line
        .strip_prefix("| `")?
        .trim_end_matches(" |")
        .split(" | ");
    let name = words(columns.next()?).next()?;
    let uses = columns.nth(1)?;
    Some((name.to_owned(), uses.to_owned()))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_none = |letter: char| !letter.is_alphanumeric() && letter != '_';
    text.split(is_none).filter(|word| !word.is_empty())
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.extension().is_some_and(|end| end == "rs") {
            true => found.push(path),
            false if path.is_dir() => sources(&path, found),
            false => {}
        }
    }
}

/// Is this a file of a room, and not one of its tests?
fn is_of_room(inside: &Path) -> bool {
    let others = ["tests", "tests.rs", "lib.rs"];
    !inside
        .iter()
        .any(|name| others.iter().any(|one| name == *one))
}

/// The rooms that a file names, outside of its comments and its tests.
fn used(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    let mut used = BTreeSet::new();
    for start in ["crate::", "pinfold::"] {
        for (place, _) in code.match_indices(start) {
            let rest = &code[place + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) => {
                    let group = group.split("};").next().unwrap();
                    let names = group.split(',').filter_map(|part| words(part).next());
                    used.extend(names.map(str::to_owned));
                }
                None => used.extend(words(rest).next().map(str::to_owned)),
            }
        }
    }
    used
}

/// What each room uses, and in which files.
fn uses() -> BTreeMap<(String, String), Vec<String>> {
    let source = root().join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    let mut uses: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for path in files {
        let inside = path.strip_prefix(&source).unwrap();
        if !is_of_room(inside) {
            continue;
        }
        let room = Path::new(inside.iter().next().unwrap()).with_extension("");
        let room = room.to_string_lossy().into_owned();
        for other in used(&std::fs::read_to_string(&path).unwrap()) {
            let file = inside.display().to_string();
            uses.entry((room.clone(), other)).or_default().push(file);
        }
    }
    uses
}

#[test]
fn a_room_uses_what_its_row_names() {
    let rooms = rooms();
    let names: BTreeSet<&str> = rooms.iter().map(|room| room.name.as_str()).collect();
    let mut wrong = Vec::new();
    for ((room, other), files) in uses() {
        let Some(row) = rooms.iter().find(|row| row.name == room) else {
            wrong.push(format!("{room} has no row: {}", files.join(" ")));
            continue;
        };
        let may_use = room == other
            || !names.contains(other.as_str())
            || EVERYBODYS.contains(&other.as_str())
            || row.may_use.contains(&other);
        if !may_use {
            wrong.push(format!("{room} uses {other}: {}", files.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_has_a_row_and_arrows_point_down() {
    let rooms = rooms();
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for room in &rooms {
        let up = room
            .may_use
            .iter()
            .find(|other| above.contains(other.as_str()));
        assert_eq!(up, None, "{} points up", room.name);
        above.insert(&room.name);
    }
    let library = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules = library.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';')
    });
    let modules: BTreeSet<&str> = modules.collect();
    assert!(modules.len() > 30, "{modules:?}");
    above.remove("main");
    assert_eq!(above, modules);
}

#[test]
fn what_a_file_names_is_found() {
    let code = "//! crate::comment\nuse crate::one::A;\nuse crate::{two, three::B};\n\
        fn f() { crate::four::f() }\n#[cfg(test)]\nmod tests { use crate::five; }";
    assert_eq!(
        used(code).into_iter().collect::<Vec<_>>(),
        ["four", "one", "three", "two"]
    );
}

#[test]
fn no_line_is_over_the_width() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 100, "{} files", files.len());
    let mut long = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (index, line) in text.lines().enumerate() {
            if line.chars().count() > MOST_COLUMNS {
                long.push(format!("{}:{}", file.display(), index + 1));
            }
        }
    }
    assert!(long.is_empty(), "over {MOST_COLUMNS} columns: {long:#?}");
}
