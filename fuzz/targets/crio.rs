//! CRI-O's configuration: the drop-in is sound whatever was there, names our directory once and
//! keeps the others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::engines::crio::{CrioSettings, drop_in};

const SHIM: &str = "/usr/local/bin/pinfold-runtime";
const HOOKS: &str = "/etc/pinfold/hooks.d";

fuzz_target!(|text: &str| {
    let mut settings = CrioSettings::default();
    if settings.read(text).is_err() {
        return;
    }
    let before = settings.clone();
    let Ok(written) = drop_in(&before, Some(SHIM), HOOKS) else {
        return;
    };
    settings
        .read(&written)
        .expect("what was written can be read");
    assert_eq!(settings.shim(), Some(SHIM));
    let ours = settings.hooks_dirs.iter().filter(|dir| *dir == HOOKS);
    assert_eq!(ours.count(), 1);
    assert!(
        before
            .hooks_dirs
            .iter()
            .all(|dir| settings.hooks_dirs.contains(dir))
    );
});
