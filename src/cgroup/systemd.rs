//! Telling systemd which CPUs a unit has: it owns the files of its units' groups, and writes them
//! again from what it knows with every reload and every property that changes
//! (systemd.resource-control(5), `AllowedCPUs=`).
//!
//! A kernel up to 6.12 refuses the empty value that systemd writes where it knows of none; later
//! ones take it, and the container would run everywhere.
//!
//! It is asked over D-Bus (org.freedesktop.systemd1(5)): `systemctl` would be two processes more at
//! each start.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Group, Version};
use crate::cpulist::CpuSet;
use crate::dbus::{self, Answer, Call, Connection, Values};
use crate::files;
use crate::host::Host;

/// The settings that telling systemd makes.
const SETTINGS: [&str; 2] = ["AllowedCPUs", "AllowedMemoryNodes"];

/// The name of systemd's manager on the bus.
const MANAGER: &str = "org.freedesktop.systemd1";

/// The most bytes of a unit's name (systemd.unit(5)).
const MOST_NAME: usize = 255;

/// Makes the CPUs of a group, and its memory nodes where there are any, known to systemd where the
/// group is a scope's or a service's own; an empty set is what its parents have. Was there anything
/// to tell? Elsewhere, in a container's group below its scope too, nothing is asked.
///
/// A container with a unit's name need not have that unit: systemd says which group it has. A unit
/// of a user's manager is left alone, for that is not reached from a hook; so is everything on a
/// machine that is not the running one.
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
    let Some(mut unit) = Unit::of(host, group, deadline)? else {
        return Ok(false);
    };
    if unit.known()?.group != group.path() {
        return Ok(false);
    }
    unit.set(cpus, mems)?;
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
    let Some(mut unit) = Unit::of(host, group, deadline)? else {
        return Ok(true);
    };
    let known = unit.known()?;
    if !unit.has_group(&known, group) {
        return Ok(true);
    }
    let is_as_before = known.cpus == *former.cpus;
    let is_ours = |told: &CpuSet| !known.cpus.is_empty() && known.cpus.is_subset(told);
    if !is_as_before && !former.told.is_none_or(is_ours) {
        return Ok(false);
    }
    if !is_as_before || former.mems.is_some() {
        if let Err(error) = unit.set(former.cpus, former.mems) {
            // It may have ended meanwhile, and that be all.
            let again = unit.known()?;
            let keeps = unit.has_group(&again, group) && again.cpus != *former.cpus;
            return if keeps { Err(error) } else { Ok(true) };
        }
    }
    remove_settings(host, unit.name, former.settings)?;
    Ok(true)
}

