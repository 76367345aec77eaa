//! Telling systemd which CPUs a unit has. systemd owns the files of its units' groups: at each
//! reload and each changed property it writes them again, from the properties it knows
//! (systemd.resource-control(5), `AllowedCPUs=`).
//!
//! If it knows no CPUs for a unit, it writes an empty value. Kernels up to 6.12 refuse that; later
//! ones accept it, and the container would run on all CPUs.
//!
//! systemd is asked over D-Bus (org.freedesktop.systemd1(5)): `systemctl` would cost two more
//! processes at each start.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Group, Version};
use crate::cpulist::CpuSet;
use crate::dbus::{self, Answer, Call, Connection, Property, Values};
use crate::files;
use crate::host::Host;

/// The properties that [`tell`] sets: CPUs and memory nodes.
const SETTINGS: [&str; 2] = ["AllowedCPUs", "AllowedMemoryNodes"];

/// The bus name of systemd's manager.
const MANAGER: &str = "org.freedesktop.systemd1";

/// The most bytes of a unit's name (systemd.unit(5)).
const MOST_NAME: usize = 255;

/// Tells systemd the CPUs of a group, and its memory nodes if there are any, if the group is the
/// own group of a scope or service. An empty set means what its parents have. Returns whether there
/// was such a unit. For any other group, such as a container's group below its scope, systemd is
/// not asked.
///
/// A group named like a unit need not be that unit's, so systemd is asked for the unit's group. A
/// unit of a user's manager is left alone, because a hook cannot reach that manager. Nothing is
/// told on a machine that is not the running one.
///
/// # Errors
/// systemd refuses, or has not answered within `patience`.
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

/// No limit: `infinity` (systemd.resource-control(5), `CPUQuota=`).
pub const NO_LIMIT: u64 = u64::MAX;

/// The property of a unit's limit of CPU time, in microseconds a second.
const LIMIT: &str = "CPUQuotaPerSecUSec";

/// The limit of CPU time that systemd knows of a scope or service. Whenever it writes anything of
/// the unit, it writes that limit.
pub struct Limit<'a> {
    unit: Unit<'a>,
    /// In microseconds a second, or [`NO_LIMIT`].
    pub known: u64,
}

impl<'a> Limit<'a> {
    /// That of the unit whose own group this is; `None` where there is no such unit.
    ///
    /// # Errors
    /// systemd refuses, or has not answered within `patience`, in which it has to be told too.
    pub fn of(host: &Host, group: &'a Group, patience: Duration) -> Result<Option<Limit<'a>>> {
        let deadline = Instant::now() + patience;
        let Some(name) = limited_unit(host, group)? else {
            return Ok(None);
        };
        let manager = Manager::connected(host, name, deadline)?;
        let mut unit = Unit { name, manager };
        if unit.known()?.group != group.path() {
            return Ok(None);
        }
        let path = object_path(name);
        let asked = unit.manager.connection.ask([property(name, &path, LIMIT)]);
        let known = asked.and_then(|[limit]| limit.number());
        let known = known.with_context(|| format!("ask systemd for the limit of {name}"))?;
        Ok(Some(Limit { unit, known }))
    }

    /// Tells systemd another, which it writes to the group. A scope's drop-in file of it is removed
    /// with the scope.
    ///
    /// # Errors
    /// systemd refuses, or has not answered in time.
    pub fn set(&mut self, limit: u64) -> Result<()> {
        let Unit { name, manager } = &mut self.unit;
        let set = manager.set_properties(name, &[(LIMIT, Property::Number(limit))]);
        set.with_context(|| format!("tell systemd the limit of CPU time of {name}"))?;
        self.known = limit;
        Ok(())
    }
}

/// The name of the unit whose own group this may be, and whose limit systemd may know.
///
/// # Errors
/// Whether systemd runs cannot be looked at.
pub fn limited_unit<'a>(host: &Host, group: &'a Group) -> Result<Option<&'a str>> {
    let Some(name) = unit_of(group) else {
        return Ok(None);
    };
    Ok(runs(host)?.then_some(name))
}

