//! Our own `config.toml`: whatever is in it, reading it ends, and an error is one line without control characters.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pinfold::config::{Config, Runtime};
use pinfold::host::Host;
use pinfold_fuzz::Scratch;

static ROOT: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|text: &str| {
    ROOT.put("etc/pinfold/config.toml", text.as_bytes());
    let host = Host::new(ROOT.path());
    let whole = Config::load(&host, None);
    let runtime = Runtime::load(&host);
    // A sound file has a sound part, and the part is the same.
    if let Ok(config) = whole {
        let runtime = runtime.expect("the whole file can be read");
        assert_eq!(config.runtime.unwrap_or_default(), runtime);
    }
});
