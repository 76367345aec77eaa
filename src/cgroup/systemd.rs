//! Telling systemd which CPUs a unit has: it owns the files of its units' groups, and writes them again from what it
//! knows with every reload and every property that changes (systemd.resource-control(5), `AllowedCPUs=`).
//!
//! A kernel up to 6.12 refuses the empty value that systemd writes where it knows of none; later ones take it, and the
//! container would run everywhere.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Group, Version};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::text::one_line;

/// How long systemd may take to answer; a hook as a whole has 20 s.
const PATIENCE: Duration = Duration::from_secs(6);

/// Makes the CPUs of a group, and its memory nodes where there are any, known to systemd where it is a unit's own; an
/// empty set is what its parents have. Elsewhere, a container's group below its unit's included, nothing is asked.
///
/// A unit of a user's manager is left alone: that is not reached from a hook.
///
/// # Errors
/// systemd refuses, or does not answer within 6 s.
pub fn tell(host: &Host, group: &Group, cpus: &CpuSet, mems: Option<&CpuSet>) -> Result<()> {
    let Some(unit) = unit_of(group).filter(|_| host.systemd_mark().exists()) else {
        return Ok(());
    };
    let systemctl = host.program("systemctl").context("find systemctl")?;
    let child = Command::new(systemctl)
        .args(["--runtime", "--no-ask-password", "set-property", "--", unit])
        .arg(format!("AllowedCPUs={cpus}"))
        .args(mems.map(|mems| format!("AllowedMemoryNodes={mems}")))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run systemctl")?;
    ended_well(child).with_context(|| format!("tell systemd of the CPUs {cpus} of {unit}"))
}

/// The unit whose own group this is. Version 1 cpusets are nothing that systemd knows.
fn unit_of(group: &Group) -> Option<&str> {
    let is_of_user = group.path().contains("/user@");
    let name = group.path().rsplit('/').next()?;
    let is_unit = name.ends_with(".scope") || name.ends_with(".service");
    (group.version() == Version::V2 && is_unit && !is_of_user).then_some(name)
}

fn ended_well(mut child: Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for systemctl")? {
            break status;
        }
        if Instant::now() >= deadline {
            child
                .kill()
                .and_then(|()| child.wait())
                .context("end systemctl")?;
            bail!("it did not answer within {} s", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(2));
    };
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What else holds the pipe open may not keep us: what it says is short, and in it by now.
        stderr
            .take(4096)
            .read_to_string(&mut said)
            .context("read what systemctl says")?;
    }
    ensure!(status.success(), "it says {:?}", one_line(said.trim()));
    Ok(())
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
            (Version::V2, "/system.slice/a.service", Some("a.service")),
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
