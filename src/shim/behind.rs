//! Which runtime stands behind the shim.

use std::path::PathBuf;

use anyhow::Result;

use crate::caller;
use crate::config::{Plain, RuntimeTable};
use crate::engines::Engine;
use crate::host::Host;
use crate::install::{Place, default_runtime};
use crate::oci::Runtime;
use crate::system_log::{self, Severity};
use crate::text::one_line;

/// The runtime of our configuration, or else of the engine's.
pub(super) fn configured(host: &Host, table: &RuntimeTable) -> Result<Runtime> {
    Runtime::find(host, table, || {
        let engine = match &table.engine {
            Some(word) => Engine::by_word(word),
            None => caller::engine(host),
        };
        default_runtime(&Place::own_on(host), engine?).ok()?
    })
}

/// The same for what asks for nothing, which must not depend on our files: where they make no sense, what can be made out
/// of them counts, and where they name a runtime that is of no use, they are left alone. A list of what is allowed is
/// kept to all the same.
pub(super) fn without_request(host: &Host) -> Result<Behind> {
    let whole = Plain::load(host).and_then(|config| {
        Ok(Behind {
            runtime: configured(host, &config.runtime)?,
            run_dir: config.run_dir,
        })
    });
    let error = match whole {
        Ok(chosen) => return Ok(chosen),
        Err(error) => error,
    };
    let table = RuntimeTable::made_out(host);
    let runtime = configured(host, &table).or_else(|error| match table.allow {
        Some(_) => Err(error),
        None => configured(host, &RuntimeTable::default()),
    })?;
    let message = format!(
        "pinfold-runtime becomes {} for what asks for no CPUs: {error:#}",
        runtime.path().display()
    );
    system_log::send(host, Severity::Warning, &one_line(&message));
    Ok(Behind {
        runtime,
        run_dir: None,
    })
}

/// What is behind this name for containers that ask for nothing.
pub(super) struct Behind {
    pub(super) runtime: Runtime,
    /// The directory of claims, where the configuration names one.
    pub(super) run_dir: Option<PathBuf>,
}
