//! The CDI file: a device for each pool, so it is written anew whenever the pools change. While there are no pools there is
//! no file, for CDI takes one without devices for an error; what stands in for it is not read by engines.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{
    FileChange, FileNow, Place, Plan, apply, docker_wiring, move_away, podman_files, podman_hook,
};
use crate::config::ConfigFile;
use crate::engines::cdi::{Devices, Hooks, file, hooks_of};
use crate::engines::{Engine, Programs};
use crate::files;
use crate::host::Host;
use crate::placement::Site;
use crate::pools::{Kind, PoolDirectory};
use crate::refusal::Refusal;
use crate::request::is_pool_name;

const CDI_FILE: &str = "/etc/cdi/pinfold.json";
/// What the stand-in's name has more than the file's: engines read `.json` and `.yaml` (CDI's SPEC.md).
const STAND_IN: &str = ".without-pools";

/// The engines that use devices without being told to.
const USERS: [Engine; 2] = [Engine::Podman, Engine::Docker];

/// The file, and what stands in for it.
struct CdiFiles {
    live: FileNow,
    stand_in: FileNow,
}

impl CdiFiles {
    fn at(place: &Place<'_>) -> Result<CdiFiles> {
        let path = place.engine_config(CDI_FILE);
        Ok(CdiFiles {
            live: FileNow::at(place.host, path)?,
            stand_in: FileNow::at(place.host, &format!("{path}{STAND_IN}"))?,
        })
    }

    /// How the hooks of the file are run, or were while there were pools; `None` where there is neither.
    fn hooks(&self) -> Result<Option<Hooks>> {
        for found in [&self.live, &self.stand_in] {
            let Some(text) = &found.text else {
                continue;
            };
            let path = found.path.display();
            return match hooks_of(text).with_context(|| path.to_string())? {
                Some(hooks) => Ok(Some(hooks)),
                None => bail!(Refusal::new(
                    format!("{path} is there and is not of Pinfold"),
                    move_away(&found.path)
                )),
            };
        }
        Ok(None)
    }

