//! A claim that can be read is the same after it is written; one that cannot be read is an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::claims::Claim;

fuzz_target!(|text: &str| {
    let Ok(claim) = serde_json::from_str::<Claim>(text) else {
        return;
    };
    let written = serde_json::to_string(&claim).expect("a claim can be written");
    let read: Claim = serde_json::from_str(&written).expect("it can be read again");
    assert_eq!(read, claim);
});
