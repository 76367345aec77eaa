//! NRI, where `pinfold-node` serves it: a container goes on as it is while the plugin is away.

use std::ffi::OsString;

use anyhow::Result;

use super::{Report, Scope};
use crate::engines::Engine;
use crate::engines::nri::{NriSettings, PLUGIN};
use crate::files;
use crate::host::Host;
use crate::install;
use crate::process;

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
    if !is_served(scope.host())? {
        return Ok(());
    }
    let configuration = install::containerd_configuration(&scope.place(Engine::Containerd))?;
    let settings = NriSettings::of(&configuration.files);
    if settings.is_off == Some(true) {
        report.fault(
            WHAT,
            "containerd has NRI off, so pinfold-node pins no pod that asks by annotation",
            "set disable = false in the table of io.containerd.nri.v1.nri",
        );
    } else if settings.refuses_us() {
        report.fault(
            WHAT,
            "containerd's validator refuses each container to which pinfold-node adds hooks",
            "set reject_oci_hook_adjustment = false in the table of default_validator",
        );
    } else if settings.requires_us() {
        report.ok(
            WHAT,
            "containerd makes no container while pinfold-node is away",
        );
    } else {
        let text = "NRI fails open: while pinfold-node is away, a pod that asks for CPUs by \
                    annotation runs unpinned";
        report.warn(
            WHAT,
            text,
            format!(
                "name {PLUGIN} in required_plugins of containerd's default_validator (2.2 or \
                 later), or give such pods the annotation {REQUIRED}: '[\"{PLUGIN}\"]'"
            ),
        );
    }
    Ok(())
}

/// Does a process of the machine's serve as our plugin?
fn is_served(host: &Host) -> Result<bool> {
    let names = files::directories_in(&host.processes())?;
    let mut pids = names.iter().filter_map(|name| name.parse().ok());
    let serves =
        |pid| is_plugin(&process::command_line(host, pid)) && process::is_the_machines(host, pid);
    Ok(pids.any(serves))
}

fn is_plugin(line: &[OsString]) -> bool {
    let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
    let program = words.first().and_then(|word| word.rsplit('/').next());
    program == Some("pinfold-node") && words.contains(&"--nri")
}
