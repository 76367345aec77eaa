//! The pages for people: each of their commands is one that the program understands, and each link
//! leads somewhere.
// A test that cannot be set up has to fail.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use pinfold::cli::Cli;

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = ["README.md", "CONTRIBUTING.md", "examples/README.md"]
        .map(|page| root.join(page))
        .to_vec();
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        pages.extend(
            path.extension()
                .is_some_and(|end| end == "md")
                .then_some(path),
        );
    }
    pages
}

/// The command lines in blocks for a terminal, without what is said of them behind three spaces or
/// more, and with what stands for something as a word.
fn commands(page: &str) -> Vec<String> {
    let mut is_console = false;
    let mut commands = Vec::new();
    for line in page.lines() {
        match line {
            "```console" => is_console = true,
            line if line.starts_with("```") => is_console = false,
            _ if !is_console => {}
            line => {
                let typed = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ "));
                let typed = typed.map(|line| line.split("  ").next().unwrap_or(line));
                let parts = typed.into_iter().flat_map(|line| line.split("&&"));
                let parts = parts.map(|part| part.trim().to_owned());
                commands.extend(parts.filter(|part| part.starts_with("pinfold ")));
            }
        }
    }
    commands
}

#[test]
fn each_command_is_understood() {
    let mut seen = 0;
    for path in pages() {
        for command in commands(&fs::read_to_string(&path).unwrap()) {
            let words = command.split_whitespace().skip(1);
            let words: Vec<OsString> = words
                .take_while(|word| *word != "#")
                .map(Into::into)
                .collect();
            // ENGINE stands for any.
            let words: Vec<OsString> = words
                .into_iter()
                .map(|word| {
                    if word == "ENGINE" {
                        "podman".into()
                    } else {
                        word
                    }
                })
                .collect();
            if let Err(error) = Cli::parse(&words) {
                panic!("{}: {command}: {error}", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} commands are too few: are they found?");
}

#[test]
fn each_link_leads_somewhere() {
    let mut seen = 0;
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for rest in page.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let linked = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(linked.exists(), "{}: {target}", path.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&linked).unwrap();
                let mut anchors = text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(anchor);
                assert!(
                    anchors.any(|one| one == heading),
                    "{}: {target}",
                    path.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} links are too few: are they found?");
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
