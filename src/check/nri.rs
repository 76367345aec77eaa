//! NRI, where `pinfold-node` serves it: a container goes on as it is while the plugin is away.

use std::fmt::{self, Display};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::machine::numbers;
use super::{Report, Scope};
use crate::child;
use crate::engines::Engine;
use crate::engines::nri::{NriSettings, PLUGIN, SOCKET};
use crate::files;
use crate::host::Host;
use crate::install;
use crate::process;
use crate::text::Shown;

const WHAT: &str = "nri";

/// The annotation by which a pod says which plugins it needs (containerd/nri:
/// pkg/plugin/annotations.go).
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// The version of containerd's file that no containerd before this one takes.
const NEW_FILE: (i64, Version) = (4, Version(2, 3));
/// Where CRI-O writes its version when it starts (crio.conf(5), `version_file`).
const CRIO_VERSION: &str = "/var/run/crio/version";
/// How long an engine's program may take to say its version.
const VERSION_WITHIN: Duration = Duration::from_secs(2);
/// The flag of a socket that somebody listens at (kernel: net/unix/af_unix.c, `unix_seq_show`).
const LISTENING: u32 = 1 << 16;
/// The machine's first process, in whose network namespace engines are.
const INIT: i32 = 1;

/// An engine's version, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

pub(super) fn check(scope: &Scope<'_>, report: &mut Report) {
    if let Err(error) = look(scope, report) {
        report.error(WHAT, &error);
    }
}

fn look(scope: &Scope<'_>, report: &mut Report) -> Result<()> {
    let host = scope.host();
    let Some((_, plugin)) = process_of(host, is_plugin)? else {
        return Ok(());
    };
    let named = value_of(&plugin, "--nri-socket");
    let socket = named.unwrap_or_else(|| SOCKET.to_owned());
    let (engine, pid) = engine_in_use(host)?;
    let mut version = version_of(host, engine, pid)?;
    let settings = match engine {
        Engine::Crio => install::crio_files(&scope.place(Engine::Crio))?.all.nri,
        _ => {
            let place = scope.place(Engine::Containerd);
            let files = install::containerd_configuration(&place)?.files;
            let is_new = files.iter().any(|file| file.version() >= NEW_FILE.0);
            version = version.or(is_new.then_some(NEW_FILE.1));
            NriSettings::of(&files)
        }
    };
    let served = Served {
        listener: Listener::at(host, &socket)?,
        socket,
        engine,
        version,
    };
    served.report(&settings, report);
    Ok(())
}

/// What our plugin serves.
struct Served {
    /// The path of the socket that it connects to.
    socket: String,
    listener: Listener,
    engine: Engine,
    /// `None` where it is not known.
    version: Option<Version>,
}

impl Served {
    /// Says how the engine is with NRI, and what to do, as one finding.
    fn report(&self, settings: &NriSettings, report: &mut Report) {
        let (engine, words) = match self.engine {
            Engine::Crio => ("CRI-O", &CRIO),
            _ => ("containerd", &CONTAINERD),
        };
        let first = words.validates_from;
        let validates = self.version.map(|version| version >= first);
        let open = "while pinfold-node is away, a pod that asks for CPUs by annotation runs \
                    unpinned";
        if settings.is_off == Some(true) {
            let text = format!(
                "{engine} has NRI off, so pinfold-node pins no pod that asks by annotation"
            );
            report.fault(WHAT, text, words.turn_on);
        } else if self.listener == Listener::Gone {
            let text = format!(
                "nobody listens at {}, which an engine left behind, so pinfold-node pins no pod \
                 that asks by annotation",
                Shown(&self.socket)
            );
            report.fault(WHAT, text, format!("start {engine}, or restart it"));
        } else if self.listener == Listener::Never {
            let text = format!(
                "{engine} has no NRI socket at {}, so pinfold-node pins no pod that asks by \
                 annotation{}",
                Shown(&self.socket),
                match settings.is_off {
                    None => words.by_default,
                    Some(_) => "",
                }
            );
            let elsewhere = settings.socket.as_ref();
            let elsewhere = elsewhere.filter(|socket| **socket != self.socket);
            let remedy = match (elsewhere, settings.is_off) {
                (Some(socket), _) => format!("give pinfold-node --nri-socket {}", Shown(socket)),
                (None, None) => format!("{}, and restart it", words.turn_on),
                (None, Some(_)) => format!("restart {engine}"),
            };
            report.fault(WHAT, text, remedy);
        } else if settings.refuses_us() && validates != Some(false) {
            let text = format!(
                "{engine}'s validator refuses each container to which pinfold-node adds hooks"
            );
            report.fault(WHAT, text, words.let_hooks);
        } else if settings.requires_us() {
            match (self.version, validates) {
                (_, Some(true)) => {
                    let text = format!("{engine} makes no container while pinfold-node is away");
                    report.ok(WHAT, text);
                }
                (Some(version), _) => {
                    let text = format!(
                        "{engine} {version} has no validator, so its configuration requires \
                         pinfold in vain: {open}"
                    );
                    report.warn(WHAT, text, format!("get {engine} {first} or later"));
                }
                (None, _) => {
                    let text = format!(
                        "{engine} requires pinfold if it is {first} or later, and which it is \
                         could not be found out; under an earlier one, {open}"
                    );
                    let remedy = format!(
                        "see that `{} --version` says {first} or later, or get that",
                        self.engine.program()
                    );
                    report.warn(WHAT, text, remedy);
                }
            }
        } else {
            let text = format!("{engine} has NRI on, which fails open: {open}");
            let remedy = format!(
                "in {engine} {first} or later, {}, or give such pods the annotation {REQUIRED}: \
                 '[\"{PLUGIN}\"]'",
                words.require
            );
            report.warn(WHAT, text, remedy);
        }
    }
}

