//! Telling systemd which CPUs a unit has: it owns the files of its units' groups, and writes them again from what it
//! knows with every reload and every property that changes (systemd.resource-control(5), `AllowedCPUs=`).
//!
//! A kernel up to 6.12 refuses the empty value that systemd writes where it knows of none; later ones take it, and the
//! container would run everywhere.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Group, Version};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::text::one_line;

/// The settings that telling systemd makes.
const SETTINGS: [&str; 2] = ["AllowedCPUs", "AllowedMemoryNodes"];

/// Makes the CPUs of a group, and its memory nodes where there are any, known to systemd where the group is a scope's or a
/// service's own; an empty set is what its parents have. Was there anything to tell? Elsewhere, in a container's group below its scope
/// too, nothing is asked.
///
/// A container with a unit's name need not have that unit: systemd says which group it has. A unit of a user's manager
/// is left alone, for that is not reached from a hook; so is everything on a machine that is not the running one.
///
/// # Errors
/// systemd refuses, or has not answered after `patience`.
pub fn tell(
    host: &Host,
    group: &Group,
    cpus: &CpuSet,
    mems: Option<&CpuSet>,
    patience: Duration,
) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let Some(unit) = Unit::of(host, group)? else {
        return Ok(false);
    };
    if unit.known(deadline)?.group != group.path() {
        return Ok(false);
    }
    unit.set(cpus, mems, deadline)?;
    Ok(true)
}

/// What a unit had before somebody owned CPUs there.
#[derive(Debug, Clone, Copy)]
pub struct Former<'a> {
    /// Its CPUs; an empty set is what its parents have.
    pub cpus: &'a CpuSet,
    /// Its memory nodes, where those were told too.
    pub mems: Option<&'a CpuSet>,
    /// The settings that were made at run time before, as [`settings`] names them: they stay, with
    /// the former values.
    pub settings: &'a [String],
    /// The CPUs that systemd was told since: where it knows of others, somebody has set those, and
    /// they stay. `None` where they are ours, whatever they are.
    pub told: Option<&'a CpuSet>,
}

/// Gives a unit back what it had, also where its group is gone: systemd keeps a service's CPUs for
/// its next start. `false` where somebody else has set other CPUs since, which stay.
///
/// The drop-in files that came of telling are removed, or they would count for more than what an
/// operator writes into the unit from now on. A unit that is gone altogether has nothing to be
/// given back.
///
/// # Errors
/// As [`tell`].
pub fn untell(host: &Host, group: &Group, former: &Former<'_>, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let Some(unit) = Unit::of(host, group)? else {
        return Ok(true);
    };
    let known = unit.known(deadline)?;
    if !unit.has_group(&known, group) {
        return Ok(true);
    }
    let is_as_before = known.cpus == *former.cpus;
    let is_ours = |told: &CpuSet| !known.cpus.is_empty() && known.cpus.is_subset(told);
    if !is_as_before && !former.told.is_none_or(is_ours) {
        return Ok(false);
    }
    if !is_as_before || former.mems.is_some() {
        if let Err(error) = unit.set(former.cpus, former.mems, deadline) {
            // It may have ended meanwhile, and that be all.
            let again = unit.known(deadline)?;
            let keeps = unit.has_group(&again, group) && again.cpus != *former.cpus;
            return if keeps { Err(error) } else { Ok(true) };
        }
    }
    unit.remove_settings(host, former.settings)?;
    Ok(true)
}

/// The settings of CPUs and memory nodes that a unit was given at run time (systemctl(1),
/// `set-property --runtime`).
///
/// # Errors
/// They cannot be looked at.
pub fn settings(host: &Host, group: &Group) -> Result<Vec<String>> {
    let Some(unit) = Unit::of(host, group)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for setting in SETTINGS {
        if files::entry_if_there(&unit.drop_in(host, setting))?.is_some() {
            found.push(setting.to_owned());
        }
    }
    Ok(found)
}

/// Is it in the hands of a user's own manager (`user@.service`)? That writes the files of its
/// units' groups again from what it knows, and is not reached from here.
pub fn is_of_user(group: &Group) -> bool {
    group.path().contains("/user@")
}

/// Is it a unit's own group, which the unit's processes are to divide themselves (`Delegate=`,
/// systemd.resource-control(5))?
///
/// # Errors
/// systemd has not answered after `patience`.
pub fn is_delegated(host: &Host, group: &Group, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let Some(unit) = Unit::of(host, group)? else {
        return Ok(false);
    };
    let known = unit.known(deadline)?;
    Ok(known.group == group.path() && known.is_delegated)
}

/// A unit of the system's manager, and the program that speaks for it.
struct Unit<'a> {
    name: &'a str,
    systemctl: PathBuf,
}

