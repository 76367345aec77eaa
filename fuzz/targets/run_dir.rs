//! What is in the run directory beside claims, divided by NULs: counters, a refusal's line, a
//! record of what was used, and an owner that ended. Damaged ones are errors or nothing, and never
//! keep others from being read.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pinfold::claims::Ledger;
use pinfold::usage::Log;
use pinfold::{counters, refusals};
use pinfold_fuzz::Scratch;

static RUN_DIR: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let mut next = || parts.next().unwrap_or_default().as_bytes();
    RUN_DIR.put("counters", next());
    RUN_DIR.put("refusals", next());
    RUN_DIR.put("usage.jsonl", next());
    RUN_DIR.put("ended/a@7-8", next());
    let path = RUN_DIR.path();
    let counted = counters::read(path).expect("a damaged file counts nothing");
    assert!(!counted.lock_wait_seconds.is_nan());
    let _ = refusals::all(path);
    let log = Log {
        path: path.join("usage.jsonl"),
        rotate_at: 1 << 20,
    };
    let _ = log.read();
    let ledger = Ledger::open_to_read(path).expect("the directory is there");
    let ended = ledger.ended("a@7-8").expect("the file can be read");
    assert_eq!(ended.expect("it is there").name, "a@7-8");
});
