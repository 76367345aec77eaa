//! The static program that containers run, built once a version of its source.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const SOURCE: &str = include_str!("../../probe/probe.rs");

/// The built probe: `PINFOLD_TEST_PROBE`, or built into the target directory.
pub(crate) fn path() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os("PINFOLD_TEST_PROBE").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (built, built_from) = (dir.join("probe"), dir.join("probe.rs"));
    if built.exists() && std::fs::read_to_string(&built_from).is_ok_and(|source| source == SOURCE) {
        return built;
    }
    let work = tempfile::tempdir_in(dir).expect("make a directory to build the probe in");
    let (source, output) = (work.path().join("probe.rs"), work.path().join("probe"));
    std::fs::write(&source, SOURCE).expect("write the probe's source");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "panic=abort",
    ]);
    rustc
        .args(["-C", "strip=symbols", "--target", &host()])
        .arg("-o")
        .arg(&output)
        .arg(&source);
    crate::process::run(&mut rustc).ok();
    std::fs::rename(&output, &built).expect("put the probe in place");
    std::fs::rename(&source, &built_from).expect("put the probe's source in place");
    built
}

/// The compiler's own target; naming it keeps procedural macros and the probe apart.
fn host() -> String {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let version = crate::process::run(rustc.arg("-vV")).ok().stdout;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}
