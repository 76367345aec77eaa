//! The OCI runtime behind `pinfold-runtime`: which one it is, and whether it is fit for it.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use serde_json::Value;

use crate::child;
use crate::config::Runtime;
use crate::files::{self, Durability};
use crate::host::Host;
use crate::oci::is_container_id;
use crate::oci_config::STAGES;
use crate::refusal::{OrRefuse, Refusal};
use crate::runtime_line::RuntimeLine;
use crate::text::Shown;

/// The runtimes that are taken, the first that is there, where nothing says another.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// The file that each of them keeps of a container below its root (runc: libcontainer/container_linux.go; crun:
/// src/libcrun/status.c).
const KEPT: [(&str, &str); 2] = [("runc", "state.json"), ("crun", "status")];

/// How long a runtime may take to say what it can.
const FEATURES_WITHIN: Duration = Duration::from_secs(5);

/// Runtimes that make no host process of the container's own for our hooks to confine, whatever their features say; by file
/// name, and why (gVisor: runsc/container/container.go; Kata Containers: src/runtime/pkg/katautils/hook.go; railcar:
/// oci/src/lib.rs).
const UNFIT: [(&str, &str); 4] = [
    (
        "runsc",
        "gives hooks the process of a sandbox, which all containers of a pod share",
    ),
    ("kata-runtime", "gives hooks the process of a hypervisor"),
    (
        "containerd-shim-kata-v2",
        "gives hooks the process of a hypervisor",
    ),
    ("railcar", "runs no createRuntime hooks"),
];

/// The runtime of the configuration; else `default`, the one that the engine uses by itself; else the first that is there.
///
/// # Errors
/// One that is not there, is not allowed, that others can change, or that is this program.
pub fn runtime(
    host: &Host,
    config: &Runtime,
    default: impl FnOnce() -> Option<PathBuf>,
) -> Result<PathBuf> {
    let path = match (&config.path, &config.allow) {
        (Some(path), allow) => {
            if let Some(allow) = allow {
                ensure!(
                    allow.contains(path),
                    Refusal::new(
                        format!(
                            "the runtime {} is not in runtime.allow of Pinfold's configuration",
                            path.display()
                        ),
                        "add it, or name another as runtime.path"
                    )
                );
            }
            path.clone()
        }
        (None, Some(allow)) => {
            let mut there = None;
            for path in allow {
                let metadata = files::metadata_if_there(path)?;
                if there.is_none() && metadata.is_some_and(|metadata| metadata.is_file()) {
                    there = Some(path);
                }
            }
            let none = || {
                Refusal::new(
                    "none of the runtimes in runtime.allow of Pinfold's configuration is there",
                    "install one",
                )
            };
            there.ok_or_else(none)?.clone()
        }
        (None, None) => {
            let known = default().or_else(|| RUNTIMES.iter().find_map(|name| host.program(name)));
            known.ok_or_else(|| {
                Refusal::new(
                    format!("there is no {}", RUNTIMES.join(" and no ")),
                    "install one, or name it as runtime.path in Pinfold's configuration",
                )
            })?
        }
    };
    let real = path.canonicalize().or_refuse(|| {
        Refusal::new(
            format!("look at the runtime {}", path.display()),
            "install it, or name another as runtime.path in Pinfold's configuration",
        )
    })?;
    files::trusted_of_machine(&real, || host.unknown_root())?;
    is_not_us(&real)?;
    Ok(path)
}

/// The question (OCI runtime specification, features.md).
const FEATURES: &str = "features";

const NAME_ANOTHER: &str = "name runc or crun as runtime.path in Pinfold's configuration";

/// A runtime whose hooks see no process of the container's own is of no use, whatever its features
/// say.
pub fn ensure_fit(runtime: &Path) -> Result<()> {
    let real = runtime
        .canonicalize()
        .with_context(|| format!("look at the runtime {}", runtime.display()))?;
    for path in [runtime, &real] {
        let unfit = UNFIT
            .iter()
            .find(|(name, _)| path.file_name() == Some(OsStr::new(name)));
        if let Some((name, reason)) = unfit {
            bail!(Refusal::new(
                format!("the runtime {name} {reason}"),
                NAME_ANOTHER
            ));
        }
    }
    Ok(())
}

/// A runtime that says which hooks it runs (`features`, OCI runtime specification) has to run ours:
/// without them the container would start on any CPUs. Older ones say nothing.
///
/// # Errors
/// One that says that it runs none of ours, or that does not answer in time.
pub fn ensure_runs_our_hooks(runtime: &Path) -> Result<()> {
    asked(runtime).map(drop)
}

