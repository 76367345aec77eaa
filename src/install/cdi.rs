//! The CDI files, with a device for each pool, and where somebody asked for that, one for each CPU
//! list; they are rewritten whenever the pools change. CDI refuses a file without devices, so while
//! there are no pools a stand-in that engines do not read keeps the file's settings.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{
    FileChange, FileNow, Place, Plan, apply, docker_wiring, move_away, podman_files, podman_hook,
};
use crate::config::ConfigFile;
use crate::engines::Engine;
use crate::engines::cdi::{Device, Hooks, Kind, devices_of, file, hooks_of};
use crate::files;
use crate::host::Host;
use crate::placement::Site;
use crate::pools::{self, Pool, PoolDirectory};
use crate::refusal::{Reason, Refusal};
use crate::request::{ExactList, is_pool_name};

/// Suffix of the stand-in. Engines read only `.json` and `.yaml` (CDI's SPEC.md).
const STAND_IN: &str = ".without-pools";

/// The engines that use CDI devices by default.
const USERS: [Engine; 2] = [Engine::Podman, Engine::Docker];

/// The file of a kind of devices by default.
fn default_file(kind: Kind) -> &'static str {
    match kind {
        Kind::Pools => "/etc/cdi/pinfold.json",
        Kind::Lists => "/etc/cdi/pinfold-lists.json",
    }
}

/// The CDI file of a kind of devices, and its stand-in.
struct CdiFiles {
    kind: Kind,
    live: FileNow,
    stand_in: FileNow,
}

impl CdiFiles {
    fn at(place: &Place<'_>, kind: Kind) -> Result<CdiFiles> {
        let path = place.engine_config(default_file(kind));
        Ok(CdiFiles {
            kind,
            live: FileNow::at(place.host, path)?,
            stand_in: FileNow::at(place.host, &format!("{path}{STAND_IN}"))?,
        })
    }

    /// How the file's hooks are run, or the stand-in's; `None` if neither file is there.
    fn hooks(&self) -> Result<Option<Hooks>> {
        for found in [&self.live, &self.stand_in] {
            let Some(text) = &found.text else {
                continue;
            };
            let path = found.path.display();
            return match hooks_of(self.kind, text).with_context(|| path.to_string())? {
                Some(hooks) => Ok(Some(hooks)),
                None => bail!(Refusal::new(
                    format!("{path} is there and is not of Pinfold"),
                    move_away(&found.path)
                )),
            };
        }
        Ok(None)
    }

    /// The devices of a pool in the live file; none if there is no such file.
    fn known_of(&self, pool: &str) -> Result<Vec<Device>> {
        let Some(text) = &self.live.text else {
            return Ok(Vec::new());
        };
        let all = devices_of(self.kind, text);
        let all = all.with_context(|| self.live.path.display().to_string())?;
        Ok(all.into_iter().filter(|one| one.pool == pool).collect())
    }

    /// The same for devices that may lack some: where nothing is known, nothing is changed.
    fn become_those(&self, devices: &Devices, hooks: &Hooks) -> Vec<FileChange> {
        match devices.all.is_empty() && !devices.shortfalls.is_empty() {
            true => Vec::new(),
            false => self.become_devices(&devices.all, hooks),
        }
    }

    /// The changes that make the file hold these devices.
    fn become_devices(&self, devices: &[Device], hooks: &Hooks) -> Vec<FileChange> {
        let live = file(self.kind, devices, hooks);
        let stand_in = live.is_none().then(|| hooks.stand_in(self.kind));
        let changes = [
            self.live.become_text(live),
            self.stand_in.become_text(stand_in),
        ];
        changes.into_iter().flatten().collect()
    }

    fn removal(&self) -> Vec<FileChange> {
        let changes = [&self.live, &self.stand_in].map(|found| found.become_text(None));
        changes.into_iter().flatten().collect()
    }
}

/// The state of the CDI devices.
#[derive(Debug, PartialEq, Eq)]
pub enum CdiState {
    /// There are devices, and their hooks run this program.
    There(String),
    /// There are no pools: the devices come back with the first pool.
    WithoutPools,
    /// There is no CDI file; these engines could use one.
    Missing(Vec<Engine>),
}

