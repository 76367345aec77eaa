//! A runtime that gives every container the hooks of a file: for engines that have no place of
//! their own for hooks.
//!
//! The test program itself is that runtime, called as `real as-runtime HOOKS RUNTIME ARGUMENT…`.

use crate::bundle::{self, Hook};
use crate::world::World;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The word by which the test program knows that it is called as a runtime.
pub(crate) const VERB: &str = "as-runtime";

/// Writes a runtime of this name that adds `hooks` to what it is given and then is `runtime`.
pub(crate) fn runtime(world: &World, name: &str, runtime: &Path, hooks: &[Hook]) -> PathBuf {
    let dir = world.dir.join("runtimes");
    std::fs::create_dir_all(&dir).expect("make a directory for runtimes");
    let (path, file) = (dir.join(name), dir.join(format!("{name}.json")));
    std::fs::write(&file, bundle::stages(hooks).to_string()).expect("write the hooks");
    let tests = std::env::current_exe().expect("the test program has a path");
    let (tests, file, runtime) = (tests.display(), file.display(), runtime.display());
    let script = format!("#!/bin/sh\nexec {tests} {VERB} {file} {runtime} \"$@\"\n");
    std::fs::write(&path, script).expect("write the runtime");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod the runtime");
    path
}

/// Adds the hooks where a container is created, and becomes the runtime.
pub(crate) fn main(arguments: &[OsString]) {
    let [hooks, runtime, rest @ ..] = arguments else {
        panic!("{VERB} wants a file of hooks and a runtime");
    };
    if rest.iter().any(|argument| argument == "create") {
        let bundle = rest
            .iter()
            .skip_while(|argument| *argument != "--bundle")
            .nth(1);
        add(
            Path::new(hooks),
            Path::new(bundle.expect("create names its bundle")),
        );
    }
    let error = Command::new(runtime).args(rest).exec();
    panic!("run {runtime:?}: {error}");
}

fn add(hooks: &Path, bundle: &Path) {
    let path = bundle.join("config.json");
    let read = |path: &Path| -> Value {
        let text = std::fs::read_to_string(path).expect("read JSON");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut config = read(&path);
    for (stage, ours) in read(hooks).as_object().expect("hooks are an object") {
        let there = &mut config["hooks"][stage];
        let mut all = there.as_array().cloned().unwrap_or_default();
        all.extend(ours.as_array().cloned().unwrap_or_default());
        *there = all.into();
    }
    std::fs::write(&path, config.to_string()).expect("write config.json");
}
