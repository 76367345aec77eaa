//! `pinfold-runtime` where our files are broken, where others' keep it waiting, and where it is not
//! told what to become.

use crate::case::{Case, each};
use crate::cases::shim::Scene;
use crate::cgroups::unified_in_the_way;
use crate::engines::{Door, Driver, Engine, Runtime, runtime_path};
use crate::needs::Need;
use crate::process;
use crate::syslog::SysLog;
use crate::world::{Kind, World};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONFIG: &str = "/etc/pinfold/config.toml";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2)];
    let shim = || Engine::by(Door::Shim, Engine::direct());
    [
        each(
            shim(),
            "shim_alone::what_asks_for_nothing_never_depends_on_our_files",
            needs,
            never_depends_on_our_files,
        ),
        each(
            shim(),
            "shim_alone::waits_for_nobody",
            needs,
            waits_for_nobody,
        ),
        each(
            shim(),
            "shim_alone::an_option_that_is_not_known_lets_nothing_past",
            needs,
            unknown_options,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whatever has become of the files and directories that are ours, a container without a request
/// starts and ends, and one with a request is refused in a sentence.
fn never_depends_on_our_files(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let scene = Scene::new(world, engine);
    let pinned = scene.text();
    let plain = pinned.replace("pinfold.io/pool", "other.io/pool");
    let script = |script: &str| {
        let mut command = scene.machine.command("sh");
        command.args(["-ec", script, "sh", CONFIG]);
        process::run(command.args([&world.conf, &world.run])).ok();
    };
    script("cp -p $1 $1.good");
    for (breaks, part) in [
        ("echo '= = =' >>$1", "config.toml: line"),
        ("sed -i '1i [pools.' $1", "config.toml: line 1"),
        ("echo 'colour = 7' >>$1", "unknown field `colour`"),
        ("printf '\\377\\376' >>$1", "valid UTF-8"),
        ("chmod 666 $1", "written by anybody"),
        ("rm $1; mkfifo $1", "neither a file nor a directory"),
        ("rm $1; mkdir $1", "not a regular file"),
        ("rm $1; ln -s $1.good $1", "symbolic link"),
        ("rm $1; ln -s $1 $1", "config.toml"),
        ("mv $2 $2.away; touch $2", "dp"),
        ("mv $2 $2.away", "dp"),
        ("rm -rf $3; touch $3", "dp"),
    ] {
        script(breaks);
        std::fs::write(scene.config(), &plain).expect("write config.json");
        let begun = Instant::now();
        scene.create().ok();
        assert!(begun.elapsed() < Duration::from_secs(60), "{breaks}");
        scene.shim(&["state", "a"]).ok();
        scene.shim(&["start", "a"]).ok();
        scene.shim(&["delete", "-f", "a"]).ok();
        assert_eq!(
            scene.text(),
            plain,
            "its configuration is as it was: {breaks}"
        );
        std::fs::write(scene.config(), &pinned).expect("write config.json");
        let refused = scene.create().exits(1);
        assert!(refused.stderr.contains(part), "{breaks}: {refused}");
        assert!(
            refused.stderr.contains("cannot start container a"),
            "{breaks}: {refused}"
        );
        script(
            "rm -rf $1; cp -p $1.good $1; if [ -e $2.away ]; then rm -rf $2; mv $2.away $2; fi
            [ -d $3 ] || rm -f $3",
        );
    }
    // What can be made out counts, and it is said; a runtime that is not there is none to insist
    // on.
    let mut log = SysLog::mark();
    script("echo '[pools.' >>$1");
    std::fs::write(scene.config(), &plain).expect("write config.json");
    scene.create().ok();
    let told = format!("becomes {}", runtime_path(world, engine.runtime).display());
    log.lines_with(1, &[&told, "config.toml"]);
    script("printf '[runtime]\\npath = \"/no/such\"\\n' >$1");
    // The container is there: who made it is asked, whatever the configuration says.
    if engine.runtime == Runtime::Runc || unified_in_the_way().is_none() {
        scene.shim(&["delete", "-f", "a"]).ok();
        scene.create().ok();
        scene.shim(&["delete", "-f", "a"]).ok();
    }
    script("cp -p $1.good $1");
    scene.shim(&["delete", "-f", "a"]);
    std::fs::write(scene.config(), &pinned).expect("write config.json");
    scene.create().ok();
    scene.delete();
}

/// A configuration that is a FIFO, and a runtime that does not say what it can: a start fails in
/// time, with a sentence.
fn waits_for_nobody(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let scene = Scene::new(world, engine);
    let pinned = scene.text();
    let in_time = |part: &str| {
        let begun = Instant::now();
        let refused = scene.create().exits(1);
        assert!(begun.elapsed() < Duration::from_secs(20), "{refused}");
        assert!(refused.stderr.contains(part), "{refused}");
        world.assert_all_free(part);
    };
    let config = scene.config();
    std::fs::remove_file(&config).expect("remove config.json");
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    in_time("not a regular file");
    std::fs::remove_file(&config).expect("remove the FIFO");
    std::fs::write(&config, &pinned).expect("write config.json");

    let real = runtime_path(world, engine.runtime);
    let real = real.display();
    for (name, hangs) in [
        ("hangs", "exec sleep 1000"),
        ("leaves-a-child", "sleep 1000 & exit 0"),
        ("never-stops", "exec yes"),
    ] {
        let script =
            format!("#!/bin/sh\n[ \"$1\" = features ] && {{ {hangs}; }}\nexec {real} \"$@\"\n");
        becomes(&scene, &write_program(world, name, &script));
        in_time("features");
        // It has nothing to answer for what asks for nothing.
        std::fs::write(&config, pinned.replace("pinfold.io", "other.io")).expect("write it");
        scene.create().ok();
        scene.shim(&["delete", "-f", "a"]).ok();
        std::fs::write(&config, &pinned).expect("write config.json");
    }
}

/// Of a runtime that knows more options than we do.
fn unknown_options(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let scene = Scene::new(world, engine);
    let real = runtime_path(world, engine.runtime);
    // It takes two words that the real one does not know.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --newoption ] && shift 2\nexec {} \"$@\"\n",
        real.display()
    );
    becomes(&scene, &write_program(world, "newer", &script));
    let bundle = scene.bundle.to_str().expect("the path is UTF-8");
    let state = world.dir.join("state");
    let root = state.to_str().expect("the path is UTF-8");
    let create = |option: &[&str]| {
        let mut command = scene.machine.command("/usr/local/bin/pinfold-runtime");
        command.args(option).args(["--root", root]);
        if engine.driver == Driver::Systemd {
            command.arg("--systemd-cgroup");
        }
        process::run(command.args(["create", "-b", bundle, "a"]))
    };
    create(&["--newoption", "value"]).ok();
    assert_eq!(process::affinity(scene.first_process()), "1");
    scene.delete();
    let run = |words: &[&str]| {
        let mut command = scene.machine.command("/usr/local/bin/pinfold-runtime");
        process::run(command.args(words))
    };
    let doubtful = run(&["--newoption", "state", "create", "-b", bundle, "a"]).exits(1);
    assert!(doubtful.stderr.contains("OPTION=VALUE"), "{doubtful}");
    world.assert_all_free("after a refusal");
}

fn write_program(world: &World, name: &str, script: &str) -> PathBuf {
    let path = world.dir.join(name);
    std::fs::write(&path, script).expect("write a program");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod it");
    path
}

fn becomes(scene: &Scene<'_>, runtime: &Path) {
    let edit = format!(
        "sed -i 's,^path = .*,path = \"{}\",' {CONFIG}",
        runtime.display()
    );
    scene.machine.run("sh", &["-ec", &edit]).ok();
}
