//! The hook files that are shipped, under podman; only the paths in them are the test's own.

use crate::case::{Case, each};
use crate::cgroups::hierarchy;
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::world::{Kind, World, binary};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::HookFiles, Need::Cpus(2)];
    each(
        Engine::podman(),
        "hookfiles::pin_what_asks_and_nothing_else",
        needs,
        pin_what_asks,
    )
}

/// The shipped files, from `PINFOLD_TEST_HOOKS` or the source tree.
pub(crate) fn files() -> Vec<PathBuf> {
    let source = || Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks");
    let dir = std::env::var_os("PINFOLD_TEST_HOOKS").map_or_else(source, PathBuf::from);
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let json = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    };
    entries.map(|entry| entry.path()).filter(json).collect()
}

fn pin_what_asks(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let pinned =
        Container::prepare_with_hook_files(world, engine, Plan::pinned("a", "dp"), |dir| {
            fill(world, dir)
        });
    pinned.launch().ok();
    assert_eq!(pinned.affinity(), "1");
    pinned.assert_confined_to("1");
    let plain =
        Container::prepare_with_hook_files(world, engine, Plan::plain("b"), |dir| fill(world, dir));
    plain.launch().ok();
    assert_eq!(plain.affinity(), hierarchy().all_cpus());
    assert_eq!(world.claims().len(), 1);
    pinned.end_by("TERM");
    pinned.delete();
    world.assert_all_free("after rm");
}

/// Copies the shipped files, with the paths of this test.
fn fill(world: &World, dir: &Path) {
    let mut stages = Vec::new();
    for path in files() {
        let text = std::fs::read_to_string(&path).expect("read a hook file");
        let mut file: Value = serde_json::from_str(&text).expect("a hook file is JSON");
        assert_eq!(file["hook"]["timeout"], 30, "{}", path.display());
        stages.extend(
            file["stages"]
                .as_array()
                .expect("stages is a list")
                .iter()
                .cloned(),
        );
        file["hook"]["path"] = json!(binary());
        let args = file["hook"]["args"].as_array_mut().expect("args is a list");
        args.extend(world.options().into_iter().map(Value::from));
        std::fs::write(
            dir.join(path.file_name().expect("a name")),
            file.to_string(),
        )
        .expect("write a hook file");
    }
    stages.sort_by_key(Value::to_string);
    assert_eq!(
        stages,
        ["createRuntime", "poststop"],
        "one file per stage, and never prestart beside createRuntime"
    );
}
