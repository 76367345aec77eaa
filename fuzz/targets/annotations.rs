//! Annotations: a request that is granted is within what the documentation allows, whatever else is
//! there.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use pinfold::request::{Size, from_annotations, is_pool_name};

// Each line is a key and a value, as in `pool=dataplane`; the prefix is put before keys that name
// no domain.
fuzz_target!(|text: &str| {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let key = |key: &str| match key.contains('/') {
        true => key.to_owned(),
        false => format!("pinfold.io/{key}"),
    };
    let annotations: BTreeMap<String, String> = lines
        .map(|(name, value)| (key(name), value.to_owned()))
        .collect();
    match from_annotations(&annotations) {
        Ok(Some(request)) => {
            assert!(is_pool_name(&request.pool));
            let (Size::Lists(number) | Size::Cpus(number)) = request.size;
            assert!((1..=9999).contains(&number));
            assert!(
                annotations
                    .keys()
                    .any(|key| key.starts_with("pinfold.io/pool"))
            );
        }
        Ok(None) => {}
        Err(refusal) => assert!(!refusal.to_string().contains(char::is_control)),
    }
});