/// What a unit had before somebody owned CPUs there.
#[derive(Debug, Clone, Copy)]
pub struct Former<'a> {
    /// Its CPUs. An empty set means what its parents have.
    pub cpus: &'a CpuSet,
    /// Its memory nodes, if they were told too.
    pub mems: Option<&'a CpuSet>,
    /// The names of the settings that had been made at run time before, from [`settings`]. They are
    /// kept, with the former values.
    pub settings: &'a [String],
    /// The CPUs that we told systemd. If the unit has other CPUs now, or none, somebody else set
    /// that, and it stays. `None` if whatever the unit has now counts as ours.
    pub told: Option<&'a CpuSet>,
}

/// Gives a unit back what it had, even if its group is gone: systemd keeps a service's CPUs for its
/// next start. Returns `false` if somebody else has set other CPUs since, which stay. A unit that
/// does not exist any more is success.
///
/// The drop-in files that [`tell`] caused are removed; they would override what an operator writes
/// into the unit from now on.
///
/// # Errors
/// As [`tell`], or a drop-in file cannot be removed.
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
            // If the unit ended meanwhile, there is nothing to give back.
            let again = unit.known()?;
            let keeps = unit.has_group(&again, group) && again.cpus != *former.cpus;
            return if keeps { Err(error) } else { Ok(true) };
        }
    }
    remove_settings(host, unit.name, former.settings)?;
    Ok(true)
}

/// The settings of CPUs and memory nodes that the group's unit was given at run time (systemctl(1),
/// `set-property --runtime`).
///
/// # Errors
/// The drop-in files cannot be looked at.
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

/// Does the group belong to a user's own manager (`user@.service`)? That manager writes the files
/// of its units' groups again from what it knows, and cannot be reached from here.
pub fn is_of_user(group: &Group) -> bool {
    group.path().contains("/user@")
}

/// Is this the own group of a unit that divides it among its processes itself (`Delegate=`,
/// systemd.resource-control(5))?
///
/// # Errors
/// systemd has not answered within `patience`.
pub fn is_delegated(host: &Host, group: &Group, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let Some(mut unit) = Unit::of(host, group, deadline)? else {
        return Ok(false);
    };
    let known = unit.known()?;
    Ok(known.group == group.path() && known.is_delegated)
}

/// The host's own units: systemd's slices, and its own scope. The CPUs of one are those of its
/// `AllowedCPUs=`, where none means all (systemd.resource-control(5)). All are asked over one
/// connection; another is made after an error, in what is left of the time.
pub struct HostUnits<'a> {
    host: &'a Host,
    deadline: Instant,
    manager: Option<Manager>,
}

impl<'a> HostUnits<'a> {
    /// The units of a machine whose init is systemd. All that is asked of them has to be done by
    /// the deadline.
    pub fn until(host: &'a Host, deadline: Instant) -> HostUnits<'a> {
        HostUnits {
            host,
            deadline,
            manager: None,
        }
    }

    /// Is the deadline over?
    pub fn is_late(&self) -> bool {
        dbus::is_late(self.deadline)
    }

    /// The CPUs of one.
    ///
    /// # Errors
    /// systemd has not answered in time, or knows no such unit.
    pub fn cpus(&mut self, unit: &str) -> Result<CpuSet> {
        self.ask(unit, |manager| Ok(manager.known(unit)?.cpus))
    }

    /// Were its CPUs set at run time (systemctl(1), `set-property --runtime`)?
    ///
    /// # Errors
    /// The drop-in file cannot be looked at.
    pub fn is_set(&self, unit: &str) -> Result<bool> {
        let setting = drop_in(self.host, unit, SETTINGS[0]);
        Ok(files::entry_if_there(&setting)?.is_some())
    }

    /// Sets its CPUs until the machine is shut down.
    ///
    /// # Errors
    /// systemd refuses, or has not answered in time.
    pub fn set(&mut self, unit: &str, cpus: &CpuSet) -> Result<()> {
        self.ask(unit, |manager| manager.set(unit, cpus, None))
    }

    /// Forgets that its CPUs were set at run time: what an operator writes into the unit counts
    /// from now on.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn forget(&self, unit: &str) -> Result<()> {
        remove_settings(self.host, unit, &[SETTINGS[1].to_owned()])
    }