/// Did it say that it runs them, or nothing?
fn asked(runtime: &Path) -> Result<bool> {
    ensure_fit(runtime)?;
    let said = features(runtime)?;
    let says = said
        .as_ref()
        .and_then(|said| has_our_stages(said.as_bytes()));
    ensure!(
        says != Some(false),
        Refusal::new(
            format!(
                "the runtime {} runs no createRuntime or no poststop hooks",
                runtime.display()
            ),
            NAME_ANOTHER
        )
    );
    Ok(says == Some(true))
}

/// The same, and a runtime that said that it runs them, or that it does not know the question, is
/// not asked again while it is that very file: this is remembered in the run directory. What cannot
/// be trusted, read or written there is no memory.
pub fn ensure_runs_our_hooks_once(runtime: &Path, run_dir: &Path) -> Result<()> {
    ensure_fit(runtime)?;
    let known = Known::of(runtime, run_dir)?;
    if known.is_there() {
        return Ok(());
    }
    // Any other silence may be a passing failure.
    let is_settled = asked(runtime)? || does_not_know_features(runtime)?;
    // One that was replaced meanwhile is not the one that was asked; and a script speaks for
    // another program.
    if is_settled && is_program(runtime) && Known::of(runtime, run_dir)?.text == known.text {
        if let Err(error) = known.keep() {
            log::info!("{error:#}");
        }
    }
    Ok(())
}

/// Is it a program by itself (elf(5))?
fn is_program(runtime: &Path) -> bool {
    let mut begin = [0; 4];
    let read = File::open(runtime).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *b"\x7fELF"
}

/// That there is nothing more to ask a runtime.
struct Known {
    path: PathBuf,
    /// What tells that very file from any other of its path.
    text: String,
}

impl Known {
    fn of(runtime: &Path, run_dir: &Path) -> Result<Known> {
        let look = || -> io::Result<(PathBuf, Metadata)> {
            let real = runtime.canonicalize()?;
            let metadata = real.metadata()?;
            Ok((real, metadata))
        };
        let looked = look().with_context(|| format!("look at the runtime {}", runtime.display()));
        let (real, metadata) = looked?;
        let hash = crc32fast::hash(real.as_os_str().as_bytes());
        let text = format!(
            "{} {}:{} {} {}.{:09} {}.{:09}\n",
            Shown(&real.to_string_lossy()),
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        Ok(Known {
            path: run_dir.join(format!("runs-hooks-{hash:08x}")),
            text,
        })
    }

    fn is_there(&self) -> bool {
        let read = || -> Result<bool> {
            let seen = files::trusted(&self.path)?;
            let kept = files::open_seen(&self.path, &seen)?;
            let kept = files::read_record(kept, self.text.len() as u64)?;
            Ok(kept == self.text.as_bytes())
        };
        read().unwrap_or(false)
    }

    fn keep(&self) -> Result<()> {
        let text = self.text.as_bytes();
        files::replace(&self.path, text, 0o600, Durability::Crash)
    }
}

/// Does a runtime say that it does not know this question, as older ones do?
fn does_not_know_features(runtime: &Path) -> Result<bool> {
    let mut command = Command::new(runtime);
    let said = child::ask_for_errors(command.arg(FEATURES), FEATURES_WITHIN)
        .with_context(|| format!("ask {} for its features", runtime.display()))?;
    let has_failed = said.status.code().is_some_and(|code| code != 0);
    Ok(has_failed && said.out.contains(FEATURES))
}

/// What a runtime says of itself; `None` where it does not know the question.
fn features(runtime: &Path) -> Result<Option<String>> {
    let mut command = Command::new(runtime);
    let said = child::ask(command.arg(FEATURES), FEATURES_WITHIN)
        .with_context(|| format!("ask {} for its features", runtime.display()))?;
    Ok(said.status.success().then_some(said.out))
}

/// The runtime for a container that is there already: the one that made it, where `preferred` is another. What names the
/// runtime can have changed since.
pub fn of_made(host: &Host, line: &RuntimeLine, preferred: PathBuf) -> PathBuf {
    let id = line.id.as_deref().filter(|id| is_container_id(id));
    let name = preferred.file_name().and_then(OsStr::to_str);
    let (Some(id), Some(name)) = (id, name) else {
        return preferred;
    };
    // Where it lies for certain, and where it may lie.
    let made = |(maker, file): &(&str, &str)| {
        let root = match &line.root {
            Some(root) => root.clone(),
            None => own_root(host, maker),
        };
        // One that cannot be looked at may be there; and where another lies that one is not.
        match root.join(id).join(file).symlink_metadata() {
            Ok(_) => (true, true),
            Err(error) => {
                let is_gone = files::is_gone(&error) || error.kind() == ErrorKind::NotADirectory;
                (false, !is_gone)
            }
        }
    };
    // One of another name keeps what we do not know of.
    if !KEPT.iter().any(|(maker, _)| *maker == name) {
        return preferred;
    }
    let found: Vec<_> = KEPT.iter().map(|kept| (kept.0, made(kept))).collect();
    let of = |is_maker: fn(&(bool, bool)) -> bool| -> Vec<&str> {
        let makers = found.iter().filter(|(_, found)| is_maker(found));
        makers.map(|(maker, _)| *maker).collect()
    };
    let mut makers = of(|(is_there, _)| *is_there);
    if makers.is_empty() {
        makers = of(|(_, may_be)| *may_be);
    }
    match makers[..] {
        [maker] if maker != name => host.program(maker).unwrap_or(preferred),
        _ => preferred,
    }
}

/// Where a runtime keeps its containers by itself (runc(8), crun(1): `--root`).
fn own_root(host: &Host, runtime: &str) -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !geteuid().is_root());
    match own {
        Some(dir) => PathBuf::from(dir).join(runtime),
        None => host.path("/run").join(runtime),
    }
}

