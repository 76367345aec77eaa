//! The shim: an OCI runtime for engines that have no hooks. For a container with a request it
//! reserves CPUs under its own process, writes them and our hooks into the container's
//! configuration, and becomes the runtime; everything else it hands on as it is.

mod asking;
mod behind;
mod start;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use asking::{Asking, Pinned, Read, Silent, names_in};
use behind::Behind;
use start::cancel;

use crate::child;
use crate::cli::Options;
use crate::files;
use crate::host::Host;
use crate::limits::TimeBound;
use crate::oci::{CommandLine, Config, Id, Runtime};
use crate::placement;
use crate::refusal::{Reason, Refusal};
use crate::runtime_log;
use crate::settings::{Failure, Settings};
use crate::system_log::{self, Severity};
use crate::text::one_line;

/// The longest that reading a container's usage may delay its end.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Becomes the runtime; returns only if something failed before that.
///
/// # Errors
/// The configuration cannot be read or changed, the request cannot be met, or there is no runtime.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let line = CommandLine::parse(arguments);
    let host = Host::new("/");
    if !line.makes_a_container() {
        let Behind {
            runtime, run_dir, ..
        } = behind::without_request(&host)?;
        let runtime = runtime.or_maker(&host, &line);
        if let Some("delete" | "kill") = line.verb.as_deref() {
            read_before_end(&host, &line, run_dir);
        }
        return become_runtime(&runtime, arguments);
    }
    let bound = TimeBound::start()?;
    let pinned = match Asking::read(&line, &host)? {
        Read::Asking(asking) => asking.pin(&line, &host, bound.deadline)?,
        Read::ByHooks(silent) => {
            let runtime = behind::without_request(&host)?.runtime;
            silent.put_back()?;
            bound.end()?;
            return become_runtime(&runtime, arguments);
        }
        Read::Silent(silent) => {
            let chosen = behind::without_request(&host)?;
            let by_default = silent.map(|silent| by_default(*silent, &chosen, &line, &bound));
            match by_default.transpose()?.flatten() {
                Some(pinned) => pinned,
                None => {
                    bound.end()?;
                    return become_runtime(&chosen.runtime, arguments);
                }
            }
        }
    };
    let error = bound
        .end()
        .and_then(|()| become_runtime(&pinned.runtime, arguments));
    cancel(&pinned.settings, &pinned.reservation);
    error
}

/// Pins a container without a request, if it is to be in a default pool. What keeps it from that is
/// told, and fails the start only where the configuration says so.
fn by_default(
    silent: Silent,
    chosen: &Behind,
    line: &CommandLine,
    bound: &TimeBound,
) -> Result<Option<Pinned>> {
    let host = Host::new("/");
    if let Some(asking) = silent.by_default(chosen, line, &host) {
        match asking.pin(line, &host, bound.deadline) {
            Ok(pinned) => return Ok(Some(pinned)),
            Err(error) if chosen.host_table.default_pool_needed => return Err(error),
            Err(error) => {
                let Refusal { what, remedy, .. } = Refusal::of(&error);
                let message = format!("{what}: it starts outside of it: {remedy}");
                system_log::send(&host, Severity::Warning, &one_line(&message));
            }
        }
    }
    silent.put_back().map(|()| None)
}

/// Reads what a container of ours has used, before the runtime removes its group or kills the
/// container, after which systemd removes a scope's group (systemd.scope(5)). A process apart does
/// the reading: whatever happens to it, this one becomes the runtime.
fn read_before_end(host: &Host, line: &CommandLine, run_dir: Option<PathBuf>) {
    let Some(Ok(id)) = line.id.as_deref().map(Id::parse) else {
        return;
    };
    let run_dir = run_dir.unwrap_or_else(|| host.default_run_dir());
    // A container without a claim costs no more than this.
    let claims = files::entry_if_there(&run_dir.join("claims").join(id.as_str()));
    if !matches!(claims, Ok(Some(_))) {
        return;
    }
    let read = || {
        let settings = Settings::of_shim(&Options::default(), Instant::now() + READ_WITHIN)?;
        placement::read_before_end(settings.site(), id.as_str())
    };
    if let Err(error) = child::apart(read, READ_WITHIN) {
        log::info!("what {id} has used: {error:#}");
    }
}

fn become_runtime(runtime: &Runtime, arguments: &[OsString]) -> Result<()> {
    let error = Command::new(runtime.path()).args(arguments).exec();
    Err(error).with_context(|| format!("execute {}", runtime.path().display()))
}

/// Reports a failure where the engine reads errors, and to the system log.
pub fn report(arguments: &[OsString], message: &str, reason: Reason) {
    system_log::send(&Host::new("/"), Severity::Error, message);
    let line = CommandLine::parse(arguments);
    // If the log cannot be written, the engine reads stderr.
    let _ = runtime_log::tell(&line, message);
    let id = line.id.as_deref().unwrap_or_default();
    let path = line.config_path();
    let text = files::read_text_if_there(&path).ok().flatten();
    let config = text.and_then(|text| Config::parse(&text).ok());
    let names = config.map(|config| names_in(&config, &line, &Host::new("/")));
    let names = names.unwrap_or_default();
    let told = Failure {
        container: id,
        names,
        message,
        reason: Some(reason),
    };
    Settings::keep_refusal(&Options::default(), told);
}
