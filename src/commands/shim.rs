//! `pinfold-runtime`: an OCI runtime for engines that have no hooks. For a container with a request it reserves CPUs under
//! its own process, writes them and our hooks into the container's configuration, and becomes the runtime; everything else
//! it hands on as it is.

use std::cell::LazyCell;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Settings;
use super::admission::Visitor;
use crate::bundle::Bundle;
use crate::cgroup::of_config;
use crate::claims::Claim;
use crate::config::{Door, Runtime};
use crate::cpulist::CpuSet;
use crate::engines::Engine;
use crate::files;
use crate::host::Host;
use crate::low_level;
use crate::names::{self, Ancestry, Names};
use crate::oci::{shown_id, usable_id};
use crate::oci_config::{OciConfig, Pinning};
use crate::placement::{self, reserve};
use crate::request::{self, Mems, Request};
use crate::runtime_line::{CgroupManager, RuntimeLine};
use crate::system_log::{self, Severity};
use crate::text::Shown;
use crate::topology;

/// Becomes the runtime; returns only with what went wrong before that.
///
/// # Errors
/// A configuration that cannot be read or changed, a request that cannot be met, no runtime.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let line = RuntimeLine::parse(arguments);
    let host = Host::new("/");
    let runtime = low_level::runtime(&host, &Runtime::load(&host)?)?;
    let reserved = match line.makes_a_container() {
        true => prepare(&line, &host, &runtime)?,
        false => None,
    };
    let error = Command::new(&runtime).args(arguments).exec();
    if let Some((settings, reservation)) = reserved {
        give_up(&settings, &reservation);
    }
    Err(error).with_context(|| format!("execute {}", runtime.display()))
}

/// Tells an engine where it looks for it, and the system log, what went wrong.
pub fn report(arguments: &[OsString], message: &str) {
    system_log::send(&Host::new("/"), Severity::Error, message);
    let line = RuntimeLine::parse(arguments);
    let Some(log) = line.log else {
        return;
    };
    let entry = if line.log_is_json {
        json!({"level": "error", "msg": message}).to_string()
    } else {
        format!("level=error msg={message:?}")
    };
    // An engine that gave a log that cannot be written reads stderr.
    let _ = files::append_line(&log, &entry);
}

/// Reserves CPUs where the container has a request, and writes them into its configuration. Without one nothing of ours is
/// read.
fn prepare(line: &RuntimeLine, host: &Host, runtime: &Path) -> Result<Option<(Settings, Claim)>> {
    let path = line.config_path();
    let text = files::read_text_if_there(&path)?;
    let text = text.with_context(|| format!("there is no {}", path.display()))?;
    let config = OciConfig::parse(&text).with_context(|| path.display().to_string())?;
    let id = line.id.as_deref().unwrap_or_default();
    let names = LazyCell::new(|| {
        let annotations = config.annotations(names::is_name_key).unwrap_or_default();
        Ancestry::of_this_process(host)
            .with_config(&path)
            .names(id, &annotations)
    });
    let cannot = || format!("cannot start container {}", names.with_id(&shown_id(id)));
    let annotations = config.annotations(request::is_ours).with_context(cannot)?;
    let Some(request) = request::from_annotations(&annotations).with_context(cannot)? else {
        // Its CPUs may be another's by now.
        ensure!(
            !config.is_of_an_earlier_start(),
            "{}: its configuration has the CPUs of an earlier start, and no request any more: write {} anew",
            cannot(),
            path.display()
        );
        return Ok(None);
    };
    let pool = request.pool.clone();
    let pin = || -> Result<(Settings, Claim)> {
        let settings = Settings::of_shim()?;
        let start = Start {
            settings: &settings,
            line,
            runtime,
            names: Names::clone(&names),
            bundle: Bundle::new(path.clone(), text)?,
        };
        let reservation = start.pin(usable_id(id)?, request)?;
        Ok((settings, reservation))
    };
    pin()
        .map(Some)
        .with_context(|| format!("{} on CPUs of pool {pool}", cannot()))
}

