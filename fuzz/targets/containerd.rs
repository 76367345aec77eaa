//! containerd's `config.toml`: installing takes effect, is done once, and keeps the file's other
//! settings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::engines::containerd::{ContainerdFile, add, remove};

const SHIM: &str = "/usr/local/bin/pinfold-runtime";

fuzz_target!(|text: &str| {
    let Ok(file) = ContainerdFile::parse(text, None) else {
        return;
    };
    let had_it = file.handler("pinfold").is_some();
    let Ok(installed) = add(std::slice::from_ref(&file), SHIM) else {
        return;
    };
    let after = ContainerdFile::parse(&installed, None).expect("what was written can be read");
    let handler = after.handler("pinfold").expect("it was added");
    assert!(
        handler.binary == SHIM && handler.passes_annotations,
        "{handler:?}"
    );
    let again = add(std::slice::from_ref(&after), SHIM).expect("it was added before");
    assert_eq!(again, installed);
    if let (false, Ok(Some(removed))) = (had_it, remove(&after, None)) {
        let left = ContainerdFile::parse(&removed, None).expect("what is left can be read");
        assert!(
            left.handler("pinfold").is_none(),
            "{text:?}\n{installed}\n{removed}"
        );
    }
});