/// Plans the CDI file of a kind of devices for the present pools. `place.engine_config` names the
/// file, if it is not in its default place. `pinfold` is the program's path as whoever runs
/// containers sees it, and `place.hook_options` are its options.
///
/// # Errors
/// The pool directory cannot be read; the file is not ours, or serves another pool directory.
pub fn plan_cdi(site: &Site, place: &Place<'_>, kind: Kind, pinfold: &str) -> Result<Plan> {
    let files = CdiFiles::at(place, kind)?;
    let hooks = Hooks {
        pinfold: pinfold.to_owned(),
        options: place.hook_options.clone(),
        by_install: false,
    };
    if let Some(there) = files.hooks()? {
        if !is_of(site, &there) {
            bail!(Refusal::new(
                format!(
                    "{} has the devices of another pool directory",
                    files.live.path.display()
                ),
                "give these a file of their own: `pinfold cdi --output FILE`"
            ));
        }
    }
    let devices = Devices::of(site, &files)?;
    let has_no_pools = devices.all.is_empty() && devices.shortfalls.is_empty();
    let mut plan = Plan {
        changes: files.become_those(&devices, &hooks),
        remarks: devices.remarks,
        shortfalls: devices.shortfalls,
        ..Plan::default()
    };
    if has_no_pools {
        plan.remarks
            .push("there are no pools, and so no devices: the first brings them".to_owned());
    }
    Ok(plan)
}

/// Plans the removal of the CDI file of a kind of devices. The lists' goes with the pools', where
/// both are in their default places.
///
/// # Errors
/// A file is not ours.
pub fn plan_cdi_removal(place: &Place<'_>, kind: Kind) -> Result<Plan> {
    let files = CdiFiles::at(place, kind)?;
    files.hooks()?;
    let mut plan = Plan {
        changes: files.removal(),
        ..Plan::default()
    };
    if kind == Kind::Lists {
        return Ok(plan);
    }
    if place.engine_config.is_none() {
        plan.and(plan_cdi_removal(place, Kind::Lists)?);
    }
    let users: Vec<&str> = users(place.host)
        .into_iter()
        .map(|(engine, _)| engine.word())
        .collect();
    if !users.is_empty() && !plan.changes.is_empty() {
        plan.remarks.push(format!(
            "{} may use devices: the next change of the pools writes them again",
            users.join(" and ")
        ));
    }
    Ok(plan)
}

/// Plans the CDI devices that an engine's install brings: writes the file if there are pools, and
/// updates a file that is there.
///
/// # Errors
/// The pools, or our CDI file, cannot be read.
pub fn plan_engine_devices(
    site: &Site,
    engine: Engine,
    options: &[String],
    pinfold: &str,
) -> Result<Plan> {
    let mut plan = Plan::default();
    if !USERS.contains(&engine) {
        return Ok(plan);
    }
    let place = Place::default_on(&site.host);
    let files = CdiFiles::at(&place, Kind::Pools)?;
    let there = match files.hooks() {
        Ok(there) => there,
        Err(error) => {
            plan.remarks
                .push(format!("no devices are written: {error:#}"));
            return Ok(plan);
        }
    };
    let hooks = match there {
        Some(there) if !is_of(site, &there) => return Ok(plan),
        Some(there) if !there.by_install => there,
        _ => Hooks {
            pinfold: pinfold.to_owned(),
            options: options.to_vec(),
            by_install: true,
        },
    };
    let devices = Devices::of(site, &files)?;
    if is_wanted_by(engine, &place) {
        if !devices.all.is_empty() {
            plan.changes = files.become_those(&devices, &hooks);
        }
        plan.shortfalls = devices.shortfalls;
    }
    Ok(plan)
}

/// Does the engine use CDI devices? docker's configuration can turn them off.
fn is_wanted_by(engine: Engine, place: &Place<'_>) -> bool {
    let wiring = docker_wiring(place);
    engine != Engine::Docker || wiring.is_ok_and(|wiring| wiring.cdi != Some(false))
}

/// Plans the removal of the devices that an engine's install brought, unless another engine uses
/// them.
///
/// # Errors
/// Our CDI file cannot be read.
pub fn plan_engine_devices_removal(host: &Host, engine: Engine) -> Result<Plan> {
    let mut plan = Plan::default();
    let files = CdiFiles::at(&Place::default_on(host), Kind::Pools)?;
    // A file that `pinfold cdi` or somebody else wrote stays.
    let came_along = files
        .hooks()
        .is_ok_and(|hooks| hooks.is_some_and(|hooks| hooks.by_install));
    let has_other_user = users(host).iter().any(|(other, _)| *other != engine);
    if USERS.contains(&engine) && came_along && !has_other_user {
        plan.changes = files.removal();
    }
    Ok(plan)
}