    fn ask<T>(&mut self, unit: &str, ask: impl FnOnce(&mut Manager) -> Result<T>) -> Result<T> {
        let mut manager = match self.manager.take() {
            Some(manager) => manager,
            None => Manager::connected(self.host, unit, self.deadline)?,
        };
        let answer = ask(&mut manager)?;
        self.manager = Some(manager);
        Ok(answer)
    }
}

/// Is systemd the machine's init (sd_booted(3))?
///
/// # Errors
/// That cannot be looked at.
pub fn runs(host: &Host) -> Result<bool> {
    Ok(files::metadata_if_there(&host.systemd_mark())?.is_some())
}

/// A unit of the system's manager, and the connection to that manager.
struct Unit<'a> {
    name: &'a str,
    manager: Manager,
}

impl<'a> Unit<'a> {
    /// The unit whose own group this may be; `None` where there is none, or this is not the running
    /// machine.
    fn of(host: &Host, group: &'a Group, deadline: Instant) -> Result<Option<Unit<'a>>> {
        let Some(name) = unit_on(host, group)? else {
            return Ok(None);
        };
        let manager = Manager::connected(host, name, deadline)?;
        Ok(Some(Unit { name, manager }))
    }

    fn known(&mut self) -> Result<Known> {
        self.manager.known(self.name)
    }

    /// Is this the unit's group? A service that does not run has no group, and counts.
    fn has_group(&self, known: &Known, group: &Group) -> bool {
        let is_at_rest = known.group.is_empty() && self.name.ends_with(".service");
        is_at_rest || known.group == group.path()
    }

    fn set(&mut self, cpus: &CpuSet, mems: Option<&CpuSet>) -> Result<()> {
        self.manager.set(self.name, cpus, mems)
    }
}

/// A connection to the system's manager.
struct Manager {
    connection: Connection,
    /// systemd's own socket, while the connection goes over the bus.
    own_socket: Option<PathBuf>,
    deadline: Instant,
}

impl Manager {
    /// Connects to it; the name of the unit that it will be asked for is for messages.
    fn connected(host: &Host, unit: &str, deadline: Instant) -> Result<Manager> {
        let connected = manager(host, deadline).map_err(dbus::late);
        let (connection, own_socket) =
            connected.with_context(|| format!("ask systemd for the unit {unit}"))?;
        Ok(Manager {
            connection,
            own_socket,
            deadline,
        })
    }

    /// Asks for a unit's properties. If that fails over the bus, systemd's own socket is tried in
    /// the time that is left: the bus may be full, or systemd not on it.
    fn known(&mut self, unit: &str) -> Result<Known> {
        let known = self.ask(unit);
        match (&known, self.own_socket.take()) {
            (Err(_), Some(socket)) => match Connection::to_program(&socket, self.deadline) {
                Ok(connection) => {
                    self.connection = connection;
                    self.ask(unit).or(known)
                }
                Err(_) => known,
            },
            _ => known,
        }
    }

    fn ask(&mut self, unit: &str) -> Result<Known> {
        let path = object_path(unit);
        let names = ["ControlGroup", "AllowedCPUs", "Delegate"];
        let properties = names.map(|name| property(unit, &path, name));
        let answers = self.connection.ask(properties);
        let known = answers.and_then(|answers| Known::of(&answers));
        known.with_context(|| format!("ask systemd for the CPUs of {unit}"))
    }

