//! `pinfold-runtime`: an OCI runtime for engines that have no hooks. For a container with a request it reserves CPUs under
//! its own process, writes them and our hooks into the container's configuration, and becomes the runtime; everything else
//! it hands on as it is.

use std::cell::LazyCell;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;

use super::Settings;
use super::admission::Visitor;
use super::hook::with_device;
use super::settings::Told;
use crate::bundle::Bundle;
use crate::caller;
use crate::cgroup::of_config;
use crate::child;
use crate::claims::Claim;
use crate::cli::{Cli, Options, Verb};
use crate::config::{Door, Plain, Runtime};
use crate::cpulist::CpuSet;
use crate::engines::Engine;
use crate::files;
use crate::host::Host;
use crate::install::{Place, default_runtime};
use crate::last_words;
use crate::limits::Bound;
use crate::low_level;
use crate::names::{self, Ancestry, Names};
use crate::oci::{shown_id, usable_id};
use crate::oci_config::{OciConfig, Pinning};
use crate::placement::{self, reserve};
use crate::refusal::{Reason, Refusal};
use crate::request::{self, Mems, Request};
use crate::runtime_line::{CgroupManager, RuntimeLine};
use crate::runtime_log;
use crate::system_log::{self, Severity};
use crate::text::{Shown, one_line};
use crate::topology;

/// How long the end of a container may be held up by looking what it has used.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Becomes the runtime; returns only with what went wrong before that.
///
/// # Errors
/// A configuration that cannot be read or changed, a request that cannot be met, no runtime.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let line = RuntimeLine::parse(arguments);
    let host = Host::new("/");
    if !line.makes_a_container() {
        let Chosen { runtime, run_dir } = runtime_without_request(&host)?;
        let runtime = low_level::of_made(&host, &line, runtime);
        if let Some("delete" | "kill") = line.verb.as_deref() {
            read_before_end(&host, &line, run_dir);
        }
        return become_runtime(&runtime, arguments);
    }
    let bound = Bound::start()?;
    let Some(asking) = Asking::read(&line, &host)? else {
        let chosen = runtime_without_request(&host)?;
        bound.end()?;
        return become_runtime(&chosen.runtime, arguments);
    };
    let pinned = asking.pin(&line, &host, bound.deadline)?;
    let error = bound
        .end()
        .and_then(|()| become_runtime(&pinned.runtime, arguments));
    give_up(&pinned.settings, &pinned.reservation);
    error
}

/// Reads what a container of ours has used, for the runtime is about to remove its group; or to end
/// it, after which systemd removes the group of a scope before the runtime does (systemd.scope(5)).
/// A process of its own reads: whatever becomes of that, this one becomes the runtime.
fn read_before_end(host: &Host, line: &RuntimeLine, run_dir: Option<PathBuf>) {
    let Some(Ok(id)) = line.id.as_deref().map(usable_id) else {
        return;
    };
    let run_dir = run_dir.unwrap_or_else(|| host.default_run_dir());
    // All others cost no more than this.
    let claims = files::entry_if_there(&run_dir.join("claims").join(id));
    if !matches!(claims, Ok(Some(_))) {
        return;
    }
    let read = || {
        let settings = Settings::of_shim(&Options::default(), Instant::now() + READ_WITHIN)?;
        placement::read_before_end(settings.site(), id)
    };
    if let Err(error) = child::apart(read, READ_WITHIN) {
        log::info!("what {id} has used: {error:#}");
    }
}

fn become_runtime(runtime: &Path, arguments: &[OsString]) -> Result<()> {
    let error = Command::new(runtime).args(arguments).exec();
    Err(error).with_context(|| format!("execute {}", runtime.display()))
}

/// The runtime of our configuration, or else of the engine's.
fn configured(host: &Host, config: &Runtime) -> Result<PathBuf> {
    low_level::runtime(host, config, || {
        let engine = match &config.engine {
            Some(word) => Engine::by_word(word),
            None => caller::engine(host),
        };
        default_runtime(&Place::own_on(host), engine?).ok()?
    })
}