/// The settings of CPUs and memory nodes that a unit was given at run time (systemctl(1),
/// `set-property --runtime`).
///
/// # Errors
/// They cannot be looked at.
pub fn settings(host: &Host, group: &Group) -> Result<Vec<String>> {
    let Some(unit) = unit_on(host, group)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for setting in SETTINGS {
        if files::entry_if_there(&drop_in(host, unit, setting))?.is_some() {
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
    let Some(mut unit) = Unit::of(host, group, deadline)? else {
        return Ok(false);
    };
    let known = unit.known()?;
    Ok(known.group == group.path() && known.is_delegated)
}

/// A unit of the system's manager, and the connection to that.
struct Unit<'a> {
    name: &'a str,
    manager: Connection,
    /// Where systemd listens itself, while it is asked over the bus.
    itself: Option<PathBuf>,
    deadline: Instant,
}

impl<'a> Unit<'a> {
    /// The unit whose own group this may be, on the running machine.
    fn of(host: &Host, group: &'a Group, deadline: Instant) -> Result<Option<Unit<'a>>> {
        let Some(name) = unit_on(host, group)? else {
            return Ok(None);
        };
        let connected = manager(host, deadline).map_err(dbus::late);
        let (manager, itself) =
            connected.with_context(|| format!("ask systemd for the unit {name}"))?;
        Ok(Some(Unit {
            name,
            manager,
            itself,
            deadline,
        }))
    }

    /// Asks what systemd knows of the unit. A bus can be there without systemd on it, or be full:
    /// then systemd is asked itself, if there is time.
    fn known(&mut self) -> Result<Known> {
        let known = self.ask();
        match (&known, self.itself.take()) {
            (Err(_), Some(socket)) => match Connection::to_program(&socket, self.deadline) {
                Ok(manager) => {
                    self.manager = manager;
                    self.ask().or(known)
                }
                Err(_) => known,
            },
            _ => known,
        }
    }

    fn ask(&mut self) -> Result<Known> {
        let path = object_path(self.name);
        let interface = match self.name.ends_with(".scope") {
            true => "org.freedesktop.systemd1.Scope",
            false => "org.freedesktop.systemd1.Service",
        };
        let get = |property: &str| Call {
            to: MANAGER,
            path: &path,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            values: Values::default().text(interface).text(property),
        };
        let properties = [get("ControlGroup"), get("AllowedCPUs"), get("Delegate")];
        let answers = self.manager.ask(properties);
        let known = answers.and_then(|answers| Known::of(&answers));
        known.with_context(|| format!("ask systemd for the CPUs of {}", self.name))
    }

    /// Is it the unit of this group? A service that does not run has none, and is.
    fn has_group(&self, known: &Known, group: &Group) -> bool {
        let is_at_rest = known.group.is_empty() && self.name.ends_with(".service");
        is_at_rest || known.group == group.path()
    }

    /// Until the machine is shut down, or the unit ends (systemctl(1), `set-property --runtime`).
    fn set(&mut self, cpus: &CpuSet, mems: Option<&CpuSet>) -> Result<()> {
        let sets = SETTINGS.into_iter().zip([Some(cpus), mems]);
        let properties: Vec<(&str, Vec<u8>)> = sets
            .filter_map(|(name, set)| Some((name, set?.to_byte_mask())))
            .collect();
        let is_at_run_time = true;
        let set = Call {
            to: MANAGER,
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "SetUnitProperties",
            values: Values::default()
                .text(self.name)
                .boolean(is_at_run_time)
                .byte_properties(&properties),
        };
        self.manager
            .ask([set])
            .with_context(|| format!("tell systemd of the CPUs {cpus} of {}", self.name))?;
        Ok(())
    }
}

/// systemd's manager, over the system's bus. A small machine has no bus: there systemd is asked
/// where it listens itself, as `systemctl` and `runc` do. Returns with a connection over the bus
/// where that is.
fn manager(host: &Host, deadline: Instant) -> io::Result<(Connection, Option<PathBuf>)> {
    let itself = host.systemd_socket();
    let is_nobody = |error: &io::Error| {
        files::is_gone(error) || error.kind() == io::ErrorKind::ConnectionRefused
    };
    match Connection::to_bus(&host.system_bus(), deadline) {
        Err(error) if is_nobody(&error) => Ok((Connection::to_program(&itself, deadline)?, None)),
        other => Ok((other?, Some(itself))),
    }
}

/// The object of a unit: what is no letter and no digit of its name is escaped, and so is a digit
/// at its beginning (org.freedesktop.systemd1(5), "Unit Objects").
fn object_path(unit: &str) -> String {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (place, byte) in unit.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => path.push(byte.into()),
            b'0'..=b'9' if place > 0 => path.push(byte.into()),
            _ => path.push_str(&format!("_{byte:02x}")),
        }
    }
    path
}

/// Where systemd keeps a setting that was made at run time; those of a transient unit go with
/// the unit.
fn drop_in(host: &Host, unit: &str, setting: &str) -> PathBuf {
    let directory = host.systemd_runtime_settings(unit);
    directory.join(format!("50-{setting}.conf"))
}

