//! `tasks` as another tool may have left it: what is read are pids, in the order of the file, as
//! KCM reads them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pinfold::host::Host;
use pinfold::pools::PoolDirectory;
use pinfold_fuzz::Scratch;

static DIRECTORY: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    scratch.put("lock", b"");
    scratch.put("pools/dp/exclusive", b"1");
    scratch
});

/// KCM's own reading: split at commas, drop what is empty, trim.
fn as_kcm(text: &str) -> Vec<i32> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().expect("an accepted file holds numbers"))
        .collect()
}

fuzz_target!(|text: &str| {
    DIRECTORY.put("pools/dp/0/tasks", text.as_bytes());
    let directory = PoolDirectory::open(&Host::new("/"), DIRECTORY.path()).expect("it is sound");
    if let Ok(pool) = directory.pool("dp") {
        let tasks = &pool.lists[0].tasks;
        assert!(tasks.iter().all(|pid| *pid > 0));
        assert_eq!(tasks, &as_kcm(text));
    }
});