/// The same for what asks for nothing, which must not depend on our files: where they make no sense, what can be made out
/// of them counts, and where they name a runtime that is of no use, they are left alone. A list of what is allowed is
/// kept to all the same.
fn runtime_without_request(host: &Host) -> Result<Chosen> {
    let whole = Plain::load(host).and_then(|config| {
        Ok(Chosen {
            runtime: configured(host, &config.runtime)?,
            run_dir: config.run_dir,
        })
    });
    let error = match whole {
        Ok(chosen) => return Ok(chosen),
        Err(error) => error,
    };
    let config = Runtime::made_out(host);
    let runtime = configured(host, &config).or_else(|error| match config.allow {
        Some(_) => Err(error),
        None => configured(host, &Runtime::default()),
    })?;
    let message = format!(
        "pinfold-runtime becomes {} for what asks for no CPUs: {error:#}",
        runtime.display()
    );
    system_log::send(host, Severity::Warning, &one_line(&message));
    Ok(Chosen {
        runtime,
        run_dir: None,
    })
}

/// What is behind this name for containers that ask for nothing.
struct Chosen {
    runtime: PathBuf,
    /// The directory of claims, where the configuration names one.
    run_dir: Option<PathBuf>,
}

/// Tells an engine where it looks for it, and the system log, what went wrong.
pub fn report(arguments: &[OsString], message: &str, reason: Reason) {
    system_log::send(&Host::new("/"), Severity::Error, message);
    let line = RuntimeLine::parse(arguments);
    // An engine that gave a log that cannot be written reads stderr.
    let _ = runtime_log::tell(&line, message);
    let id = line.id.as_deref().unwrap_or_default();
    let path = line.config_path();
    let text = files::read_text_if_there(&path).ok().flatten();
    let config = text.and_then(|text| OciConfig::parse(&text).ok());
    let names = config.map(|config| names_in(&config, &line, &Host::new("/")));
    let names = names.unwrap_or_default();
    let told = Told {
        container: id,
        names,
        message,
        reason: Some(reason),
    };
    Settings::keep_refusal(&Options::default(), told);
}

/// A container with a request, and its configuration as it was read.
struct Asking {
    request: Request,
    path: PathBuf,
    text: Vec<u8>,
    names: Names,
    /// The CDI device that asks, where annotations do not.
    device: Option<Device>,
}

/// A CDI device that the engine has given the container, as its hooks tell.
struct Device {
    name: String,
    options: Options,
    /// The same options as words.
    words: Vec<String>,
}

impl Device {
    /// Of the arguments of its hook.
    fn of(words: &[String]) -> Result<Option<Device>> {
        let cli = Cli::try_parse_from(words).map_err(|error| {
            anyhow!(
                "a hook of Pinfold's in it cannot be understood: {}",
                error.kind()
            )
        })?;
        let Verb::Hook(hook) = cli.verb else {
            return Ok(None);
        };
        // What names the pools; a reservation is of an earlier start.
        let mut more = Vec::new();
        for (option, path) in [
            ("--conf-dir", &cli.options.conf_dir),
            ("--run-dir", &cli.options.run_dir),
            ("--config", &cli.options.config),
        ] {
            let text = path.as_ref().and_then(|path| path.to_str());
            more.extend(
                text.iter()
                    .flat_map(|text| [option.to_owned(), (*text).to_owned()]),
            );
        }
        Ok(hook.device.map(|name| Device {
            name,
            options: cli.options,
            words: more,
        }))
    }
}