/// Who is at the path of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    /// Somebody, or nobody can tell.
    There,
    /// There is a socket, and nobody listens.
    Gone,
    /// There is no socket.
    Never,
}

impl Listener {
    /// Looks into the kernel's table. To connect would be no mere look: an engine takes whoever
    /// does for a plugin, and lets no other in until it has given up on that one (containerd/nri:
    /// pkg/adaptation/adaptation.go, `acceptPluginConnections`).
    fn at(host: &Host, socket: &str) -> Result<Listener> {
        let path = host.resolve(socket)?;
        let entry = files::entry_if_there(&path)?;
        if !entry.is_some_and(|entry| entry.file_type().is_socket()) {
            return Ok(Listener::Never);
        }
        let table = files::read_if_there(&host.proc_pid(INIT, "net/unix"));
        let Some(table) = table.ok().flatten() else {
            return Ok(Listener::There);
        };
        let is_it = |bound: &str| host.resolve(bound).is_ok_and(|bound| bound == path);
        let mut bound = table.lines().filter_map(listening);
        Ok(match bound.any(is_it) {
            true => Listener::There,
            false => Listener::Gone,
        })
    }
}

/// The path that a line of the table tells of, if somebody listens there (proc_pid_net(5), `unix`).
fn listening(line: &str) -> Option<&str> {
    let flags = line.split_ascii_whitespace().nth(3)?;
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let at = line.find(" /")?;
    (flags & LISTENING != 0).then_some(&line[at + 1..])
}

/// How an engine is told.
struct Words {
    /// The first version that has a validator.
    validates_from: Version,
    /// What holds where its configuration does not say.
    by_default: &'static str,
    turn_on: &'static str,
    let_hooks: &'static str,
    require: &'static str,
}

const CONTAINERD: Words = Words {
    validates_from: Version(2, 2),
    by_default: ": containerd 1.7 has NRI off by default, 2.x has it on",
    turn_on: "set disable = false in the table of io.containerd.nri.v1.nri",
    let_hooks: "set reject_oci_hook_adjustment = false in the table of default_validator",
    require: "set enable = true in the table default_validator of io.containerd.nri.v1.nri, and \
              name pinfold in its required_plugins",
};

const CRIO: Words = Words {
    validates_from: Version(1, 34),
    by_default: ": CRI-O has NRI on by default from 1.30 on",
    turn_on: "set enable_nri = true in the table crio.nri",
    let_hooks: "set nri_validator_reject_oci_hook_adjustment = false in the table \
                crio.nri.default_validator",
    require: "set nri_enable_default_validator = true in the table crio.nri.default_validator, \
              and name pinfold in its nri_validator_required_plugins",
};

/// The engine that runs pods, and its process: CRI-O has no other use, while docker uses containerd
/// as well. Where none runs, the one that is installed; of two, or none, containerd.
fn engine_in_use(host: &Host) -> Result<(Engine, Option<i32>)> {
    for engine in [Engine::Crio, Engine::Containerd] {
        if let Some((pid, _)) = process_of(host, |words| is_program(words, engine.program()))? {
            return Ok((engine, Some(pid)));
        }
    }
    let is_there = |engine: Engine| host.program(engine.program()).is_some();
    let is_crio = !is_there(Engine::Containerd) && is_there(Engine::Crio);
    let engine = match is_crio {
        true => Engine::Crio,
        false => Engine::Containerd,
    };
    Ok((engine, None))
}

