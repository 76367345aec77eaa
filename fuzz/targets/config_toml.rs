//! Our own `config.toml`: whatever is in it, reading it ends, and an error is one line without
//! control characters.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pinfold::config::{ConfigFile, Plain};
use pinfold::host::Host;
use pinfold_fuzz::Scratch;

static ROOT: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|text: &str| {
    ROOT.put("etc/pinfold/config.toml", text.as_bytes());
    let host = Host::new(ROOT.path());
    let whole = ConfigFile::load(&host, None);
    let plain = Plain::load(&host);
    // A sound file has sound parts, and they are the same.
    if let Ok(config) = whole {
        let plain = plain.expect("the whole file can be read");
        assert_eq!(config.runtime.unwrap_or_default(), plain.runtime);
        assert_eq!(config.run_dir, plain.run_dir);
    }
});