impl<'a> Unit<'a> {
    /// The unit whose own group this may be, on the running machine.
    fn of(host: &Host, group: &'a Group) -> Result<Option<Unit<'a>>> {
        let Some(name) = unit_of(group).filter(|_| host.is_running_root()) else {
            return Ok(None);
        };
        let mark = host.systemd_mark();
        let is_systemd = mark.try_exists();
        if !is_systemd.with_context(|| format!("look at {}", mark.display()))? {
            return Ok(None);
        }
        let systemctl = host.program("systemctl").context("find systemctl")?;
        Ok(Some(Unit { name, systemctl }))
    }

    fn known(&self, deadline: Instant) -> Result<Known> {
        let mut question = Command::new(&self.systemctl);
        let properties = "--property=ControlGroup,AllowedCPUs,Delegate";
        question.args(["show", properties, "--", self.name]);
        let shown = answer(&mut question, deadline)
            .with_context(|| format!("ask systemd for the CPUs of {}", self.name))?;
        Known::of(&shown).with_context(|| format!("read what systemd says of {}", self.name))
    }

    /// Is it the unit of this group? A service that does not run has none, and is.
    fn has_group(&self, known: &Known, group: &Group) -> bool {
        let is_at_rest = known.group.is_empty() && self.name.ends_with(".service");
        is_at_rest || known.group == group.path()
    }

    /// Where systemd keeps a setting that was made at run time; those of a transient unit go with
    /// the unit.
    fn drop_in(&self, host: &Host, setting: &str) -> PathBuf {
        let directory = host.systemd_runtime_settings(self.name);
        directory.join(format!("50-{setting}.conf"))
    }

    fn remove_settings(&self, host: &Host, kept: &[String]) -> Result<()> {
        let gone = |setting: &&&str| !kept.iter().any(|kept| kept == **setting);
        for setting in SETTINGS.iter().filter(gone) {
            files::remove(&self.drop_in(host, setting))?;
        }
        files::remove_empty_directory(&host.systemd_runtime_settings(self.name)).map(drop)
    }

    fn set(&self, cpus: &CpuSet, mems: Option<&CpuSet>, deadline: Instant) -> Result<()> {
        let mut setting = Command::new(&self.systemctl);
        setting
            .args(["--runtime", "--no-ask-password", "set-property", "--"])
            .args([self.name, &format!("AllowedCPUs={cpus}")])
            .args(mems.map(|mems| format!("AllowedMemoryNodes={mems}")));
        answer(&mut setting, deadline)
            .with_context(|| format!("tell systemd of the CPUs {cpus} of {}", self.name))?;
        Ok(())
    }
}

/// What systemd knows of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    /// The path of its group; empty where it does not run, or there is no such unit.
    group: String,
    /// Its `AllowedCPUs=`; none where it has what its parents have.
    cpus: CpuSet,
    is_delegated: bool,
}

impl Known {
    /// Lines `NAME=VALUE`; systemd puts spaces between the ranges of a set.
    fn of(shown: &str) -> Result<Known> {
        let mut known = Known::default();
        for line in shown.lines() {
            match line.split_once('=') {
                Some(("ControlGroup", group)) => group.clone_into(&mut known.group),
                Some(("AllowedCPUs", cpus)) => {
                    let ranges: Vec<&str> = cpus.split_whitespace().collect();
                    known.cpus = ranges.join(",").parse()?;
                }
                Some(("Delegate", value)) => known.is_delegated = value == "yes",
                _ => {}
            }
        }
        Ok(known)
    }
}

/// The scope or the service whose own group this may be: runtimes run containers in scopes, and services run `isolate`.
/// Version 1 cpusets are nothing that systemd knows.
fn unit_of(group: &Group) -> Option<&str> {
    let name = group.path().rsplit('/').next()?;
    let is_unit = name.ends_with(".scope") || name.ends_with(".service");
    (group.version() == Version::V2 && is_unit && !is_of_user(group)).then_some(name)
}

/// What systemctl prints; what it says of a failure is the error.
fn answer(command: &mut Command, deadline: Instant) -> Result<String> {
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("run systemctl")?;
    let status = end_of(&mut child, deadline)?;
    if !status.success() {
        bail!("it says {:?}", one_line(said(child.stderr).trim()));
    }
    Ok(said(child.stdout))
}

/// It has ended by now, and what it wrote is in the pipe.
fn said(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // Half of a message is better than none.
        let _ = pipe.take(4096).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn end_of(child: &mut Child, deadline: Instant) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for systemctl")? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child
                .kill()
                .and_then(|()| child.wait())
                .context("end systemctl")?;
            bail!("it did not answer in time: is systemd busy, or stuck?");
        }
        sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    #[test]
    fn what_systemd_says_is_read_in_any_order() {
        let shown = "Delegate=yes\nControlGroup=/system.slice/a=b.service\nAllowedCPUs=0-1 3\n";
        let known = Known {
            group: "/system.slice/a=b.service".into(),
            cpus: "0-1,3".parse().unwrap(),
            is_delegated: true,
        };
        assert_eq!(Known::of(shown).unwrap(), known);
        let nothing = "AllowedCPUs=\nControlGroup=\nDelegate=no\n";
        assert_eq!(Known::of(nothing).unwrap(), Known::default());
        assert!(Known::of("AllowedCPUs=all\n").is_err());
    }

    #[test]
    fn only_a_units_own_group_is_systemds() {
        let hierarchy = |version| Hierarchy {
            controller: "cpuset",
            version,
            mount: "/sys/fs/cgroup".into(),
            root: "/".into(),
        };
        for (version, path, unit) in [
            (
                Version::V2,
                "/machine.slice/libpod-1.scope",
                Some("libpod-1.scope"),
            ),
            (
                Version::V2,
                "/system.slice/forwarder.service",
                Some("forwarder.service"),
            ),
            (Version::V2, "/system.slice/forwarder.service/below", None),
            (Version::V2, "/machine.slice/libpod-1.scope/container", None),
            (Version::V2, "/machine.slice", None),
            (
                Version::V2,
                "/user.slice/user-1.slice/user@1.service/a.scope",
                None,
            ),
            (Version::V1, "/machine.slice/libpod-1.scope", None),
        ] {
            let group = hierarchy(version).group(path).unwrap();
            assert_eq!(unit_of(&group), unit, "{path}");
        }
    }
}