/// The version of an engine that runs as this process, or else of the installed one; `None` where
/// it cannot be found out.
fn version_of(host: &Host, engine: Engine, pid: Option<i32>) -> Result<Option<Version>> {
    if engine == Engine::Crio {
        let said = files::read_if_there(&host.resolve(CRIO_VERSION)?)?;
        if let Some(version) = said.and_then(|said| version_in(said.trim().trim_matches('"'))) {
            return Ok(Some(version));
        }
    }
    // The programs of another root are not run, nor is what a process says that its program is.
    let program = host.program(engine.program());
    let Some(program) = program.filter(|_| host.is_running_root()) else {
        return Ok(None);
    };
    let runs_it = pid.is_none_or(|pid| is_same_file(&host.proc_pid(pid, "exe"), &program));
    if !runs_it {
        return Ok(None);
    }
    let answer = child::ask(Command::new(&program).arg("--version"), VERSION_WITHIN);
    // `containerd MODULE VERSION COMMIT`, `crio version VERSION`.
    let word = |out: &str| out.split_whitespace().nth(2).and_then(version_in);
    Ok(answer.ok().and_then(|answer| word(&answer.out)))
}

/// A version as engines write it: `v2.2.0`, `1.7.24~ds1`, `1.34.1`.
fn version_in(word: &str) -> Option<Version> {
    let (major, minor) = numbers(word.strip_prefix('v').unwrap_or(word))?;
    Some(Version(major, minor))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let metadata = path.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    id(one).is_some() && id(one) == id(other)
}

/// The pid and the command line of a process of the machine's that is the one meant.
fn process_of(host: &Host, is_it: impl Fn(&[&str]) -> bool) -> Result<Option<(i32, Vec<String>)>> {
    let names = files::directories_in(&host.processes())?;
    for pid in names.iter().filter_map(|name| name.parse().ok()) {
        let line = process::command_line(host, pid);
        let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
        if is_it(&words) && process::is_the_machines(host, pid) {
            let words = words.into_iter().map(str::to_owned).collect();
            return Ok(Some((pid, words)));
        }
    }
    Ok(None)
}

fn is_program(words: &[&str], name: &str) -> bool {
    let program = words.first().and_then(|word| word.rsplit('/').next());
    program == Some(name)
}

fn is_plugin(words: &[&str]) -> bool {
    is_program(words, "pinfold-node") && words.contains(&"--nri")
}

/// The value of an option, as its own word or behind `=`.
fn value_of(words: &[String], option: &str) -> Option<String> {
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.strip_prefix(option) {
            Some("") => return rest.next().cloned(),
            Some(value) if value.starts_with('=') => return Some(value[1..].to_owned()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_that_an_engine_left_behind_has_no_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nri socket");
        let at = || Listener::at(&Host::new("/"), path.to_str().unwrap()).unwrap();
        assert_eq!(at(), Listener::Never);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(at(), Listener::There);
        drop(listener);
        let table = Host::new("/").proc_pid(INIT, "net/unix");
        let is_readable = files::read_if_there(&table).is_ok_and(|table| table.is_some());
        let expected = [Listener::There, Listener::Gone][usize::from(is_readable)];
        assert_eq!(at(), expected);
        // One that is bound and does not listen is none, either.
        assert_eq!(
            listening("0000: 00000002 00000000 00000000 0001 01    12 /x"),
            None
        );
    }

    #[test]
    fn engines_write_their_versions_in_several_ways() {
        for (word, version) in [
            ("v2.2.0", Some(Version(2, 2))),
            ("1.7.24~ds1", Some(Version(1, 7))),
            ("1.34.1", Some(Version(1, 34))),
            ("2.10.0-rc.1", Some(Version(2, 10))),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(version_in(word), version, "{word}");
        }
        assert!(Version(2, 10) > Version(2, 2) && Version(1, 34) < Version(2, 0));
        assert_eq!(Version(2, 10).to_string(), "2.10");
    }

    #[test]
    fn the_program_of_another_process_tells_no_version() {
        let own = std::env::current_exe().unwrap();
        let pid = std::process::id() as i32;
        let exe = Host::new("/").proc_pid(pid, "exe");
        assert!(is_same_file(&exe, &own));
        assert!(!is_same_file(&exe, Path::new("/proc/self/status")));
        assert!(!is_same_file(Path::new("/nowhere"), Path::new("/nowhere")));
    }
}
