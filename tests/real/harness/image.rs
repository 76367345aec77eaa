//! An image that holds the probe and nothing else, as the archive that `docker save` writes.

use crate::daemon::Daemon;
use crate::process;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image's name. It names a registry that is none: whoever asks for it must have it already.
pub(crate) const NAME: &str = "pinfold.invalid/probe:1";

/// Writes the archive. Without a command of its own a container of it waits, as a pod's pause
/// container does.
pub(crate) fn archive(daemon: &Daemon) -> PathBuf {
    let dir = daemon.dir.join("image");
    std::fs::create_dir(&dir).expect("make a directory for the image");
    tar(&daemon.rootfs(), &dir.join("layer.tar"), &["."]);
    let sum = process::run(Command::new("sha256sum").arg(dir.join("layer.tar")))
        .ok()
        .stdout;
    let layer = sum.split(' ').next().expect("sha256sum tells a sum");
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": ["/probe", "--wait"], "Env": ["PATH=/"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    std::fs::write(dir.join("config.json"), config.to_string()).expect("write the configuration");
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).expect("write the manifest");
    let archive = dir.join("image.tar");
    tar(
        &dir,
        &archive,
        &["manifest.json", "config.json", "layer.tar"],
    );
    archive
}

fn tar(dir: &Path, archive: &Path, members: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "-cf"])
        .arg(archive)
        .arg("-C")
        .arg(dir)
        .args(members);
    process::run(&mut tar).ok();
}