fn remove_settings(host: &Host, unit: &str, kept: &[String]) -> Result<()> {
    let gone = |setting: &&&str| !kept.iter().any(|kept| kept == **setting);
    for setting in SETTINGS.iter().filter(gone) {
        files::remove(&drop_in(host, unit, setting))?;
    }
    files::remove_empty_directory(&host.systemd_runtime_settings(unit)).map(drop)
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
    fn of([group, cpus, is_delegated]: &[Answer; 3]) -> Result<Known> {
        let cpus = CpuSet::from_byte_mask(&cpus.bytes()?);
        Ok(Known {
            group: group.text()?,
            cpus: cpus.context("its CPUs have numbers that no machine has")?,
            is_delegated: is_delegated.boolean()?,
        })
    }
}

/// The name of the unit whose own group this may be, where systemd is the running machine's init.
fn unit_on<'a>(host: &Host, group: &'a Group) -> Result<Option<&'a str>> {
    let Some(name) = unit_of(group).filter(|_| host.is_running_root()) else {
        return Ok(None);
    };
    let mark = files::metadata_if_there(&host.systemd_mark())?;
    Ok(mark.map(|_| name))
}

/// The scope or the service whose own group this may be: runtimes run containers in scopes, and
/// services run `isolate`. Version 1 cpusets are nothing that systemd knows.
fn unit_of(group: &Group) -> Option<&str> {
    let name = group.path().rsplit('/').next()?;
    let is_unit = name.ends_with(".scope") || name.ends_with(".service");
    (group.version() == Version::V2 && is_unit && is_name(name) && !is_of_user(group))
        .then_some(name)
}

/// Can a unit have this name (systemd.unit(5))? Who makes a group can call it anything.
fn is_name(name: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() <= MOST_NAME && name.bytes().all(is_of_names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_units_object_is_named_after_it() {
        for (unit, path) in [
            ("crond.service", "crond_2eservice"),
            ("libpod-1a.scope", "libpod_2d1a_2escope"),
            ("0.scope", "_30_2escope"),
            ("a\\x2d@b.service", "a_5cx2d_40b_2eservice"),
        ] {
            let whole = format!("/org/freedesktop/systemd1/unit/{path}");
            assert_eq!(object_path(unit), whole);
        }
    }

    /// A bus that serves nobody: it hangs up, as one does that is full.
    #[test]
    fn where_the_bus_refuses_systemd_is_asked_itself() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let hang_up = |at: PathBuf| {
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            let listener = UnixListener::bind(at).unwrap();
            std::thread::spawn(move || listener.accept().map(drop))
        };
        let (bus, itself) = (hang_up(host.system_bus()), hang_up(host.systemd_socket()));
        let deadline = Instant::now() + Duration::from_secs(20);
        let (manager, other) = manager(&host, deadline).unwrap();
        assert_eq!(other, Some(host.systemd_socket()));
        let mut unit = Unit {
            name: "x.service",
            manager,
            itself: other,
            deadline,
        };
        unit.known().unwrap_err();
        bus.join().unwrap().unwrap();
        itself.join().unwrap().unwrap();
    }

    /// Without a bus systemd is asked itself; where both are silent, the error names it.
    #[test]
    fn where_there_is_no_bus_systemd_is_asked_itself() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let soon = || Instant::now() + Duration::from_secs(20);
        let listen = |at: PathBuf| {
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            UnixListener::bind(at).unwrap()
        };
        let error = manager(&host, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let itself = listen(host.systemd_socket());
        itself.set_nonblocking(true).unwrap();
        manager(&host, soon()).unwrap();
        itself.accept().unwrap();
        // Nobody listens at a socket that was left behind.
        drop(listen(host.system_bus()));
        manager(&host, soon()).unwrap();
        itself.accept().unwrap();
        std::fs::remove_file(host.system_bus()).unwrap();
        let bus = listen(host.system_bus());
        manager(&host, soon()).unwrap();
        bus.accept().unwrap();
        assert!(itself.accept().is_err());
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
            (Version::V2, "/machine.slice/a b.scope", None),
            (Version::V2, "/machine.slice/*.scope", None),
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
