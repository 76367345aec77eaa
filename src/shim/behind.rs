//! Chooses the runtime that the shim becomes.

use std::path::PathBuf;

use anyhow::Result;

use crate::caller;
use crate::config::{HostTable, Plain, RuntimeTable};
use crate::engines::Engine;
use crate::host::Host;
use crate::install::{Place, default_runtime};
use crate::oci::Runtime;
use crate::system_log::{self, Severity};
use crate::text::one_line;

/// The runtime of our configuration; else the engine's default.
pub(super) fn configured(host: &Host, table: &RuntimeTable) -> Result<Runtime> {
    Runtime::find(host, table, || {
        let engine = match &table.engine {
            Some(word) => Engine::by_word(word),
            None => caller::engine(host),
        };
        default_runtime(&Place::own_on(host), engine?).ok()?
    })
}

fn named(table: &RuntimeTable) -> Option<Engine> {
    Engine::by_word(table.engine.as_deref()?)
}

/// The runtime for a container without a request, which must not depend on our files. Of a broken
/// configuration the readable parts count, and a runtime that cannot be used is ignored. The list
/// of allowed runtimes (`runtime.allow`) counts even then.
pub(super) fn without_request(host: &Host) -> Result<Behind> {
    let whole = Plain::load(host).and_then(|config| {
        Ok(Behind {
            runtime: configured(host, &config.runtime)?,
            engine: caller::engine(host).or_else(|| named(&config.runtime)),
            run_dir: config.run_dir,
            host_table: config.host,
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
        engine: None,
        run_dir: None,
        host_table: HostTable::default(),
    })
}

/// The runtime for containers without a request.
pub(super) struct Behind {
    pub(super) runtime: Runtime,
    /// The engine that runs us, or else the one that the configuration names.
    pub(super) engine: Option<Engine>,
    /// The run directory, if the configuration names one.
    pub(super) run_dir: Option<PathBuf>,
    /// Which pool containers without a request are in, if in any.
    pub(super) host_table: HostTable,
}
