//! podman's `containers.conf`: the drop-in is sound whatever was there, and keeps the directories
//! and runtimes of before.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::engines::podman::{PodmanSettings, drop_in};

const SHIM: &str = "/usr/local/bin/pinfold-runtime";
const HOOKS: &str = "/etc/pinfold/hooks.d";

fuzz_target!(|text: &str| {
    let mut settings = PodmanSettings::default();
    if settings.read(text).is_err() {
        return;
    }
    let before = settings.clone();
    let Some(written) = drop_in(&before, Some(SHIM), HOOKS) else {
        return;
    };
    settings
        .read(&written)
        .expect("what was written can be read");
    assert_eq!(settings.shim, [SHIM]);
    assert!(settings.reads_hooks_in(HOOKS));
    let kept = |before: &[String], after: &[String]| before.iter().all(|it| after.contains(it));
    assert!(kept(&before.json, &settings.json));
    assert!(kept(&before.no_cgroups, &settings.no_cgroups));
    assert!(kept(&before.hooks_dirs(), &settings.hooks_dirs()));
});
