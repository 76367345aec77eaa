//! What docker's own daemon takes for a configuration, `pinfold install docker` takes; what it
//! writes, dockerd takes.

use crate::case::{Case, plain};
use crate::needs::Need;
use crate::process;
use crate::site::Site;
use crate::world::{Kind, World};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Docker(23)];
    vec![plain(
        "dockerd_takes::what_install_takes_and_writes",
        needs,
        what_install_takes,
    )]
}

fn what_install_takes(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let site = Site::new(world);
    let file = site.path("docker/daemon.json");
    let validates = || {
        let mut dockerd = site.command("dockerd");
        dockerd.args(["--validate", "--config-file", "/etc/docker/daemon.json"]);
        process::run(&mut dockerd).code() == Some(0)
    };
    for (text, is_taken) in [
        ("", true),
        (" \n\t", true),
        ("null", true),
        ("{}", true),
        ("\u{feff}{}", true),
        ("\u{feff}", true),
        ("\u{feff}{\n\t\"debug\": true\n}\n", true),
        ("{\"debug\": true, \"debug\": false}", true),
        ("{\"runtimes\": null}", true),
        (
            "{\"runtimes\": {\"pinfold\": {\"path\": \"/opt/theirs\"}}}",
            true,
        ),
        ("{", false),
        ("[]", false),
        ("7", false),
        ("{} {}", false),
        ("{\"no-such-setting\": 1}", false),
        ("{\"debug\": \"maybe\"}", false),
        ("{\"runtimes\": []}", false),
    ] {
        site.write("docker/daemon.json", text);
        assert_eq!(validates(), is_taken, "dockerd and {text:?}");
        let ran = process::run(&mut site.pinfold(&["install", "docker"]));
        assert_eq!(ran.code() == Some(0), is_taken, "{text:?}: {ran}");
        let read = || std::fs::read_to_string(&file).expect("read daemon.json");
        if !is_taken {
            assert!(ran.stderr.contains("daemon.json"), "{text:?}: {ran}");
            assert_eq!(read(), text, "a refusal changes nothing");
            continue;
        }
        assert!(read().contains("pinfold-runtime"), "{text:?}: {}", read());
        assert!(validates(), "dockerd and what was written: {}", read());
        process::run(&mut site.pinfold(&["uninstall", "docker"])).ok();
        assert_eq!(read(), text);
    }
}