impl Asking {
    /// Reads the container's configuration; `None` where it asks for nothing. Nothing of ours is read.
    fn read(line: &RuntimeLine, host: &Host) -> Result<Option<Asking>> {
        let path = line.config_path();
        let text = files::read_bytes_if_there(&path);
        // It may be another verb, which reads none.
        if line.in_doubt.is_some() && !matches!(text, Ok(Some(_))) {
            return Ok(None);
        }
        let text = text?.with_context(|| format!("there is no {}", path.display()))?;
        let parsed = files::text_of(&text).map_err(anyhow::Error::from);
        let config = parsed.and_then(OciConfig::parse).or_else(|error| {
            // What we wrote may have been torn by a power loss: then what we found counts.
            let bundle = Bundle::new(path.clone(), text.clone())?;
            match bundle.is_ours() {
                true => OciConfig::parse(bundle.found()),
                false => Err(error),
            }
        });
        let config = config.with_context(|| path.display().to_string())?;
        let names = LazyCell::new(|| names_in(&config, line, host));
        let cannot = || cannot_start(line, &names);
        let annotations = config.annotations(request::is_ours).with_context(cannot)?;
        let annotated = request::from_annotations(&annotations).with_context(cannot)?;
        let is_annotated = annotated.is_some();
        let hooks = config.device_hooks();
        let devices = hooks
            .iter()
            .filter_map(|words| Device::of(words).transpose());
        let devices: Vec<Device> = devices.collect::<Result<_>>().with_context(cannot)?;
        let request = devices.iter().try_fold(annotated, |request, device| {
            with_device(request, Some(&device.name))
        });
        let Some(request) = request.with_context(cannot)? else {
            // Its CPUs may be another's by now.
            ensure!(
                !config.is_of_an_earlier_start(),
                Refusal::new(
                    format!(
                        "{}: its configuration has the CPUs of an earlier start, and no request any more",
                        cannot()
                    ),
                    format!("write {} anew", path.display())
                )
            );
            return Ok(None);
        };
        if let Some(option) = &line.in_doubt {
            bail!(Refusal::new(
                format!(
                    "{}: the option {} is not known here, and what is behind it may be its value or a verb",
                    cannot(),
                    Shown(option)
                ),
                "write it as OPTION=VALUE"
            ));
        }
        let names = Names::clone(&names);
        Ok(Some(Asking {
            request,
            path,
            text,
            names,
            device: devices.into_iter().next().filter(|_| !is_annotated),
        }))
    }

    /// Reserves CPUs, and writes them into the configuration.
    fn pin(self, line: &RuntimeLine, host: &Host, deadline: Instant) -> Result<Pinned> {
        let pool = self.request.pool.clone();
        let names = self.names.clone();
        let id = line.id.as_deref().unwrap_or_default();
        let who = format!(
            "the start of container {} on CPUs of its own",
            names.with_id(&shown_id(id))
        );
        last_words::arrange(host, &who)?;
        let pin = || -> Result<Pinned> {
            let options = self.device.as_ref().map(|device| device.options.clone());
            let settings = Settings::of_shim(&options.unwrap_or_default(), deadline)?;
            let runtime = configured(host, settings.runtime())?;
            let start = Start {
                settings: &settings,
                line,
                runtime: &runtime,
                names: self.names,
                device: self.device,
                bundle: Bundle::new(self.path, self.text)?,
            };
            let id = line.id.as_deref().unwrap_or_default();
            let reservation = start.pin(usable_id(id)?, self.request)?;
            Ok(Pinned {
                runtime,
                settings,
                reservation,
            })
        };
        pin().with_context(|| format!("{} on CPUs of pool {pool}", cannot_start(line, &names)))
    }
}

/// What is left to do: to become the runtime, or to give the reservation back.
struct Pinned {
    runtime: PathBuf,
    settings: Settings,
    reservation: Claim,
}

/// What people call the container of a configuration.
fn names_in(config: &OciConfig, line: &RuntimeLine, host: &Host) -> Names {
    let annotations = config.annotations(names::is_name_key).unwrap_or_default();
    Ancestry::of_this_process(host)
        .with_config(&line.config_path())
        .names(line.id.as_deref().unwrap_or_default(), &annotations)
}

fn cannot_start(line: &RuntimeLine, names: &Names) -> String {
    let id = line.id.as_deref().unwrap_or_default();
    format!("cannot start container {}", names.with_id(&shown_id(id)))
}

/// A container with a request that is about to be made.
struct Start<'a> {
    settings: &'a Settings,
    line: &'a RuntimeLine,
    runtime: &'a Path,
    names: Names,
    bundle: Bundle,
    device: Option<Device>,
}

