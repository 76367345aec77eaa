//! The settings of every verb, each taken from an option, the environment, the file or a default.

mod hooks;
mod log_line;
pub mod news;

pub use hooks::hook_options;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use env_logger::Target;

use crate::claims::Ledger;
use crate::cli::{self, MOST_SECONDS, Options};
use crate::config::{
    ConfigFile, Confine, HostTable, LastListsTable, PoolTable, RuntimeTable, UsageTable,
};
use crate::counters;
use crate::host::Host;
use crate::isolation;
use crate::last_lists::LastLists;
use crate::last_words;
use crate::names::Names;
use crate::placement::{Site, stock};
use crate::pools::plan::{Reserve, Stock};
use crate::refusal::{Reason, Refusal};
use crate::refusals::{self, Refused};
use crate::usage::Log;

/// The name of the program that most settings are for.
const PROGRAM: &str = "pinfold";
/// How long a command waits for the lock, in seconds.
const PATIENCE: f64 = 30.0;
/// The longest that a hook waits for the lock, in seconds: well within the hook's own bound.
const HOOK_PATIENCE: f64 = 10.0;

/// The resolved settings of a verb.
#[derive(Debug)]
pub struct Settings {
    site: Site,
    pools: BTreeMap<String, PoolTable>,
    reserve: Option<Reserve>,
    runtime: RuntimeTable,
    host_table: HostTable,
}

/// A failed start or end of a container, as its engine was told.
pub struct Failure<'a> {
    /// The container's id.
    pub container: &'a str,
    /// The names that people use for the container.
    pub names: Names,
    /// The message that the engine was told.
    pub message: &'a str,
    /// Why the start was refused; `None` if the end failed.
    pub reason: Option<Reason>,
}

/// Counts a refusal. A failure to count is only logged: the refusal was told all the same.
pub fn count_refusal(run_dir: &Path, reason: Reason) {
    let counted = counters::count(run_dir, |counters| {
        *counters
            .refusals
            .entry(reason.word().to_owned())
            .or_default() += 1;
    });
    if let Err(error) = counted {
        log::info!("{error:#}");
    }
}

/// Looks up a setting besides the options, by the environment variable's name.
type Environment = fn(&str) -> Option<OsString>;

impl Settings {
    /// The settings of a command that a person or script runs: the environment counts.
    pub fn of_command_line(options: &Options) -> Result<Settings> {
        Settings::of_program(PROGRAM, options)
    }

    /// The same for the command line of another program of ours, with whose name its log's lines
    /// begin.
    pub fn of_program(program: &'static str, options: &Options) -> Result<Settings> {
        let (settings, log) = Settings::resolve(options, of_environment, PATIENCE)?;
        log_line::start(program, options, log, Target::Stderr);
        // A problem that is seen twice is logged once.
        news::begin_round();
        last_words::survive_file_limit()?;
        Ok(settings)
    }

    /// The settings of a command line as they are by now; what is logged stays as it was at the
    /// start.
    ///
    /// # Errors
    /// The configuration file cannot be read, or makes no sense.
    pub fn again(options: &Options) -> Result<Settings> {
        Ok(Settings::resolve(options, of_environment, PATIENCE)?.0)
    }

    /// The settings of a command line on a machine whose configuration file is to have this text;
    /// `path` is where the text comes from.
    ///
    /// # Errors
    /// The text makes no sense.
    pub fn of_text(options: &Options, text: &str, path: &Path) -> Result<Settings> {
        let config = |_: &Host, _: Option<&Path>| ConfigFile::of_text(text, path);
        Ok(Settings::resolve_with(config, options, of_environment, PATIENCE)?.0)
    }

    /// The settings of a hook. Only its arguments and the file count: engines give hooks any
    /// environment or none.
    pub fn of_hook(options: &Options, deadline: Instant) -> Result<Settings> {
        let mut settings = Settings::of_start(options, true)?;
        settings.site.deadline = Some(deadline);
        Ok(settings)
    }

    /// The settings of the shim, whose stderr becomes the runtime's and then the container's.
    pub fn of_shim(options: &Options, deadline: Instant) -> Result<Settings> {
        let mut settings = Settings::of_start(options, false)?;
        settings.site.deadline = Some(deadline);
        Ok(settings)
    }

