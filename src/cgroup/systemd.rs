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
use crate::host::Host;
use crate::text::one_line;

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
    if unit.shown("ControlGroup", deadline)? != group.path() {
        return Ok(false);
    }
    unit.set(cpus, mems, deadline)?;
    Ok(true)
}

/// Tells systemd the CPUs of a service as they are without us, though its group may be gone: it keeps them for the
/// service's next start.
///
/// # Errors
/// As above; that the unit is gone altogether is one of them.
pub fn tell_for_later(
    host: &Host,
    group: &Group,
    cpus: &CpuSet,
    mems: Option<&CpuSet>,
    patience: Duration,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    match Unit::of(host, group)? {
        Some(unit) if unit.name.ends_with(".service") => unit.set(cpus, mems, deadline),
        _ => Ok(()),
    }
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
    Ok(unit.shown("ControlGroup", deadline)? == group.path()
        && unit.shown("Delegate", deadline)? == "yes")
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

    fn shown(&self, property: &str, deadline: Instant) -> Result<String> {
        let mut question = Command::new(&self.systemctl);
        question.args(["show", "--value", "--property", property, "--", self.name]);
        let shown = answer(&mut question, deadline);
        let shown =
            shown.with_context(|| format!("ask systemd for {property} of {}", self.name))?;
        Ok(shown.trim().to_owned())
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

/// The scope or the service whose own group this may be: runtimes run containers in scopes, and services run `isolate`.
/// Version 1 cpusets are nothing that systemd knows.
fn unit_of(group: &Group) -> Option<&str> {
    let is_of_user = group.path().contains("/user@");
    let name = group.path().rsplit('/').next()?;
    let is_unit = name.ends_with(".scope") || name.ends_with(".service");
    (group.version() == Version::V2 && is_unit && !is_of_user).then_some(name)
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
    fn only_a_units_own_group_is_systemds() {
        let hierarchy = |version| Hierarchy {
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
