//! The shim: no error lets a container start elsewhere than on its CPUs, or keeps CPUs without one.

use crate::campaign::{Scene, campaign};
use crate::cases::{Case, Need, plain};
use crate::process::{self, Running};
use crate::world::{Kind, World, binary};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![plain("errors::shim_create", needs, shim_create)]
}

/// A mount namespace with the product's two programs, its configuration, and a runtime that says when it is run.
fn machine(world: &World) -> Running {
    let dir = world.dir.display();
    let script = format!(
        "set -e; mkdir {dir}/upper {dir}/work
        mount -t overlay -o lowerdir=/etc,upperdir={dir}/upper,workdir={dir}/work overlay /etc
        mount -t tmpfs -o mode=0755 none /usr/local/bin
        cp {binary} /usr/local/bin/pinfold; ln -s pinfold /usr/local/bin/pinfold-runtime
        printf '#!/bin/sh\\ncase \"$*\" in *create*) touch {dir}/ran;; esac\\n' >/usr/local/bin/runc
        chmod 755 /usr/local/bin/runc; mkdir -p /etc/pinfold
        printf 'conf-dir = \"{conf}\"\\nrun-dir = \"{run}\"\\n[runtime]\\npath = \"/usr/local/bin/runc\"\\n' >/etc/pinfold/config.toml
        touch {dir}/ready; exec sleep infinity",
        binary = binary().display(),
        conf = world.conf.display(),
        run = world.run.display(),
    );
    let holder = Running::start(
        Command::new("unshare").args(["-m", "sh", "-c", &script]),
        b"",
    );
    let ready = world.dir.join("ready");
    process::eventually("the machine is ready", || ready.exists().then_some(()));
    holder
}

fn shim_create(world: &World) {
    let holder = machine(world);
    let (bundle, ran) = (world.dir.join("bundle"), world.dir.join("ran"));
    let config = bundle.join("config.json");
    let original = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "args": ["true"], "cwd": "/", "env": ["PATH=/bin"] },
        "annotations": { "pinfold.io/pool": "dp" },
        "linux": { "cgroupsPath": format!("/{}-shim", world.tag) },
    })
    .to_string();
    campaign(world, "pinfold-runtime create", || {
        world.empty();
        world.pool("dp", Kind::Exclusive, &["1"]);
        let _ = std::fs::remove_dir_all(&bundle);
        let _ = std::fs::remove_file(&ran);
        std::fs::create_dir(&bundle).expect("make a bundle");
        std::fs::write(&config, &original).expect("write config.json");
        let namespace = format!("/proc/{}/ns/mnt", holder.pid());
        let namespace = File::open(namespace).expect("open the namespace");
        let mut command = Command::new("/usr/local/bin/pinfold-runtime");
        command
            .env_clear()
            .args(["create", "--bundle"])
            .arg(&bundle)
            .arg("a");
        let enter = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNS)?);
        // SAFETY: the closure makes one system call, on a descriptor that it owns.
        unsafe { command.pre_exec(enter) };
        let (ran, config, original) = (&ran, &config, &original);
        Scene {
            command,
            input: String::new(),
            judge: Box::new(move |ending| {
                let text = std::fs::read_to_string(config).expect("there is a configuration");
                let is_pinned = text.contains("\"cpus\":\"1\"") && text.contains("--reservation");
                assert!(
                    is_pinned || text == *original,
                    "a torn configuration: {text}"
                );
                if ran.exists() {
                    assert!(is_pinned, "it runs unpinned: {ending:?}");
                }
                assert!(ran.exists() || !ending.is_success(), "not run: {ending:?}");
                if ending.is_clean_failure() && !ran.exists() {
                    let claims = world.claims();
                    let is_said = ending.stderr.contains("give back");
                    assert!(
                        claims.is_empty() || is_said,
                        "{claims:?} is left: {ending:?}"
                    );
                }
            }),
            finish: Box::new(|| {
                world.reconcile();
                world.assert_all_free("at the end");
            }),
        }
    });
}