/// Rewrites the CDI files after the pools changed, each if it serves these pools; that of the pools
/// also if an engine could use it.
///
/// # Errors
/// A file cannot be read or written; the other one is written all the same. A pool cannot be read;
/// the others' devices are written.
pub fn refresh_cdi(site: &Site) -> Result<()> {
    let place = Place::default_on(&site.host);
    let mut first_error = Ok(());
    for kind in Kind::ALL {
        let done = plan_refresh(site, &place, kind).and_then(|plan| {
            plan.remarks
                .iter()
                .for_each(|remark| log::warn!("{remark}"));
            apply(&plan)?;
            plan.ensure_whole()
        });
        first_error = first_error.and(done);
    }
    first_error
        .context("the pools have changed, and their CDI devices have not, or not all of them")
}

/// What [`refresh_cdi`] would change: nothing if no file serves these pools and no engine could use
/// one.
///
/// # Errors
/// The file or the pools cannot be read.
pub fn plan_refresh(site: &Site, place: &Place<'_>, kind: Kind) -> Result<Plan> {
    let files = CdiFiles::at(place, kind)?;
    let mut plan = Plan::default();
    let hooks = match files.hooks()? {
        Some(hooks) => Some(hooks),
        // Nobody but who asked for it uses that of the lists.
        None if kind == Kind::Lists => None,
        None => wanted(site).filter(|_| place.engine_config.is_none()),
    };
    if let Some(hooks) = hooks.filter(|hooks| is_of(site, hooks)) {
        let devices = Devices::of(site, &files)?;
        if !devices.all.is_empty() || files.live.text.is_some() {
            plan.changes = files.become_those(&devices, &hooks);
        }
        plan.remarks = devices.remarks;
        plan.shortfalls = devices.shortfalls;
    }
    Ok(plan)
}

/// The state of the CDI devices of a kind.
///
/// # Errors
/// The file cannot be read, or is not ours.
pub fn cdi_state(place: &Place<'_>, kind: Kind) -> Result<CdiState> {
    let files = CdiFiles::at(place, kind)?;
    let hooks = files.hooks()?;
    Ok(match (hooks, &files.live.text) {
        (Some(hooks), Some(_)) => CdiState::There(hooks.pinfold),
        (Some(_), None) => CdiState::WithoutPools,
        (None, _) if kind == Kind::Lists => CdiState::Missing(Vec::new()),
        (None, _) => {
            let users = users(place.host).into_iter();
            CdiState::Missing(users.map(|(engine, _)| engine).collect())
        }
    })
}

/// The file of a kind of devices, as engines read it.
///
/// # Errors
/// What is above it cannot be looked at.
pub fn cdi_file(place: &Place<'_>, kind: Kind) -> Result<PathBuf> {
    let path = place.engine_config(default_file(kind));
    let file = place.host.resolve(path);
    file.with_context(|| format!("look at {path}"))
}

/// The names of the devices that engines find in the file of a kind for these pools.
///
/// # Errors
/// There is no file, it cannot be read, or it is not for these pools.
pub fn cdi_devices(site: &Site, place: &Place<'_>, kind: Kind) -> Result<BTreeSet<String>> {
    let files = CdiFiles::at(place, kind)?;
    let path = files.live.path.display();
    let (Some(hooks), Some(text)) = (files.hooks()?, &files.live.text) else {
        bail!(Refusal::new(
            format!("there is no {path}, so that engines know no device"),
            kind.remedy()
        ));
    };
    if !is_of(site, &hooks) {
        bail!(Refusal::new(
            format!("{path} has the devices of another pool directory"),
            "remove it, and write that of these pools"
        ));
    }
    let devices = devices_of(kind, text).with_context(|| path.to_string())?;
    Ok(devices.into_iter().map(|device| device.name).collect())
}