impl Start<'_> {
    /// Looks at everything first, then reserves, and writes last.
    fn pin(&self, id: &str, mut request: Request) -> Result<Claim> {
        if self.line.verb.as_deref() == Some("restore") {
            bail!(Refusal::new(
                "one on CPUs of its own cannot be restored",
                "start it anew"
            ));
        }
        let engine = self.engine()?;
        let mut config = OciConfig::parse(self.bundle.found())?;
        let visitor = Visitor {
            door: match self.device {
                Some(_) => Door::Cdi,
                None => Door::Shim,
            },
            engine,
        };
        visitor.may_use(self.settings.pools().get(&request.pool), |mark| {
            Ok(config.annotations(|key| key == mark)?.remove(mark))
        })?;
        config.ensure_plain_keys()?;
        refuse_chosen(&config, &request)?;
        self.bundle.ensure_writable()?;
        low_level::ensure_fit(self.runtime)?;
        let program = std::env::current_exe().context("find out where this program is")?;
        let program = program.to_str();
        let program = program.context("the path of this program is no UTF-8")?;
        let site = self.settings.site_with_processes()?;
        request.locality.rather_near = nodes_near(&site.host, &config);
        let path = config.cgroups_path();
        let group = match self.line.cgroups {
            CgroupManager::Cgroupfs => of_config::expected(path, false),
            CgroupManager::Systemd => of_config::expected(path, true),
            CgroupManager::Disabled => None,
        };

        let reservation = reserve(site, id, self.names.clone(), group, &request)?;
        // What is refused has cost no process of the runtime's.
        let runs = low_level::ensure_runs_our_hooks_once(self.runtime, &site.run_dir);
        let pinning = Pinning {
            program,
            engine: engine.map(Engine::word),
            device: self.device.as_ref().map(|device| device.name.as_str()),
            options: self.device.as_ref().map_or(&[], |device| &device.words),
            nonce: reservation.nonce.as_deref().unwrap_or_default(),
            lists: &reservation.lists,
            cpus: &reservation.cpus,
            mems: &reservation.mems,
            has_cgroup: self.line.cgroups != CgroupManager::Disabled,
        };
        let written = runs
            .and_then(|()| config.pin(&pinning))
            .and_then(|()| self.bundle.write(&config.print()?));
        if written.is_err() {
            give_up(self.settings, &reservation);
        }
        written.map(|()| reservation)
    }

    /// The engine of the configuration, whose marks count.
    fn engine(&self) -> Result<Option<Engine>> {
        let Some(word) = &self.settings.runtime().engine else {
            return Ok(None);
        };
        let engine = Engine::by_word(word).context(
            "runtime.engine in Pinfold's configuration is none of podman, crio, containerd and docker",
        )?;
        Ok(Some(engine))
    }
}

/// Where that fails too, the CPUs are free once this process has ended.
fn give_up(settings: &Settings, reservation: &Claim) {
    if let Err(error) = placement::give_up(settings.site(), reservation) {
        log::warn!(
            "give back what was reserved for {}: {error:#}",
            reservation.shown()
        );
    }
}

/// One request, one place.
fn refuse_chosen(config: &OciConfig, request: &Request) -> Result<()> {
    let mems = config.chosen_mems().filter(|_| request.mems == Mems::Local);
    let (what, value) = match (config.chosen_cpus(), mems) {
        (Some(cpus), _) => ("CPUs", cpus),
        (None, Some(mems)) => ("memory nodes", mems),
        (None, None) => return Ok(()),
    };
    bail!(placement::chosen_already(what, &Shown(value).to_string()))
}

/// The NUMA nodes of the container's devices; those that the kernel tells no node of have none.
fn nodes_near(host: &Host, config: &OciConfig) -> CpuSet {
    let mut nodes = CpuSet::new();
    for (is_block, major, minor) in config.devices() {
        match topology::nodes_near_number(host, is_block, major, minor) {
            Ok(near) => nodes.extend(&near),
            // Nobody asked to be near it.
            Err(error) => log::warn!("the device {major}:{minor} counts for nothing: {error:#}"),
        }
    }
    nodes
}
