//! The CDI file: a device for each pool, so it is written anew whenever the pools change.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Found, Place, Plan, apply};
use crate::engines::Programs;
use crate::engines::cdi::{Devices, Hooks, file, hooks_of};
use crate::placement::Site;
use crate::pools::{Kind, PoolDirectory};
use crate::request::is_pool_name;

const CDI_FILE: &str = "/etc/cdi/pinfold.json";

/// Plans the file for the pools that there are.
///
/// # Errors
/// Pools that cannot be read; a file that is not ours, or that is of another pool directory.
pub fn plan_cdi(site: &Site, place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let found = Found::at(place.host, place.engine_config(CDI_FILE))?;
    let hooks = Hooks {
        pinfold: programs.pinfold.clone(),
        options: place.hook_options.clone(),
    };
    if let Some(there) = ours(&found)? {
        if !is_of(site, &there) {
            bail!(
                "{} has the devices of another pool directory: name another file",
                found.path.display()
            );
        }
    }
    let mut plan = Plan::default();
    plan.changes
        .extend(found.become_text(file(&devices(site)?, &hooks)));
    Ok(plan)
}

/// Plans its removal.
///
/// # Errors
/// A file that is not ours.
pub fn plan_cdi_removal(place: &Place<'_>) -> Result<Plan> {
    let found = Found::at(place.host, place.engine_config(CDI_FILE))?;
    ours(&found)?;
    let mut plan = Plan::default();
    plan.changes.extend(found.become_text(None));
    Ok(plan)
}

/// Writes the file anew if there is one of these pools: they have changed.
///
/// # Errors
/// It cannot be read or written.
pub fn refresh_cdi(site: &Site) -> Result<()> {
    plan_refresh(site, &Place::default_on(&site.host))
        .and_then(|plan| apply(&plan))
        .context("the pools have changed, and their CDI devices have not")
}

/// What writing it anew would change; nothing where there is none of these pools.
///
/// # Errors
/// It, or the pools, cannot be read.
pub fn plan_refresh(site: &Site, place: &Place<'_>) -> Result<Plan> {
    let found = Found::at(place.host, place.engine_config(CDI_FILE))?;
    let mut plan = Plan::default();
    if let Some(hooks) = ours(&found)?.filter(|hooks| is_of(site, hooks)) {
        plan.changes
            .extend(found.become_text(file(&devices(site)?, &hooks)));
    }
    Ok(plan)
}

/// The program that the devices of these pools run, where there are any.
///
/// # Errors
/// The file cannot be read, or is not ours.
pub fn cdi_program(place: &Place<'_>) -> Result<Option<String>> {
    let found = Found::at(place.host, place.engine_config(CDI_FILE))?;
    Ok(ours(&found)?.map(|hooks| hooks.pinfold))
}

fn devices(site: &Site) -> Result<Vec<Devices>> {
    let directory = PoolDirectory::open(&site.conf_dir)?;
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
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(named.map_or(&default, Path::new)) == real(&site.conf_dir)
}

fn ours(found: &Found) -> Result<Option<Hooks>> {
    let Some(text) = &found.text else {
        return Ok(None);
    };
    let path = found.path.display();
    match hooks_of(text).with_context(|| path.to_string())? {
        Some(hooks) => Ok(Some(hooks)),
        None => bail!("{path} is there and is not of Pinfold: move it away"),
    }
}
