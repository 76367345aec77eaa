//! The shim: no error lets a container start elsewhere than on its CPUs, or keeps CPUs without one.

use crate::campaign::{Ending, Scene, campaign, readers_go, short_campaign};
use crate::cases::{Case, Need, plain};
use crate::process::{self, Running};
use crate::world::{Kind, Standin, World, binary, state};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("errors::shim_create", needs, create),
        plain("errors::shim_create_otherwise", needs, create_otherwise),
        plain("errors::shim_create_of_others", needs, create_of_others),
        plain("errors::shim_create_whose_reader_is_gone", needs, readers),
        plain("errors::shim_delete", needs, delete),
    ]
}

/// A mount namespace with the product's two programs, its configuration, and a runtime that says
/// when it is run.
fn machine(world: &World) -> Running {
    let dir = world.dir.display();
    let script = format!(
        "set -e; mkdir {dir}/upper {dir}/work
        mount -t overlay -o lowerdir=/etc,upperdir={dir}/upper,workdir={dir}/work overlay /etc
        mount -t tmpfs -o mode=0755 none /usr/local/bin
        cp {binary} /usr/local/bin/pinfold; ln -s pinfold /usr/local/bin/pinfold-runtime
        printf '#!/bin/sh\\ncase \"$*\" in *features*) ;; *) touch {dir}/ran;; esac\\n' >/usr/local/bin/runc
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

/// A bundle, and what became of it.
struct Place<'w> {
    world: &'w World,
    holder: Running,
    bundle: PathBuf,
    /// There once the runtime was run.
    ran: PathBuf,
    original: String,
}

impl<'w> Place<'w> {
    fn new(world: &'w World, annotations: Value) -> Place<'w> {
        let original = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": { "args": ["true"], "cwd": "/", "env": ["PATH=/bin"] },
            "annotations": annotations,
            "linux": { "cgroupsPath": format!("/{}-shim", world.tag) },
        });
        Place {
            world,
            holder: machine(world),
            bundle: world.dir.join("bundle"),
            ran: world.dir.join("ran"),
            original: original.to_string(),
        }
    }

    fn config(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    fn arrange(&self) {
        self.world.empty();
        self.world.pool("dp", Kind::Exclusive, &["1"]);
        let _ = std::fs::remove_dir_all(&self.bundle);
        let _ = std::fs::remove_file(&self.ran);
        std::fs::create_dir(&self.bundle).expect("make a bundle");
        std::fs::write(self.config(), &self.original).expect("write config.json");
    }

    /// The shim, with `BUNDLE` in its words put right.
    fn runtime(&self, words: &[&str]) -> Command {
        let namespace = format!("/proc/{}/ns/mnt", self.holder.pid());
        let namespace = File::open(namespace).expect("open the namespace");
        let mut command = Command::new("/usr/local/bin/pinfold-runtime");
        let bundle = self.bundle.display().to_string();
        let words = words.iter().map(|word| word.replace("BUNDLE", &bundle));
        command.env_clear().args(words).current_dir(&self.bundle);
        let enter = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNS)?);
        // SAFETY: the closure makes one system call, on a descriptor that it owns.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// A container that asks.
    fn asking(&self, words: &[&str]) -> Scene<'_> {
        self.arrange();
        Scene {
            command: self.runtime(words),
            input: String::new(),
            judge: Box::new(|ending| self.judge(ending)),
            finish: Box::new(|| {
                self.world.reconcile();
                self.world.assert_all_free("at the end");
            }),
        }
    }

    fn judge(&self, ending: &Ending) {
        let text = std::fs::read_to_string(self.config()).expect("there is a configuration");
        let is_pinned = text.contains("\"cpus\":\"1\"") && text.contains("--reservation");
        assert!(
            is_pinned || text == self.original,
            "a torn configuration: {text}"
        );
        let has_run = self.ran.exists();
        if has_run {
            assert!(is_pinned, "it runs unpinned: {ending:?}");
        }
        assert!(has_run || !ending.is_success(), "not run: {ending:?}");
        if ending.is_clean_failure() && !has_run {
            let claims = self.world.claims();
            let is_said = ending.stderr.contains("give back");
            assert!(
                claims.is_empty() || is_said,
                "{claims:?} is left: {ending:?}"
            );
        }
    }
}

fn request() -> Value {
    json!({ "pinfold.io/pool": "dp" })
}

fn create(world: &World) {
    let place = Place::new(world, request());
    campaign(world, "pinfold-runtime create", || {
        place.asking(&["create", "--bundle", "BUNDLE", "a"])
    });
}

/// The other ways to say the same.
fn create_otherwise(world: &World) {
    let place = Place::new(world, request());
    let log = world.dir.join("log").display().to_string();
    let lines: [&[&str]; 3] = [
        &["--root", "/run/runc", "create", "a"],
        &["run", "-b", "BUNDLE", "a"],
        &[
            "--log",
            &log,
            "--log-format=json",
            "create",
            "-b=BUNDLE",
            "a",
        ],
    ];
    for line in lines {
        let name = format!("pinfold-runtime {}", line.join(" "));
        short_campaign(world, &name, || place.asking(line));
    }
}

fn readers(world: &World) {
    let place = Place::new(world, request());
    readers_go(world, "pinfold-runtime create", || {
        place.asking(&["create", "--bundle", "BUNDLE", "a"])
    });
}

/// I4: what asks for nothing becomes the runtime, with its configuration as it is.
fn create_of_others(world: &World) {
    let place = Place::new(world, json!({}));
    short_campaign(world, "pinfold-runtime create of others", || {
        place.arrange();
        let place = &place;
        Scene {
            command: place.runtime(&["create", "--bundle", "BUNDLE", "a"]),
            input: String::new(),
            judge: Box::new(move |ending| {
                let has_run = place.ran.exists();
                assert!(has_run || !ending.is_success(), "not run: {ending:?}");
                let text = std::fs::read_to_string(place.config()).expect("a configuration");
                assert_eq!(text, place.original, "{ending:?}");
                place.world.assert_all_free("it asked for nothing");
            }),
            finish: Box::new(|| {}),
        }
    });
}

/// What a container used is read before its end, and keeps no container from its end.
fn delete(world: &World) {
    let place = Place::new(world, request());
    campaign(world, "pinfold-runtime delete", || {
        place.arrange();
        let standin = Standin::new(world, "a");
        let asked = state("a", standin.pid, request());
        world.hook("createRuntime", &asked).ok();
        let (place, claim) = (&place, world.claim_of("a"));
        // The runtime that made it says so.
        let root = world.dir.join("root");
        std::fs::create_dir_all(root.join("a")).expect("make a directory");
        std::fs::write(root.join("a/state.json"), "{}").expect("write a state");
        let root = root.display().to_string();
        Scene {
            command: place.runtime(&["--root", &root, "delete", "a"]),
            input: String::new(),
            judge: Box::new(move |ending| {
                let has_run = place.ran.exists();
                assert!(has_run || !ending.is_success(), "not run: {ending:?}");
                // The program has begun, and the runtime is there to be executed.
                let is_ours = ending.code == Some(1) && ending.is_strict;
                let is_runtime = ending.stderr.contains("execute");
                assert!(has_run || !is_ours || is_runtime, "held up: {ending:?}");
                assert_eq!(world.claim_of("a"), claim, "{ending:?}");
            }),
            finish: Box::new(move || {
                let group = standin.die();
                world.reconcile();
                world.assert_all_free("at the end");
                let _ = std::fs::remove_dir(group);
            }),
        }
    });
}
