//! docker's `daemon.json`: installing takes effect, doing it twice is doing it once, and taking it
//! back leaves nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::engines::docker;

const SHIM: &str = "/usr/local/bin/pinfold-runtime";

fuzz_target!(|text: &str| {
    let Ok(installed) = docker::add(text, SHIM) else {
        return;
    };
    let wiring = docker::read(&installed).expect("what was written can be read");
    assert_eq!(wiring.shim.as_deref(), Some(SHIM));
    assert_eq!(
        docker::add(&installed, SHIM).as_ref().ok(),
        Some(&installed)
    );
    let had_it = value(text)["runtimes"].get("pinfold").is_some();
    if let Ok(Some(removed)) = docker::remove(&installed, Some(text)) {
        let left = docker::read(&removed).expect("what is left can be read");
        // What was there before is left as it was.
        if !had_it {
            assert_eq!(left.shim, None);
            assert_eq!(value(&removed), value(text), "{text:?}");
        }
    }
});

/// The settings of a file; an empty one has none.
fn value(text: &str) -> serde_json::Value {
    let text = text.trim_start_matches('\u{feff}').trim();
    let empty = || serde_json::json!({});
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Null) | Err(_) => empty(),
        Ok(value) => value,
    }
}
