//! The command line of a runtime, a word a line: options that are known never change what is behind
//! them, and whatever is read as a container's is in the words. That the real runtimes read the
//! same lines alike is tried by `tests/faults` (`command_lines`).
#![no_main]

use std::ffi::OsString;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use pinfold::oci::CommandLine;

fn read(words: &[&str]) -> CommandLine {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    CommandLine::parse(&words)
}

fuzz_target!(|text: &str| {
    let words: Vec<&str> = text.split('\n').collect();
    let line = read(&words);
    for part in [&line.verb, &line.id] {
        let is_there = |part: &String| words.contains(&part.as_str());
        assert!(part.iter().all(is_there), "{part:?} of {words:?}");
    }
    if line.makes_a_container() {
        assert!(line.verb.is_some(), "{words:?}");
    }
    // What is known to stand alone, or to have its value, is passed over.
    let with_debug = read(&[&["--debug"][..], &words].concat());
    assert_eq!(with_debug, line, "{words:?}");
    let with_root = read(&[&["--root=r"][..], &words].concat());
    let mut expected = line;
    expected.root.get_or_insert_with(|| PathBuf::from("r"));
    assert_eq!(with_root, expected, "{words:?}");
});
