//! A container's state: what it surely lacks is not among its annotations, and what is used of it
//! is in bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::oci::State;

const PREFIX: &str = "pinfold.io/";

fuzz_target!(|text: &str| {
    let Ok(state) = State::read(text.as_bytes()) else {
        return;
    };
    if let Ok(id) = state.id().map(|id| id.as_str()) {
        assert!(!id.is_empty() && id.len() <= 200 && !id.contains('/') && !id.contains(".."));
    }
    assert!(!state.shown_id().contains(char::is_control));
    if let Ok(pid) = state.first_process() {
        assert!(pid > 0);
    }
    if let Ok(ours) = state.annotations(|key| key.starts_with(PREFIX)) {
        assert!(ours.keys().all(|key| key.starts_with(PREFIX)));
        assert!(ours.is_empty() || !state.surely_lacks(PREFIX));
    }
});