    fn of_start(options: &Options, has_stderr: bool) -> Result<Settings> {
        let (mut settings, log) = Settings::resolve(options, |_| None, HOOK_PATIENCE)?;
        let most = Duration::from_secs_f64(HOOK_PATIENCE);
        settings.site.patience = settings.site.patience.min(most);
        let host = settings.site.host.clone();
        log_line::start(PROGRAM, options, log, log_line::to_system(host, has_stderr));
        Ok(settings)
    }

    /// The configured pools.
    pub fn pools(&self) -> &BTreeMap<String, PoolTable> {
        &self.pools
    }

    /// The machine's cores, without those that an option or the configuration reserves for the
    /// host.
    pub fn stock(&self, option: Option<&Reserve>) -> Result<Stock> {
        let reserve = option.or(self.reserve.as_ref());
        stock(&self.site.host, reserve.map(|reserve| &reserve.0))
    }

    /// Does an option or the configuration say which CPUs the host keeps?
    pub fn reserves(&self, option: Option<&Reserve>) -> bool {
        option.or(self.reserve.as_ref()).is_some()
    }

    /// The CPUs that the configuration reserves for the host, if it names any.
    pub fn reserve(&self) -> Option<&Reserve> {
        self.reserve.as_ref()
    }

    /// The configuration of the runtime that `pinfold-runtime` becomes.
    pub fn runtime(&self) -> &RuntimeTable {
        &self.runtime
    }

    /// What the configuration says of the host, and of whoever asks for nothing.
    pub fn host_table(&self) -> &HostTable {
        &self.host_table
    }

    /// The machine and the directories, for a verb that reads them or makes files.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Like [`Settings::site`], for a verb that acts on processes: the pids must be of our own
    /// namespace.
    pub fn site_with_processes(&self) -> Result<&Site> {
        let host = &self.site.host;
        ensure!(
            host.is_running_root() || host.shares_our_processes(),
            Refusal::usage(
                "--host-root is for looking at a captured or mounted tree: its /proc is not of our \
                 own pid namespace, and this would act on other processes",
                "run this without --host-root, on the machine itself"
            )
        );
        Ok(&self.site)
    }

