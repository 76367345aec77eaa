//! `examples/compose.yaml` as podman-compose runs it.

use crate::case::{Case, each};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::world::{Kind, World};
use serde_json::json;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2), Need::PodmanCompose, Need::Busybox];
    // The file knows of no runtime and of no driver: one of each will do.
    let engine = Engine::podman().into_iter().take(1).collect();
    each(engine, "compose::the_example_is_pinned", needs, example)
}

fn example(world: &World, engine: Engine) {
    world.pool("dataplane", Kind::Exclusive, &["1"]);
    let container = Container::prepare(world, engine, Plan::pinned("unused", "dataplane"));
    let project = world.dir.join("shop");
    let file = project.join("compose.yaml");
    let podman = wrapped(&container, &world.dir);
    std::fs::create_dir_all(project.join("image/bin")).expect("make the image's directory");
    let busybox = project.join("image/bin/busybox");
    std::fs::copy("/bin/busybox", busybox).expect("copy busybox");
    std::fs::write(&file, include_str!("../../../examples/compose.yaml")).expect("write the file");
    let tar = project.join("image.tar");
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(project.join("image")).arg("-cf");
    process::run(pack.arg(&tar).arg(".")).ok();
    let mut import = Command::new(&podman);
    process::run(import.arg("import").arg(&tar).arg("localhost/box")).ok();
    let compose = |arguments: &[&str]| -> Ran {
        let mut compose = Command::new("podman-compose");
        compose.current_dir(&project).arg("--podman-path");
        process::run(compose.arg(&podman).args(arguments))
    };
    let up = compose(&["up", "-d"]).ok();
    let claims = world.claims();
    assert_eq!(claims.len(), 1, "{up}");
    assert_eq!(
        (&claims[0]["pool"], &claims[0]["cpus"]),
        (&json!("dataplane"), &json!("1"))
    );
    let name = claims[0]["names"]["name"].as_str().unwrap_or_default();
    assert!(name.starts_with("shop"), "{name}: {up}");
    let owner = claims[0]["owner"]["pid"].as_i64().expect("it has a pid");
    assert_eq!(process::affinity(owner.try_into().expect("a pid")), "1");
    compose(&["down", "-t", "0"]).ok();
    world.wait_until_free();
}

/// A program that is podman with the options of tests, as podman-compose knows of none. It makes
/// no networks: a test machine may have none.
fn wrapped(container: &Container<'_>, dir: &Path) -> std::path::PathBuf {
    let podman = container.podman();
    let conf = dir.join("compose.conf");
    let limits = "default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]";
    let settings = format!(
        "[containers]\n{limits}\nseccomp_profile = \"unconfined\"\n[engine]\nlock_type = \"file\"\n"
    );
    std::fs::write(&conf, settings).expect("write containers.conf");
    let words = std::iter::once(podman.get_program()).chain(podman.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let script = format!(
        r#"#!/bin/sh
[ "$1" != network ] || exit 0
for word; do
    shift
    case $skip$word in
        --net | --network | --network-alias) skip=skip ;;
        --net=* | --network=* | --network-alias=*) ;;
        skip*) skip= ;;
        run | create) set -- "$@" "$word" --network=none ;;
        *) set -- "$@" "$word" ;;
    esac
done
CONTAINERS_CONF='{}' exec {} "$@"
"#,
        conf.display(),
        words.join(" ")
    );
    let path = dir.join("podman");
    std::fs::write(&path, script).expect("write the program");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("make it a program");
    path
}