/// Are the stages of our hooks among those that a runtime's features list? `None` where they list
/// none.
fn has_our_stages(features: &[u8]) -> Option<bool> {
    let features: Value = serde_json::from_slice(features).unwrap_or_default();
    let stages = features["hooks"].as_array()?;
    let mut ours = STAGES.iter();
    Some(ours.all(|ours| stages.iter().any(|stage| stage == ours)))
}

/// A runtime that is this program would call itself for ever.
fn is_not_us(runtime: &Path) -> Result<()> {
    let own = std::env::current_exe().context("find out where this program is")?;
    if own == runtime {
        bail!(Refusal::new(
            format!("the runtime {} is Pinfold's own", runtime.display()),
            NAME_ANOTHER
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_lists_hooks_has_to_list_ours() {
        for (features, expected) in [
            (
                r#"{"hooks":["prestart","createRuntime","poststop"]}"#,
                Some(true),
            ),
            (r#"{"hooks":["prestart","poststop"]}"#, Some(false)),
            (r#"{"hooks":[]}"#, Some(false)),
            (r#"{"hooks":null}"#, None),
            ("{}", None),
            ("", None),
            ("usage: runtime", None),
        ] {
            assert_eq!(has_our_stages(features.as_bytes()), expected, "{features}");
        }
    }

    #[test]
    fn one_that_is_known_to_be_unfit_is_not_even_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("/bin/false", path("runsc")).unwrap();
        std::os::unix::fs::symlink("runsc", path("gvisor")).unwrap();
        std::os::unix::fs::symlink("/bin/false", path("other")).unwrap();
        let error = ensure_runs_our_hooks(&path("runsc")).unwrap_err();
        assert!(error.to_string().contains("runsc gives hooks"), "{error}");
        ensure_runs_our_hooks(&path("other")).unwrap();
    }

    #[test]
    fn one_that_runs_our_hooks_is_asked_once() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (runtime, run_dir) = (dir.path().join("runtime"), dir.path().join("run"));
        std::fs::create_dir(&run_dir).unwrap();
        let script = "#!/bin/sh\necho '{\"hooks\":[]}'\n";
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        let put_script = || {
            files::replace(&runtime, script.as_bytes(), 0o755, Durability::Crash).unwrap();
        };
        let once = || ensure_runs_our_hooks_once(&runtime, &run_dir);
        // One that says that it runs none is asked each time, and nothing is kept of it.
        put_script();
        assert!(once().is_err() && once().is_err());
        assert!(files::names_in(&run_dir).unwrap().is_empty());
        // Who is known is not asked.
        let known = Known::of(&runtime, &run_dir).unwrap();
        known.keep().unwrap();
        once().unwrap();
        // What others can write is no memory, nor is what was damaged.
        std::fs::set_permissions(&known.path, mode(0o602)).unwrap();
        assert!(once().is_err());
        for content in ["", &known.text[1..], &format!("{}x", known.text)] {
            files::replace(&known.path, content.as_bytes(), 0o600, Durability::Crash).unwrap();
            assert!(once().is_err(), "{content}");
        }
        known.keep().unwrap();
        once().unwrap();
        // Another file of the same content is another runtime.
        put_script();
        assert!(once().is_err());
        // Silence is remembered of nobody: it may be a passing failure.
        for silent in ["/bin/true", "/bin/false"] {
            std::fs::copy(silent, &runtime).unwrap();
            once().unwrap();
            assert!(!Known::of(&runtime, &run_dir).unwrap().is_there());
        }
        // A script may speak for another program, which changes.
        let says = "#!/bin/sh\necho '{\"hooks\":[\"createRuntime\",\"poststop\"]}'\n";
        files::replace(&runtime, says.as_bytes(), 0o755, Durability::Crash).unwrap();
        once().unwrap();
        assert!(!Known::of(&runtime, &run_dir).unwrap().is_there());
    }

    #[test]
    fn one_that_does_not_know_the_question_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        // `cat: features: No such file or directory`, and a failure without a word.
        for (program, is_kept) in [("/bin/cat", true), ("/bin/false", false)] {
            let runtime = Path::new(program);
            ensure_runs_our_hooks_once(runtime, &run_dir).unwrap();
            let known = Known::of(runtime, &run_dir).unwrap();
            assert_eq!(known.is_there(), is_kept, "{program}");
        }
    }

    #[test]
    fn one_that_does_not_answer_is_not_waited_for() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in [
            ("hangs", "sleep 1000"),
            ("leaves-a-child", "sleep 1000 &"),
            ("closes-and-hangs", "exec >&-; sleep 1000"),
            ("never-stops", "exec yes"),
        ] {
            let path = dir.path().join(name);
            files::replace(
                &path,
                format!("#!/bin/sh\n{script}\n").as_bytes(),
                0o755,
                files::Durability::Crash,
            )
            .unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o755);
            let begun = std::time::Instant::now();
            let error = ensure_runs_our_hooks(&path).unwrap_err();
            assert!(begun.elapsed() < 3 * FEATURES_WITHIN, "{name}");
            assert!(format!("{error:#}").contains("features"), "{error:#}");
        }
    }

    #[test]
    fn who_made_a_container_is_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        for path in [
            "run/crun/a/status",
            "run/runc/b/state.json",
            "usr/bin/runc",
            "usr/bin/crun",
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            files::replace(&path, b"", 0o755, files::Durability::Crash).unwrap();
        }
        let root = dir.path().join("run/crun").display().to_string();
        for (words, preferred, taken) in [
            ("kill a", "/x/runc", "usr/bin/crun"),
            ("kill b", "/x/runc", "/x/runc"),
            ("delete -f b", "/x/crun", "usr/bin/runc"),
            ("kill a", "/x/other", "/x/other"),
            ("kill ../runc/b", "/x/crun", "/x/crun"),
            ("kill c", "/x/crun", "/x/crun"),
            ("--root ROOT state a", "/x/runc", "usr/bin/crun"),
            ("--root ROOT state b", "/x/crun", "/x/crun"),
        ] {
            let words = words
                .split_whitespace()
                .map(|word| word.replace("ROOT", &root).into());
            let line = RuntimeLine::parse(&words.collect::<Vec<_>>());
            let found = of_made(&host, &line, preferred.into());
            assert_eq!(found, dir.path().join(taken), "{line:?}");
        }
    }

    #[test]
    fn a_state_that_cannot_be_looked_at_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            files::replace(&path, b"", 0o755, files::Durability::Crash).unwrap();
        };
        ["usr/bin/runc", "usr/bin/crun", "run/runc/other"]
            .into_iter()
            .for_each(put);
        let host = Host::new(dir.path());
        // A link that leads to itself: ELOOP, for root too.
        std::fs::create_dir_all(dir.path().join("run/crun")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("run/crun/a")).unwrap();
        for (words, preferred, taken) in [
            ("kill a", "/x/runc", dir.path().join("usr/bin/crun")),
            // What lies in the place of a directory has none below it.
            ("kill other", "/x/crun", "/x/crun".into()),
        ] {
            let words: Vec<_> = words.split(' ').map(Into::into).collect();
            let line = RuntimeLine::parse(&words);
            assert_eq!(of_made(&host, &line, preferred.into()), taken, "{line:?}");
        }
    }

    #[test]
    fn only_a_runtime_that_is_allowed_is_taken() {
        let config = |path: Option<&str>, allow: &[&str]| Runtime {
            path: path.map(PathBuf::from),
            allow: Some(allow.iter().map(PathBuf::from).collect()),
            engine: None,
        };
        let host = Host::new("/");
        for (path, allow, taken) in [
            (Some("/bin/sh"), &["/bin/sh"][..], Ok("/bin/sh")),
            (None, &["/no/such", "/bin/sh"], Ok("/bin/sh")),
            (Some("/bin/sh"), &["/bin/cat"], Err("runtime.allow")),
            (Some("/bin/sh"), &[], Err("runtime.allow")),
            (None, &["/no/such"], Err("runtime.allow")),
        ] {
            match (runtime(&host, &config(path, allow), || None), taken) {
                (Ok(path), Ok(taken)) => assert_eq!(path, Path::new(taken)),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (outcome, _) => panic!("{path:?} of {allow:?}: {outcome:?}"),
            }
        }
    }
}