/// The engines that know Pinfold and use CDI devices, and the `pinfold` that each runs. An engine
/// whose files cannot be read is left out: `check` reports it.
fn users(host: &Host) -> Vec<(Engine, String)> {
    let place = Place::default_on(host);
    let beside = |shim: &str| {
        let (dir, _) = shim.rsplit_once('/')?;
        Some(format!("{dir}/pinfold"))
    };
    let program = |engine| match engine {
        Engine::Docker => {
            let wiring = docker_wiring(&place).ok()?;
            let shim = wiring.shim.filter(|_| wiring.cdi != Some(false))?;
            beside(&shim)
        }
        Engine::Podman => {
            let settings = podman_files(&place).ok()?.all;
            let shim = settings.shim.first().and_then(|shim| beside(shim));
            shim.or_else(|| podman_hook(&place, &settings))
        }
        Engine::Containerd | Engine::Crio => None,
    };
    let users = USERS.into_iter();
    users
        .filter_map(|engine| Some((engine, program(engine)?)))
        .collect()
}

/// The hooks for the devices of these pools, if an engine could use them. `None` unless these are
/// the pools that engines use by default: those of the configuration file, or at the default place.
fn wanted(site: &Site) -> Option<Hooks> {
    let (_, pinfold) = users(&site.host).into_iter().next()?;
    let default = site.host.default_conf_dir();
    let configured = ConfigFile::load(&site.host, None).ok()?.conf_dir;
    let of_engines = configured.unwrap_or_else(|| default.clone());
    if real(&of_engines) != real(&site.conf_dir) {
        return None;
    }
    let options = match of_engines == default {
        true => Vec::new(),
        false => vec!["--conf-dir".to_owned(), of_engines.to_str()?.to_owned()],
    };
    Some(Hooks {
        pinfold,
        options,
        by_install: true,
    })
}

/// The devices that a file should have.
#[derive(Default)]
struct Devices {
    all: Vec<Device>,
    /// The lists that have none.
    remarks: Vec<String>,
    /// The pools that cannot be read. What the file has of them stays as it is: a device that
    /// vanished would fail pods that have it.
    shortfalls: Vec<Refusal>,
}

impl Devices {
    /// Those of all pools; none if there is no pool directory yet.
    fn of(site: &Site, files: &CdiFiles) -> Result<Devices> {
        let mut devices = Devices::default();
        if files::entry_if_there(&site.conf_dir)?.is_none() {
            return Ok(devices);
        }
        let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
        let names = directory.pool_names()?.into_iter();
        for name in names.filter(|name| is_pool_name(name)) {
            match directory.pool(&name) {
                Ok(pool) => devices.add(files.kind, &name, pool),
                Err(error) => {
                    let Refusal {
                        what,
                        remedy,
                        reason,
                        ..
                    } = Refusal::of(&error);
                    // It has been removed meanwhile.
                    if reason == Reason::Pool {
                        continue;
                    }
                    let what = format!("pool {name}: {what}: its CDI devices stay as they were");
                    devices.shortfalls.push(Refusal::new(what, remedy));
                    devices.all.extend(files.known_of(&name)?);
                }
            }
        }
        Ok(devices)
    }

    /// Adds those of a pool.
    fn add(&mut self, kind: Kind, name: &str, pool: Pool) {
        match (kind, pool.kind) {
            (Kind::Pools, pools::Kind::Exclusive) => {
                self.all.extend(Device::of_pool(name, pool.lists.len()));
            }
            (Kind::Pools, pools::Kind::Shared) => {
                self.all
                    .extend(Device::of_pool(name, pool.lists.len().min(1)));
            }
            (Kind::Lists, _) => {
                for list in pool.lists {
                    let exact = ExactList {
                        pool: name.to_owned(),
                        cpus: list.cpus,
                    };
                    match exact.device_name() {
                        Ok(device) => self.all.push(Device {
                            name: device,
                            pool: name.to_owned(),
                            asks: exact.to_string(),
                        }),
                        Err(refusal) => self.remarks.push(refusal.to_string()),
                    }
                }
            }
        }
    }
}

/// Does a CDI file serve these pools? Its hooks' `--conf-dir` tells; without the option they are
/// the default ones.
fn is_of(site: &Site, hooks: &Hooks) -> bool {
    let mut options = hooks.options.iter();
    let named = options
        .find(|option| *option == "--conf-dir")
        .and_then(|_| options.next());
    let default = site.host.default_conf_dir();
    real(named.map_or(&default, Path::new)) == real(&site.conf_dir)
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
