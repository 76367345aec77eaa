//! NRI, where `pinfold-node` serves it: a container goes on as it is while the plugin is away.

use std::os::unix::fs::FileTypeExt;

use anyhow::Result;

use super::{Report, Scope};
use crate::engines::Engine;
use crate::engines::nri::{NriSettings, PLUGIN, SOCKET};
use crate::files;
use crate::host::Host;
use crate::install;
use crate::process;
use crate::text::Shown;

const WHAT: &str = "nri";

/// The annotation by which a pod says which plugins it needs (containerd/nri:
/// pkg/plugin/annotations.go).
const REQUIRED: &str = "required-plugins.noderesource.dev";

pub(super) fn check(scope: &Scope<'_>, report: &mut Report) {
    if let Err(error) = look(scope, report) {
        report.error(WHAT, &error);
    }
}

fn look(scope: &Scope<'_>, report: &mut Report) -> Result<()> {
    let host = scope.host();
    let Some(plugin) = command_line_of(host, is_plugin)? else {
        return Ok(());
    };
    let named = value_of(&plugin, "--nri-socket");
    let served = Served {
        socket: named.unwrap_or_else(|| SOCKET.to_owned()),
        engine: engine_in_use(host)?,
    };
    let settings = match served.engine {
        Some(Engine::Crio) => install::crio_files(&scope.place(Engine::Crio))?.all.nri,
        _ => {
            let place = scope.place(Engine::Containerd);
            NriSettings::of(&install::containerd_configuration(&place)?.files)
        }
    };
    let entry = files::entry_if_there(&host.resolve(&served.socket)?)?;
    let has_socket = entry.is_some_and(|entry| entry.file_type().is_socket());
    served.report(&settings, has_socket, report);
    Ok(())
}

/// What our plugin serves.
struct Served {
    /// The path of the socket that it connects to.
    socket: String,
    engine: Option<Engine>,
}

impl Served {
    /// Says how the engine is with NRI, and what to do, as one finding.
    fn report(&self, settings: &NriSettings, has_socket: bool, report: &mut Report) {
        let (engine, words) = match self.engine {
            Some(Engine::Crio) => ("CRI-O", &CRIO),
            _ => ("containerd", &CONTAINERD),
        };
        if settings.is_off == Some(true) {
            let text = format!(
                "{engine} has NRI off, so pinfold-node pins no pod that asks by annotation"
            );
            report.fault(WHAT, text, words.turn_on);
        } else if !has_socket {
            let text = format!(
                "{engine} has no NRI socket at {}, so pinfold-node pins no pod that asks by \
                 annotation{}",
                Shown(&self.socket),
                match settings.is_off {
                    None => words.by_default,
                    Some(_) => "",
                }
            );
            let elsewhere = settings.socket.as_ref();
            let elsewhere = elsewhere.filter(|socket| **socket != self.socket);
            let remedy = match (elsewhere, settings.is_off) {
                (Some(socket), _) => format!("give pinfold-node --nri-socket {}", Shown(socket)),
                (None, None) => format!("{}, and restart it", words.turn_on),
                (None, Some(_)) => format!("restart {engine}"),
            };
            report.fault(WHAT, text, remedy);
        } else if settings.refuses_us() {
            let text = format!(
                "{engine}'s validator refuses each container to which pinfold-node adds hooks"
            );
            report.fault(WHAT, text, words.let_hooks);
        } else if settings.requires_us() {
            let text = format!("{engine} makes no container while pinfold-node is away");
            report.ok(WHAT, text);
        } else {
            let text = format!(
                "{engine} has NRI on, which fails open: while pinfold-node is away, a pod that \
                 asks for CPUs by annotation runs unpinned"
            );
            let remedy = format!(
                "{}, or give such pods the annotation {REQUIRED}: '[\"{PLUGIN}\"]'",
                words.require
            );
            report.warn(WHAT, text, remedy);
        }
    }
}

/// How an engine is told.
struct Words {
    /// What holds where its configuration does not say.
    by_default: &'static str,
    turn_on: &'static str,
    let_hooks: &'static str,
    require: &'static str,
}

const CONTAINERD: Words = Words {
    by_default: ": containerd 1.7 has NRI off by default, 2.x has it on",
    turn_on: "set disable = false in the table of io.containerd.nri.v1.nri",
    let_hooks: "set reject_oci_hook_adjustment = false in the table of default_validator",
    require: "name pinfold in required_plugins of default_validator, with enable = true, in \
              containerd's table of io.containerd.nri.v1.nri (2.2 or later)",
};

const CRIO: Words = Words {
    by_default: ": CRI-O has NRI on by default from 1.30 on",
    turn_on: "set enable_nri = true in the table crio.nri",
    let_hooks: "set nri_validator_reject_oci_hook_adjustment = false in the table \
                crio.nri.default_validator",
    require: "name pinfold in nri_validator_required_plugins, with nri_enable_default_validator = \
              true, in CRI-O's table crio.nri.default_validator (1.34 or later)",
};

/// The engine that runs pods: CRI-O has no other use, while docker uses containerd as well. Where
/// none runs, the one that is installed.
fn engine_in_use(host: &Host) -> Result<Option<Engine>> {
    for engine in [Engine::Crio, Engine::Containerd] {
        if command_line_of(host, |words| is_program(words, engine.program()))?.is_some() {
            return Ok(Some(engine));
        }
    }
    let mut installed = [Engine::Containerd, Engine::Crio].into_iter();
    Ok(installed.find(|engine| host.program(engine.program()).is_some()))
}

/// The command line of a process of the machine's that is the one meant.
fn command_line_of(host: &Host, is_it: impl Fn(&[&str]) -> bool) -> Result<Option<Vec<String>>> {
    let names = files::directories_in(&host.processes())?;
    for pid in names.iter().filter_map(|name| name.parse().ok()) {
        let line = process::command_line(host, pid);
        let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
        if is_it(&words) && process::is_the_machines(host, pid) {
            return Ok(Some(words.into_iter().map(str::to_owned).collect()));
        }
    }
    Ok(None)
}

fn is_program(words: &[&str], name: &str) -> bool {
    let program = words.first().and_then(|word| word.rsplit('/').next());
    program == Some(name)
}

fn is_plugin(words: &[&str]) -> bool {
    is_program(words, "pinfold-node") && words.contains(&"--nri")
}

/// The value of an option, as its own word or behind `=`.
fn value_of(words: &[String], option: &str) -> Option<String> {
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.strip_prefix(option) {
            Some("") => return rest.next().cloned(),
            Some(value) if value.starts_with('=') => return Some(value[1..].to_owned()),
            _ => {}
        }
    }
    None
}