/// A container with a request that is about to be made.
struct Start<'a> {
    settings: &'a Settings,
    line: &'a RuntimeLine,
    runtime: &'a Path,
    names: Names,
    bundle: Bundle,
}

impl Start<'_> {
    /// Looks at everything first, then reserves, and writes last.
    fn pin(&self, id: &str, mut request: Request) -> Result<Claim> {
        if self.line.verb.as_deref() == Some("restore") {
            bail!("one on CPUs of its own cannot be restored: start it anew");
        }
        let engine = self.engine()?;
        let mut config = OciConfig::parse(self.bundle.found())?;
        let visitor = Visitor {
            door: Door::Shim,
            engine,
        };
        visitor.may_use(self.settings.pools().get(&request.pool), |mark| {
            Ok(config.annotations(|key| key == mark)?.remove(mark))
        })?;
        config.ensure_plain_keys()?;
        refuse_chosen(&config, &request)?;
        self.bundle.ensure_writable()?;
        low_level::ensure_runs_our_hooks(self.runtime)?;
        let program = std::env::current_exe().context("find out where this program is")?;
        let program = program.to_str();
        let program = program.context("the path of this program is no UTF-8")?;
        let site = self.settings.site_with_processes()?;
        request.locality.rather_near = nodes_near(&site.host, &config)?;
        let path = config.cgroups_path();
        let group = match self.line.cgroups {
            CgroupManager::Cgroupfs => of_config::expected(path, false),
            CgroupManager::Systemd => of_config::expected(path, true),
            CgroupManager::Disabled => None,
        };

        let reservation = reserve(site, id, self.names.clone(), group, &request)?;
        let pinning = Pinning {
            program,
            engine: engine.map(Engine::word),
            nonce: reservation.nonce.as_deref().unwrap_or_default(),
            lists: &reservation.lists,
            cpus: &reservation.cpus,
            mems: &reservation.mems,
            has_cgroup: self.line.cgroups != CgroupManager::Disabled,
        };
        let written = config
            .pin(&pinning)
            .and_then(|()| self.bundle.write(&config.print()?));
        if written.is_err() {
            give_up(self.settings, &reservation);
        }
        written.map(|()| reservation)
    }

    /// The engine of the configuration, whose marks count.
    fn engine(&self) -> Result<Option<Engine>> {
        let Some(word) = &self.settings.runtime().engine else {
            return Ok(None);
        };
        let engine = Engine::ALL.into_iter().find(|engine| engine.word() == word);
        let engine = engine.context(
            "runtime.engine in Pinfold's configuration is none of podman, crio, containerd and docker",
        )?;
        Ok(Some(engine))
    }
}

/// Where that fails too, the CPUs are free once this process has ended.
fn give_up(settings: &Settings, reservation: &Claim) {
    if let Err(error) = placement::give_up(settings.site(), reservation) {
        log::warn!(
            "give back what was reserved for {}: {error:#}",
            reservation.shown()
        );
    }
}

/// One request, one place.
fn refuse_chosen(config: &OciConfig, request: &Request) -> Result<()> {
    let mems = config.chosen_mems().filter(|_| request.mems == Mems::Local);
    let (what, value) = match (config.chosen_cpus(), mems) {
        (Some(cpus), _) => ("CPUs", cpus),
        (None, Some(mems)) => ("memory nodes", mems),
        (None, None) => return Ok(()),
    };
    bail!(
        "its configuration already sets the {what} {}: drop that (--cpuset-cpus, --cpuset-mems, resources.cpu), or the pool",
        Shown(value)
    )
}

/// The NUMA nodes of the container's devices; those that the kernel tells no node of have none.
fn nodes_near(host: &Host, config: &OciConfig) -> Result<CpuSet> {
    let mut nodes = CpuSet::new();
    for (is_block, major, minor) in config.devices() {
        nodes.extend(&topology::nodes_near_number(host, is_block, major, minor)?);
    }
    Ok(nodes)
}
