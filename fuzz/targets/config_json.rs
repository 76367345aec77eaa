//! A bundle's `config.json`: pinning it twice is pinning it once, and leaves whatever else is in
//! it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::cpulist::CpuSet;
use pinfold::oci::{Config, Pinning};

fuzz_target!(|text: &str| {
    let Ok(mut config) = Config::parse(text) else {
        return;
    };
    // What is read of it is bounded, and no text of it is printed raw.
    if let Err(refusal) = config.annotations(|key| key.starts_with("pinfold.io/")) {
        assert!(!format!("{refusal:#}").contains(char::is_control));
    }
    let _ = config.ensure_plain_keys();
    assert!(config.devices().len() <= 64);
    let before = config.clone();
    let (lists, cpus): (_, CpuSet) = (["4,12".to_owned()], [4, 12].into_iter().collect());
    let pinning = Pinning {
        program: "/usr/local/bin/pinfold",
        engine: None,
        device: None,
        options: &[],
        nonce: "0",
        lists: &lists,
        cpus: &cpus,
        mems: None,
        has_cgroup: true,
        by_default: false,
    };
    if config.pin(&pinning).is_err() {
        return;
    }
    // Its CPUs are ours now, and no choice of whoever made the bundle, where the container is told
    // of them.
    assert!(config.is_of_an_earlier_start());
    let printed = config.print().expect("what was read can be printed");
    let mut again = Config::parse(&printed).expect("what was printed can be read");
    assert_eq!(again, config);
    assert_eq!(again.cgroups_path(), before.cgroups_path());
    again.pin(&pinning).expect("it was pinned before");
    assert_eq!(again, config);
});