    /// What makes it the file of these devices.
    fn become_devices(&self, devices: &[Devices], hooks: &Hooks) -> Vec<FileChange> {
        let live = file(devices, hooks);
        let stand_in = live.is_none().then(|| hooks.stand_in());
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

/// How it stands with the devices.
#[derive(Debug, PartialEq, Eq)]
pub enum CdiState {
    /// There are some, and they run this program.
    There(String),
    /// They come back with the first pool.
    WithoutPools,
    /// There are pools and none of them, and these engines could use some.
    Missing(Vec<Engine>),
}

/// Plans the file for the pools that there are.
///
/// # Errors
/// Pools that cannot be read; a file that is not ours, or that is of another pool directory.
pub fn plan_cdi(site: &Site, place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let files = CdiFiles::at(place)?;
    let hooks = Hooks {
        pinfold: programs.pinfold.clone(),
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
    let devices = devices(site)?;
    let mut plan = Plan {
        changes: files.become_devices(&devices, &hooks),
        ..Plan::default()
    };
    if devices.is_empty() {
        plan.remarks
            .push("there are no pools, and so no devices: the first brings them".to_owned());
    }
    Ok(plan)
}

/// Plans its removal.
///
/// # Errors
/// A file that is not ours.
pub fn plan_cdi_removal(place: &Place<'_>) -> Result<Plan> {
    let files = CdiFiles::at(place)?;
    files.hooks()?;
    let mut plan = Plan {
        changes: files.removal(),
        ..Plan::default()
    };
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

/// Plans the devices that come with the install of an engine: where there are pools and no file yet. One that is there
/// becomes what the pools are.
///
/// # Errors
/// Pools, or a file of ours, that cannot be read.
pub fn plan_engine_devices(
    site: &Site,
    engine: Engine,
    options: &[String],
    programs: &Programs,
) -> Result<Plan> {
    let mut plan = Plan::default();
    if !USERS.contains(&engine) {
        return Ok(plan);
    }
    let place = Place::default_on(&site.host);
    let files = CdiFiles::at(&place)?;
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
            pinfold: programs.pinfold.clone(),
            options: options.to_vec(),
            by_install: true,
        },
    };
    let devices = devices(site)?;
    if !devices.is_empty() && is_wanted_by(engine, &place) {
        plan.changes = files.become_devices(&devices, &hooks);
    }
    Ok(plan)
}

/// docker can have been told to have none.
fn is_wanted_by(engine: Engine, place: &Place<'_>) -> bool {
    let wiring = docker_wiring(place);
    engine != Engine::Docker || wiring.is_ok_and(|wiring| wiring.cdi != Some(false))
}

/// Plans that the devices go that came with the install of an engine, unless another has a use for them.
///
/// # Errors
/// A file of ours that cannot be read.
pub fn plan_engine_devices_removal(host: &Host, engine: Engine) -> Result<Plan> {
    let mut plan = Plan::default();
    let files = CdiFiles::at(&Place::default_on(host))?;
    // Somebody else's stays.
    let came_along = files
        .hooks()
        .is_ok_and(|hooks| hooks.is_some_and(|hooks| hooks.by_install));
    let has_other_user = users(host).iter().any(|(other, _)| *other != engine);
    if USERS.contains(&engine) && came_along && !has_other_user {
        plan.changes = files.removal();
    }
    Ok(plan)
}

/// Writes the file anew if there is one of these pools, or an engine that has a use for it: they have changed.
///
/// # Errors
/// It cannot be read or written.
pub fn refresh_cdi(site: &Site) -> Result<()> {
    plan_refresh(site, &Place::default_on(&site.host))
        .and_then(|plan| apply(&plan))
        .context("the pools have changed, and their CDI devices have not")
}

/// What writing it anew would change; nothing where there is none of these pools, and no engine has a use for it.
///
/// # Errors
/// It, or the pools, cannot be read.
pub fn plan_refresh(site: &Site, place: &Place<'_>) -> Result<Plan> {
    let files = CdiFiles::at(place)?;
    let mut plan = Plan::default();
    let hooks = match files.hooks()? {
        Some(hooks) => Some(hooks),
        None => wanted(site).filter(|_| place.engine_config.is_none()),
    };
    if let Some(hooks) = hooks.filter(|hooks| is_of(site, hooks)) {
        let devices = devices(site)?;
        if !devices.is_empty() || files.live.text.is_some() {
            plan.changes = files.become_devices(&devices, &hooks);
        }
    }
    Ok(plan)
}

/// How it stands with the devices.
///
/// # Errors
/// The file cannot be read, or is not ours.
pub fn cdi_state(place: &Place<'_>) -> Result<CdiState> {
    let files = CdiFiles::at(place)?;
    let hooks = files.hooks()?;
    Ok(match (hooks, &files.live.text) {
        (Some(hooks), Some(_)) => CdiState::There(hooks.pinfold),
        (Some(_), None) => CdiState::WithoutPools,
        (None, _) => {
            let users = users(place.host).into_iter();
            CdiState::Missing(users.map(|(engine, _)| engine).collect())
        }
    })
}

/// The engines that know Pinfold and use devices, and the program that each runs of ours. One whose files cannot be read
/// has none: `check` tells.
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

/// How the hooks of devices for these pools are run, where an engine has a use for them. Only for the pools that engines
/// are given by themselves: those of the configuration file, or at the default place.
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

/// None where there is no pool directory yet.
fn devices(site: &Site) -> Result<Vec<Devices>> {
    if files::entry_if_there(&site.conf_dir)?.is_none() {
        return Ok(Vec::new());
    }
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    let mut devices = Vec::new();
    for name in directory
        .pool_names()?
        .into_iter()
        .filter(|name| is_pool_name(name))
    {
        let pool = directory.pool(&name)?;
        let lists = match pool.kind {
            Kind::Exclusive => pool.lists.len(),
            Kind::Shared => pool.lists.len().min(1),
        };
        devices.push(Devices { pool: name, lists });
    }
    Ok(devices)
}

/// Is a file of these pools? Its hooks' options say so, and without any they are those at the default place.
fn is_of(site: &Site, hooks: &Hooks) -> bool {
    let mut options = hooks.options.iter();
    let named = options
        .find(|option| *option == "--conf-dir")
        .and_then(|_| options.next());
    let default = site.host.default_conf_dir();
    real(named.map_or(&default, Path::new)) == real(&site.conf_dir)
}

fn real(path: &Path) -> std::path::PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