    /// Records a refusal for `pinfold why`. If it cannot be recorded, the system log still has it.
    pub fn keep_refusal(options: &Options, refused: Failure<'_>) {
        let run_dir = match Settings::resolve(options, |_| None, HOOK_PATIENCE) {
            Ok((settings, _)) => settings.site.run_dir,
            Err(_) => Host::new("/").default_run_dir(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let refusal = Refused {
            at: now.map_or(0, |now| now.as_secs()),
            container: refused.container.to_owned(),
            names: refused.names,
            message: refused.message.to_owned(),
        };
        let kept = Ledger::open(&run_dir).and_then(|_| {
            let recorded = refusals::record(&run_dir, &refusal);
            if let Some(reason) = refused.reason {
                count_refusal(&run_dir, reason);
            }
            recorded
        });
        if let Err(error) = kept {
            log::info!("{error:#}");
        }
    }

    fn resolve(
        options: &Options,
        environment: Environment,
        patience: f64,
    ) -> Result<(Settings, Option<String>)> {
        Settings::resolve_with(ConfigFile::load, options, environment, patience)
    }

    fn resolve_with(
        load: impl Fn(&Host, Option<&Path>) -> Result<ConfigFile>,
        options: &Options,
        environment: Environment,
        patience: f64,
    ) -> Result<(Settings, Option<String>)> {
        let path = |option: &Option<PathBuf>, name: &str| {
            option
                .clone()
                .or_else(|| environment(name).map(PathBuf::from))
        };
        let root = path(&options.host_root, "PINFOLD_HOST_ROOT");
        let named = path(&options.config, "PINFOLD_CONFIG");
        let outer = Host::new(root.clone().unwrap_or_else(|| "/".into()));
        let config = load(&outer, named.as_deref())?;
        let host = match root.or(config.host_root) {
            Some(root) => Host::new(root),
            None => outer,
        };
        let seconds = match (options.lock_timeout, environment("PINFOLD_LOCK_TIMEOUT")) {
            (Some(seconds), _) => Some(seconds),
            (None, Some(text)) => Some(
                cli::seconds(&text.to_string_lossy())
                    .map_err(|remedy| Refusal::new("PINFOLD_LOCK_TIMEOUT is not a time", remedy))?,
            ),
            (None, None) => config.lock_timeout,
        };
        let seconds = seconds.unwrap_or(patience);
        ensure!(
            (0.0..=MOST_SECONDS).contains(&seconds),
            Refusal::new(
                format!("lock-timeout is {seconds}"),
                format!("it must be from 0 to {MOST_SECONDS} seconds")
            )
        );
        // The file is read from any working directory: a relative path in it would mean nothing.
        let directory = |given: Option<PathBuf>, in_file: Option<PathBuf>, what: &str| match given {
            Some(path) => std::path::absolute(&path)
                .map(Some)
                .with_context(|| format!("{what} {}", path.display())),
            None => {
                let is_absolute = in_file.as_ref().is_none_or(|path| path.is_absolute());
                ensure!(
                    is_absolute,
                    "{what} in the configuration file is relative: write the whole path"
                );
                Ok(in_file)
            }
        };
        let conf_dir = directory(
            path(&options.conf_dir, "PINFOLD_CONF_DIR"),
            config.conf_dir,
            "conf-dir",
        )?;
        let run_dir = directory(
            path(&options.run_dir, "PINFOLD_RUN_DIR"),
            config.run_dir,
            "run-dir",
        )?;
        let run_dir = run_dir.unwrap_or_else(|| host.default_run_dir());
        let site = Site {
            conf_dir: conf_dir.unwrap_or_else(|| host.default_conf_dir()),
            usage: usage_log(config.usage, &host, &run_dir)?,
            last: last_lists(config.last_lists, &host, &run_dir)?,
            run_dir,
            patience: Duration::from_secs_f64(seconds),
            deadline: None,
            options: options_of(&config.pools),
            confines_host: config.host.confine == Confine::Pools,
            host,
        };
        let log = environment("PINFOLD_LOG").and_then(|text| text.into_string().ok());
        let settings = Settings {
            site,
            pools: config.pools,
            reserve: config.reserve,
            runtime: config.runtime.unwrap_or_default(),
            host_table: config.host,
        };
        Ok((settings, log.or(config.log)))
    }
}

fn of_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The options in the configuration, which override those in the pools' own files.
fn options_of(pools: &BTreeMap<String, PoolTable>) -> BTreeMap<String, isolation::Options> {
    let said = pools
        .iter()
        .map(|(name, table)| (name.clone(), table.options()));
    said.filter(|(_, options)| *options != isolation::Options::default())
        .collect()
}

/// The usage log. Unless a path is given, a run directory other than the default has the log
/// inside, so that two sites never share a file by accident.
fn usage_log(usage: UsageTable, host: &Host, run_dir: &Path) -> Result<Option<Log>> {
    if !usage.enabled {
        return Ok(None);
    }
    let default = || match run_dir == host.default_run_dir() {
        true => host.default_usage_log(),
        false => run_dir.join("usage.jsonl"),
    };
    let path = usage.path.unwrap_or_else(default);
    ensure!(
        path.is_absolute() && path.file_name().is_some(),
        Refusal::new(
            format!("usage.path in the configuration file is {}", path.display()),
            "write the whole path of a file"
        )
    );
    let rotate_at = u64::from(usage.rotate_at_mib.get()) << 20;
    Ok(Some(Log { path, rotate_at }))
}

/// The directory of the last lists; its default follows the run directory like the usage log's.
fn last_lists(table: LastListsTable, host: &Host, run_dir: &Path) -> Result<Option<LastLists>> {
    if table.days == 0 {
        return Ok(None);
    }
    let default = || match run_dir == host.default_run_dir() {
        true => host.default_last_lists(),
        false => run_dir.join("last"),
    };
    let directory = table.path.unwrap_or_else(default);
    ensure!(
        directory.is_absolute() && directory.file_name().is_some(),
        Refusal::new(
            format!(
                "last-lists.path in the configuration file is {}",
                directory.display()
            ),
            "write the whole path of a directory"
        )
    );
    let keep = Duration::from_secs(u64::from(table.days) * 24 * 60 * 60);
    Ok(Some(LastLists { directory, keep }))
}
