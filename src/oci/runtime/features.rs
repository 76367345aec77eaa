//! Whether a runtime runs our hooks.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::STAGES;
use super::{NAME_ANOTHER, Runtime};
use crate::child;
use crate::files::{self, Durability};
use crate::refusal::Refusal;
use crate::text::Shown;

/// How long a runtime may take to say what it can.
const FEATURES_WITHIN: Duration = Duration::from_secs(5);

/// The question (OCI runtime specification, features.md).
const FEATURES: &str = "features";

impl Runtime {
    /// Checks with `features` (OCI runtime specification) that the runtime runs our hooks: without
    /// them a container would start on any CPUs. Older runtimes do not know `features`, and pass.
    ///
    /// # Errors
    /// The runtime says that it runs none of our hooks, or does not answer in time.
    pub fn ensure_runs_our_hooks(&self) -> Result<()> {
        self.says_that_it_runs_our_hooks().map(drop)
    }

    /// Like [`Runtime::ensure_runs_our_hooks`], and remembers in the run directory a runtime that
    /// runs our hooks or does not know `features`: the same file is not asked again. A record that
    /// cannot be trusted, read or written counts as none.
    pub fn ensure_runs_our_hooks_once(&self, run_dir: &Path) -> Result<()> {
        self.ensure_fit()?;
        let known = AskedRuntime::of(self, run_dir)?;
        if known.is_there() {
            return Ok(());
        }
        // Any other silence may be a passing failure.
        let is_settled = self.says_that_it_runs_our_hooks()? || self.does_not_know_features()?;
        // A runtime that was replaced meanwhile is not the one that was asked, and a script may run
        // another program.
        let may_keep = is_settled && self.is_program();
        if may_keep && AskedRuntime::of(self, run_dir)?.text == known.text {
            if let Err(error) = known.keep() {
                log::info!("{error:#}");
            }
        }
        Ok(())
    }

    /// Returns `false` if the runtime does not say which hooks it runs.
    fn says_that_it_runs_our_hooks(&self) -> Result<bool> {
        self.ensure_fit()?;
        let said = self.features()?;
        let says = said
            .as_ref()
            .and_then(|said| has_our_stages(said.as_bytes()));
        ensure!(
            says != Some(false),
            Refusal::new(
                format!(
                    "the runtime {} runs no createRuntime or no poststop hooks",
                    self.0.display()
                ),
                NAME_ANOTHER
            )
        );
        Ok(says == Some(true))
    }

    /// The runtime's answer to `features`; `None` if it does not know the question.
    fn features(&self) -> Result<Option<String>> {
        let mut command = Command::new(&self.0);
        let said = child::ask(command.arg(FEATURES), FEATURES_WITHIN)
            .with_context(|| format!("ask {} for its features", self.0.display()))?;
        Ok(said.status.success().then_some(said.out))
    }

    /// Does the runtime say that it does not know `features`, as older ones do?
    fn does_not_know_features(&self) -> Result<bool> {
        let mut command = Command::new(&self.0);
        let said = child::ask_for_errors(command.arg(FEATURES), FEATURES_WITHIN)
            .with_context(|| format!("ask {} for its features", self.0.display()))?;
        let has_failed = said.status.code().is_some_and(|code| code != 0);
        Ok(has_failed && said.out.contains(FEATURES))
    }

    /// Is the runtime's file a program itself, not a script (elf(5))?
    fn is_program(&self) -> bool {
        let mut begin = [0; 4];
        let read = File::open(&self.0).and_then(|mut file| file.read_exact(&mut begin));
        read.is_ok() && begin == *b"\x7fELF"
    }
}

/// The record that a runtime was asked and need not be asked again.
struct AskedRuntime {
    path: PathBuf,
    /// What identifies the file that was asked.
    text: String,
}

impl AskedRuntime {
    fn of(runtime: &Runtime, run_dir: &Path) -> Result<AskedRuntime> {
        let real = runtime.real()?;
        let looked = real.metadata();
        let metadata = looked.with_context(|| format!("look at the runtime {}", real.display()))?;
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
        Ok(AskedRuntime {
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

/// Does the runtime list the stages of our hooks? `None` if it lists no hooks. `oci_spec`'s
/// `Features` is not used: it refuses a namespace or seccomp action newer than the crate, which
/// says nothing of hooks.
fn has_our_stages(features: &[u8]) -> Option<bool> {
    let features: Value = serde_json::from_slice(features).unwrap_or_default();
    let stages = features["hooks"].as_array()?;
    let mut ours = STAGES.iter();
    Some(ours.all(|ours| stages.iter().any(|stage| stage == ours)))
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
        let error = Runtime(path("runsc")).ensure_runs_our_hooks().unwrap_err();
        assert!(error.to_string().contains("runsc gives hooks"), "{error}");
        Runtime(path("other")).ensure_runs_our_hooks().unwrap();
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
        let asked = Runtime(runtime.clone());
        let once = || asked.ensure_runs_our_hooks_once(&run_dir);
        // A runtime that runs no hooks is asked each time, and nothing is recorded.
        put_script();
        assert!(once().is_err() && once().is_err());
        assert!(files::names_in(&run_dir).unwrap().is_empty());
        // A recorded runtime is not asked.
        let known = AskedRuntime::of(&asked, &run_dir).unwrap();
        known.keep().unwrap();
        once().unwrap();
        // A record that others can write, or that is damaged, does not count.
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
        // No answer is never recorded: it may be a passing failure.
        for silent in ["/bin/true", "/bin/false"] {
            std::fs::copy(silent, &runtime).unwrap();
            once().unwrap();
            assert!(!AskedRuntime::of(&asked, &run_dir).unwrap().is_there());
        }
        // A script is never recorded: the program that it runs can change.
        let says = "#!/bin/sh\necho '{\"hooks\":[\"createRuntime\",\"poststop\"]}'\n";
        files::replace(&runtime, says.as_bytes(), 0o755, Durability::Crash).unwrap();
        once().unwrap();
        assert!(!AskedRuntime::of(&asked, &run_dir).unwrap().is_there());
    }

    #[test]
    fn one_that_does_not_know_the_question_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        // `cat: features: No such file or directory` is recorded; a failure without a word is not.
        for (program, is_kept) in [("/bin/cat", true), ("/bin/false", false)] {
            let runtime = Runtime(program.into());
            runtime.ensure_runs_our_hooks_once(&run_dir).unwrap();
            let known = AskedRuntime::of(&runtime, &run_dir).unwrap();
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
            let error = Runtime(path).ensure_runs_our_hooks().unwrap_err();
            assert!(begun.elapsed() < 3 * FEATURES_WITHIN, "{name}");
            assert!(format!("{error:#}").contains("features"), "{error:#}");
        }
    }
}
