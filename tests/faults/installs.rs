//! `install`, `uninstall` and `cdi`, on a tree of files of its own: an engine's own file is whole
//! at every moment, what says that it is done is done, and what failed is done by doing it again.

use crate::campaign::{Ending, Scene, short_campaign};
use crate::cases::{Case, Need, plain};
use crate::process;
use crate::world::{Kind, World, binary, files_below};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root];
    vec![
        plain("errors::install_podman", needs, |world| {
            installs(world, "podman");
        }),
        plain("errors::install_crio", needs, |world| {
            installs(world, "crio");
        }),
        plain("errors::install_containerd", needs, |world| {
            installs(world, "containerd");
        }),
        plain("errors::install_docker", needs, |world| {
            installs(world, "docker");
        }),
        plain("errors::uninstall_podman", needs, |world| {
            uninstalls(world, "podman");
        }),
        plain("errors::uninstall_crio", needs, |world| {
            uninstalls(world, "crio");
        }),
        plain("errors::uninstall_containerd", needs, |world| {
            uninstalls(world, "containerd");
        }),
        plain("errors::uninstall_docker", needs, |world| {
            uninstalls(world, "docker");
        }),
        plain("errors::install_dry_run", needs, trial),
        plain("errors::cdi", needs, cdi),
    ]
}

/// What engines have before, by path below the root.
const BEFORE: [(&str, &str); 2] = [
    (
        "etc/docker/daemon.json",
        "{\n  \"log-driver\": \"journald\"\n}\n",
    ),
    (
        "etc/containerd/config.toml",
        "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"pause\"\n",
    ),
];

/// A tree of files with our programs in it.
struct Machine<'w> {
    world: &'w World,
    root: PathBuf,
}

/// Files below the root, and what is in them.
type Files = BTreeMap<PathBuf, String>;

impl<'w> Machine<'w> {
    fn new(world: &'w World) -> Machine<'w> {
        let root = world.dir.join("machine");
        let machine = Machine { world, root };
        machine.is_as_before();
        machine
    }

    /// As it was before anything was installed.
    fn is_as_before(&self) {
        let _ = fs::remove_dir_all(&self.root);
        let bin = self.root.join("usr/local/bin");
        fs::create_dir_all(&bin).expect("make a directory");
        let program = bin.join("pinfold");
        fs::write(&program, "#!/bin/sh\n").expect("write a program");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&program, mode).expect("chmod a program");
        symlink("pinfold", bin.join("pinfold-runtime")).expect("make a link");
        for (name, text) in BEFORE {
            let path = self.root.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
            fs::write(path, text).expect("write a file");
        }
    }

    fn files(&self) -> Files {
        let files = files_below(&self.root).into_iter();
        files
            .map(|file| {
                let text = fs::read_to_string(&file).expect("read a file");
                (file, text)
            })
            .collect()
    }

    fn pinfold(&self, line: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.env_clear().current_dir("/").args(line);
        command.arg("--host-root").arg(&self.root);
        command.arg("--conf-dir").arg(&self.world.conf);
        command
    }

    fn runs(&self, line: &[&str]) {
        process::run(&mut self.pinfold(line)).ok();
    }

    /// Success means that the files have become what they were to; whatever failed is done by doing
    /// it again.
    fn comes_to<'a>(
        &'a self,
        line: &'a [&str],
        from: &'a Files,
        to: &'a Files,
    ) -> Box<dyn FnOnce(&Ending) + 'a> {
        Box::new(move |ending| {
            self.assert_whole(&[from, to], ending);
            if ending.is_success() {
                assert_eq!(self.files(), *to, "{ending:?}");
            }
            self.runs(line);
            assert_eq!(self.files(), *to, "done again after {ending:?}");
        })
    }

    /// No file of an engine's is torn: it is one of those that it may be.
    fn assert_whole(&self, may_be: &[&Files], ending: &Ending) {
        for (file, text) in self.files() {
            let is_ours = |file: &Path| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with('.') || name.contains("pinfold")
            };
            let mut may_be = may_be.iter().map(|files| files.get(&file));
            let is_whole = may_be.any(|wanted| wanted == Some(&text));
            assert!(
                is_whole || is_ours(&file),
                "{} is torn: {text:?}: {ending:?}",
                file.display()
            );
        }
    }
}

const BIN: [&str; 2] = ["--bin-dir", "/usr/local/bin"];

fn installs(world: &World, engine: &str) {
    let machine = Machine::new(world);
    let line = [&["install", engine][..], &BIN].concat();
    let before = machine.files();
    machine.runs(&line);
    let after = machine.files();
    assert_ne!(before, after, "it installs nothing");
    short_campaign(world, &line[..2].join(" "), || {
        machine.is_as_before();
        let (machine, line, before, after) = (&machine, &line, &before, &after);
        Scene {
            command: machine.pinfold(line),
            input: String::new(),
            judge: machine.comes_to(line, before, after),
            finish: Box::new(move || {
                machine.runs(&["uninstall", engine]);
                assert_eq!(machine.files(), *before, "taken back");
            }),
        }
    });
}

fn uninstalls(world: &World, engine: &str) {
    let machine = Machine::new(world);
    let line = ["uninstall", engine];
    let before = machine.files();
    let install = [&["install", engine][..], &BIN].concat();
    machine.runs(&install);
    let installed = machine.files();
    short_campaign(world, &line.join(" "), || {
        machine.is_as_before();
        machine.runs(&install);
        let (machine, before, installed) = (&machine, &before, &installed);
        Scene {
            command: machine.pinfold(&line),
            input: String::new(),
            judge: machine.comes_to(&line, installed, before),
            finish: Box::new(|| {}),
        }
    });
}

/// A trial changes nothing.
fn trial(world: &World) {
    let machine = Machine::new(world);
    let line = [&["install", "docker", "--dry-run"][..], &BIN].concat();
    let before = machine.files();
    let expected = process::run(&mut machine.pinfold(&line)).ok().stdout;
    short_campaign(world, "install docker --dry-run", || {
        let (machine, before, expected) = (&machine, &before, &expected);
        Scene {
            command: machine.pinfold(&line),
            input: String::new(),
            judge: Box::new(move |ending| {
                assert_eq!(machine.files(), *before, "{ending:?}");
                if ending.is_success() && ending.stderr.is_empty() && !ending.is_unread {
                    assert_eq!(ending.stdout, *expected, "silently other");
                }
            }),
            finish: Box::new(|| {}),
        }
    });
}

/// The devices follow the pools.
fn cdi(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world);
    let line = [&["cdi"][..], &BIN].concat();
    let before = machine.files();
    machine.runs(&line);
    let after = machine.files();
    short_campaign(world, "cdi", || {
        machine.is_as_before();
        let (machine, line, before, after) = (&machine, &line, &before, &after);
        Scene {
            command: machine.pinfold(line),
            input: String::new(),
            judge: machine.comes_to(line, before, after),
            finish: Box::new(|| {}),
        }
    });
}
