//! Starts a container with a request: reserves CPUs and writes them into its configuration.

use anyhow::{Context, Result, bail, ensure};

use super::asking::AskingDevice;
use crate::admission::Caller;
use crate::cgroup::of_config;
use crate::claims::Claim;
use crate::config::Door;
use crate::cpulist::CpuSet;
use crate::engines::Engine;
use crate::host::Host;
use crate::names::Names;
use crate::oci::{Bundle, CgroupManager, CommandLine, Config, Id, Pinning, Runtime};
use crate::placement::{self, reserve};
use crate::refusal::Refusal;
use crate::request::{Mems, Request};
use crate::settings::Settings;
use crate::text::Shown;
use crate::topology;

/// The start of a container with a request.
pub(super) struct ShimStart<'a> {
    pub(super) settings: &'a Settings,
    pub(super) line: &'a CommandLine,
    pub(super) runtime: &'a Runtime,
    pub(super) names: Names,
    pub(super) bundle: Bundle,
    pub(super) device: Option<AskingDevice>,
}

impl ShimStart<'_> {
    /// Checks everything, then reserves, and writes last.
    pub(super) fn pin(&self, id: Id<'_>, mut request: Request) -> Result<Claim> {
        if self.line.verb.as_deref() == Some("restore") {
            bail!(Refusal::new(
                "one on CPUs of its own cannot be restored",
                "start it anew"
            ));
        }
        let engine = self.engine()?;
        let mut config = Config::parse(self.bundle.found())?;
        let caller = Caller {
            door: match self.device {
                Some(_) => Door::Cdi,
                None => Door::Shim,
            },
            engine,
        };
        // Who may ask for a pool is said of those who ask.
        if !request.by_default {
            caller.may_use(self.settings.pools().get(&request.pool), |mark| {
                Ok(config.annotations(|key| key == mark)?.remove(mark))
            })?;
        }
        config.ensure_plain_keys()?;
        refuse_chosen(&config, &request)?;
        self.bundle.ensure_writable()?;
        self.runtime.ensure_fit()?;
        let program = std::env::current_exe().context("find out where this program is")?;
        let program = program.to_str();
        let program = program.context("the path of this program is not UTF-8")?;
        let site = self.settings.site_with_processes()?;
        request.locality.rather_near = nodes_near(&site.host, &config);
        let path = config.cgroups_path();
        let group = match self.line.cgroups {
            CgroupManager::Cgroupfs => of_config::expected(path, false),
            CgroupManager::Systemd => of_config::expected(path, true),
            CgroupManager::Disabled => None,
        };

        ensure!(
            !request.by_default || self.line.cgroups != CgroupManager::Disabled,
            Refusal::new(
                "its runtime makes it no cgroup",
                "have its engine make it one, or ask for a pool"
            )
        );
        let reservation = reserve(site, id.as_str(), self.names.clone(), group, &request)?;
        // A refused start costs no process of the runtime.
        let runs = self.runtime.ensure_runs_our_hooks_once(&site.run_dir);
        let pinning = Pinning {
            program,
            engine: engine.map(Engine::word),
            device: self.device.as_ref().map(|device| device.name.as_str()),
            options: self.device.as_ref().map_or(&[], |device| &device.words),
            nonce: reservation.nonce.as_deref().unwrap_or_default(),
            lists: &reservation.lists,
            cpus: &reservation.cpus,
            mems: reservation.mems.as_ref(),
            by_default: request.by_default,
            has_cgroup: self.line.cgroups != CgroupManager::Disabled,
        };
        let written = runs
            .and_then(|()| config.pin(&pinning))
            .and_then(|()| self.bundle.write(&config.print()?));
        if written.is_err() {
            cancel(self.settings, &reservation);
        }
        written.map(|()| reservation)
    }

    /// The configured engine, whose marks count.
    fn engine(&self) -> Result<Option<Engine>> {
        let Some(word) = &self.settings.runtime().engine else {
            return Ok(None);
        };
        let engine = Engine::by_word(word).context(
            "runtime.engine in Pinfold's configuration is none of podman, crio, containerd and \
             docker",
        )?;
        Ok(Some(engine))
    }
}

/// Cancels a reservation. If that fails, its CPUs are free once this process has ended.
pub(super) fn cancel(settings: &Settings, reservation: &Claim) {
    if let Err(error) = placement::cancel_reservation(settings.site(), reservation) {
        log::warn!(
            "give back what was reserved for {}: {error:#}",
            reservation.shown()
        );
    }
}

/// Refuses a configuration that sets CPUs or memory nodes that the request is to set.
fn refuse_chosen(config: &Config, request: &Request) -> Result<()> {
    let mems = config.chosen_mems().filter(|_| request.mems == Mems::Local);
    let (what, value) = match (config.chosen_cpus(), mems) {
        (Some(cpus), _) => ("CPUs", cpus),
        (None, Some(mems)) => ("memory nodes", mems),
        (None, None) => return Ok(()),
    };
    bail!(placement::chosen_already(what, &Shown(value).to_string()))
}

/// The NUMA nodes of the container's devices; a device whose node the kernel does not know counts
/// for none.
fn nodes_near(host: &Host, config: &Config) -> CpuSet {
    let mut nodes = CpuSet::new();
    for (is_block, major, minor) in config.devices() {
        match topology::nodes_near_number(host, is_block, major, minor) {
            Ok(near) => nodes.extend(&near),
            // The request does not ask for this device: a warning is enough.
            Err(error) => log::warn!("the device {major}:{minor} counts for nothing: {error:#}"),
        }
    }
    nodes
}