    /// Sets a unit's CPUs and memory nodes, until the machine is shut down or the unit ends
    /// (systemctl(1), `set-property --runtime`).
    fn set(&mut self, unit: &str, cpus: &CpuSet, mems: Option<&CpuSet>) -> Result<()> {
        let sets = SETTINGS.into_iter().zip([Some(cpus), mems]);
        let properties: Vec<(&str, Property)> = sets
            .filter_map(|(name, set)| Some((name, Property::Bytes(set?.to_byte_mask()))))
            .collect();
        self.set_properties(unit, &properties)
            .with_context(|| format!("tell systemd of the CPUs {cpus} of {unit}"))
    }

    fn set_properties(&mut self, unit: &str, properties: &[(&str, Property)]) -> Result<()> {
        let is_at_run_time = true;
        let set = Call {
            to: MANAGER,
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "SetUnitProperties",
            values: Values::default()
                .text(unit)
                .boolean(is_at_run_time)
                .properties(properties),
        };
        self.connection.ask([set]).map(drop)
    }
}

/// The call for a property of a unit, which is the object at `path`.
fn property<'p>(unit: &str, path: &'p str, name: &str) -> Call<'p> {
    let interface = match unit.rsplit('.').next() {
        Some("scope") => "org.freedesktop.systemd1.Scope",
        Some("slice") => "org.freedesktop.systemd1.Slice",
        _ => "org.freedesktop.systemd1.Service",
    };
    Call {
        to: MANAGER,
        path,
        interface: "org.freedesktop.DBus.Properties",
        member: "Get",
        values: Values::default().text(interface).text(name),
    }
}

/// Connects to systemd's manager over the system bus. A small machine has no bus: there the
/// connection goes to systemd's own socket, as those of `systemctl` and `runc` do. With a
/// connection over the bus, the path of that socket is returned too.
fn manager(host: &Host, deadline: Instant) -> io::Result<(Connection, Option<PathBuf>)> {
    let own_socket = host.systemd_socket();
    let is_nobody = |error: &io::Error| {
        files::is_gone(error) || error.kind() == io::ErrorKind::ConnectionRefused
    };
    match Connection::to_bus(&host.system_bus(), deadline) {
        Err(error) if is_nobody(&error) => {
            Ok((Connection::to_program(&own_socket, deadline)?, None))
        }
        other => Ok((other?, Some(own_socket))),
    }
}

/// The object path of a unit. Each byte that is no ASCII letter or digit is written as `_` and two
/// hexadecimal digits; so is a digit at the beginning (org.freedesktop.systemd1(5), "Unit
/// Objects").
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

/// The drop-in file in which systemd keeps a setting made at run time. Those of a transient unit
/// are removed with the unit.
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
    /// The path of its group; empty where the unit does not run, or does not exist.
    group: String,
    /// Its `AllowedCPUs=`; empty where it has what its parents have.
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

/// The name of the unit whose own group this may be; `None` where systemd is not the init of the
/// running machine.
fn unit_on<'a>(host: &Host, group: &'a Group) -> Result<Option<&'a str>> {
    let Some(name) = unit_of(group).filter(|_| host.is_running_root()) else {
        return Ok(None);
    };
    Ok(runs(host)?.then_some(name))
}

/// The name of the scope or service whose own group this may be: runtimes run containers in scopes,
/// and services run `isolate`. `None` on version 1, where systemd does not set cpusets.
fn unit_of(group: &Group) -> Option<&str> {
    let name = group.path().rsplit('/').next()?;
    let is_unit = name.ends_with(".scope") || name.ends_with(".service");
    (group.version() == Version::V2 && is_unit && is_name(name) && !is_of_user(group))
        .then_some(name)
}

/// Is this a valid unit name (systemd.unit(5))? Whoever makes a group can name it anything.
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

    /// This bus hangs up on everybody, as a full one does.
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
        let mut manager = Manager::connected(&host, "x.service", deadline).unwrap();
        assert_eq!(manager.own_socket, Some(host.systemd_socket()));
        manager.known("x.service").unwrap_err();
        bus.join().unwrap().unwrap();
        itself.join().unwrap().unwrap();
    }

    /// Without a bus systemd's own socket is used. If that is silent too, the error names it.
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
