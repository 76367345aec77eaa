//! Reads what a container's configuration asks for.

use std::cell::LazyCell;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;

use super::behind::{self, Behind};
use super::start::ShimStart;
use crate::claims::Claim;
use crate::cli::{Cli, Options, Verb};
use crate::files;
use crate::host::Host;
use crate::last_words;
use crate::names::{self, Ancestry, Names};
use crate::oci::{Bundle, CommandLine, Config, Id, Runtime};
use crate::refusal::Refusal;
use crate::request::{self, Request, Silence};
use crate::settings::Settings;
use crate::text::Shown;

/// A container with a request, and its parsed configuration.
pub(super) struct Asking {
    request: Request,
    path: PathBuf,
    text: Vec<u8>,
    names: Names,
    /// The CDI device that asks, if the annotations do not.
    device: Option<AskingDevice>,
}

/// What a container's configuration asks for.
pub(super) enum Read {
    /// CPUs.
    Asking(Box<Asking>),
    /// CPU lists, by devices whose hooks give just those: nothing is left for the shim to give.
    ByHooks(Box<Silent>),
    /// Nothing; `None` where there is no configuration of a container.
    Silent(Option<Box<Silent>>),
}

/// A container without a request that the shim is to meet, and its parsed configuration.
pub(super) struct Silent {
    path: PathBuf,
    text: Vec<u8>,
    config: Config,
    /// Is `text` what an earlier start wrote, whole or torn, and `config` what that had found?
    was_written: bool,
}

impl Silent {
    /// The start on CPUs of the default pool; `None` where the configuration names none, or the
    /// container is not to have any: a pod's sandbox, one that opts out, one that was given CPUs.
    pub(super) fn by_default(
        &self,
        chosen: &Behind,
        line: &CommandLine,
        host: &Host,
    ) -> Option<Asking> {
        let table = &chosen.host_table;
        let pool = table.default_pool.as_deref()?;
        // A user's runtime reads the machine's configuration, and cannot use its pools.
        let is_the_machines = line.in_doubt.is_none() && host.unknown_root().is_none();
        if !is_the_machines || line.verb.as_deref() == Some("restore") {
            return None;
        }
        let annotations = self.config.annotations(request::is_ours).ok()?;
        match request::silence(&annotations, chosen.engine) {
            Silence::Sandbox => return None,
            Silence::OptOut if table.default_pool_opt_out => return None,
            Silence::Plain | Silence::OptOut => {}
        }
        if let Some(cpus) = self.config.chosen_cpus() {
            log::debug!("it has the CPUs {} already", Shown(cpus));
            return None;
        }
        let names = names_in(&self.config, line, host);
        (!names.is_infra()).then(|| Asking {
            request: Request::by_default(pool),
            path: self.path.clone(),
            text: self.text.clone(),
            names,
            device: None,
        })
    }

    /// Puts back what an earlier start found: its CPUs may have another owner by now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn put_back(self) -> Result<()> {
        if !self.was_written {
            return Ok(());
        }
        let bundle = Bundle::new(self.path, self.text)?;
        bundle.write(bundle.found())
    }
}

/// A CDI device that the engine gave the container, read from its hook's arguments.
pub(super) struct AskingDevice {
    pub(super) name: String,
    pub(super) options: Options,
    /// `options` as words of a command line.
    pub(super) words: Vec<String>,
}

impl AskingDevice {
    /// Parses the arguments of a CDI device's hook.
    fn of(words: &[String]) -> Result<Option<AskingDevice>> {
        let cli = Cli::try_parse_from(words).map_err(|error| {
            anyhow!(
                "a hook of Pinfold's in it cannot be understood: {}",
                error.kind()
            )
        })?;
        let Verb::Hook(hook) = cli.verb else {
            return Ok(None);
        };
        // Only the options that name the pools: a reservation is an earlier start's.
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
        Ok(hook.device.map(|name| AskingDevice {
            name,
            options: cli.options,
            words: more,
        }))
    }
}

impl Asking {
    /// Reads the container's configuration, and none of our own.
    pub(super) fn read(line: &CommandLine, host: &Host) -> Result<Read> {
        let path = line.config_path();
        let text = files::read_bytes_if_there(&path);
        // The verb may be another one, which needs no configuration.
        if line.in_doubt.is_some() && !matches!(text, Ok(Some(_))) {
            return Ok(Read::Silent(None));
        }
        let text = text?.with_context(|| format!("there is no {}", path.display()))?;
        let parsed = files::text_of(&text).map_err(anyhow::Error::from);
        let is_to_be_undone = |config: &Config| {
            config.is_by_default() || (config.has_list_hook() && config.is_of_an_earlier_start())
        };
        let read = match parsed.and_then(Config::parse) {
            Ok(config) if !is_to_be_undone(&config) => Ok((config, false)),
            // A power loss may have torn the text that we wrote, and whoever asked for nothing, or
            // not by a list, may do so by now: what was found then counts, if it was kept.
            parsed => Bundle::new(path.clone(), text.clone()).and_then(|bundle| {
                Ok(match bundle.is_ours() {
                    true => (Config::parse(bundle.found())?, true),
                    false => (parsed?, false),
                })
            }),
        };
        let (config, was_written) = read.with_context(|| path.display().to_string())?;
        let names = LazyCell::new(|| names_in(&config, line, host));
        let cannot = || cannot_start(line, &names);
        // The CPUs in the configuration may have another owner by now.
        let has_old_cpus = || {
            let what = format!(
                "{}: its configuration has the CPUs of an earlier start, and no request for them \
                 any more",
                cannot()
            );
            Refusal::new(what, format!("write {} anew", path.display()))
        };
        if config.has_list_hook() {
            ensure!(!config.is_of_an_earlier_start(), has_old_cpus());
            drop(names);
            return Ok(Read::ByHooks(Box::new(Silent {
                path,
                text,
                config,
                was_written,
            })));
        }
        let annotations = config.annotations(request::is_ours).with_context(cannot)?;
        let annotated = request::from_annotations(&annotations).with_context(cannot)?;
        let is_annotated = annotated.is_some();
        let hooks = config.device_hooks();
        let devices = hooks
            .iter()
            .filter_map(|words| AskingDevice::of(words).transpose());
        let devices: Vec<AskingDevice> = devices.collect::<Result<_>>().with_context(cannot)?;
        let request = devices.iter().try_fold(annotated, |request, device| {
            request::with_device(request, Some(&device.name))
        });
        let Some(request) = request.with_context(cannot)? else {
            ensure!(!config.is_of_an_earlier_start(), has_old_cpus());
            drop(names);
            return Ok(Read::Silent(Some(Box::new(Silent {
                path,
                text,
                config,
                was_written,
            }))));
        };
        if let Some(option) = &line.in_doubt {
            bail!(Refusal::new(
                format!(
                    "{}: the option {} is not known here, and what is behind it may be its value \
                     or a verb",
                    cannot(),
                    Shown(option)
                ),
                "write it as OPTION=VALUE"
            ));
        }
        let names = Names::clone(&names);
        Ok(Read::Asking(Box::new(Asking {
            request,
            path,
            text,
            names,
            device: devices.into_iter().next().filter(|_| !is_annotated),
        })))
    }

    /// Reserves CPUs, and writes them into the configuration.
    pub(super) fn pin(self, line: &CommandLine, host: &Host, deadline: Instant) -> Result<Pinned> {
        let (pool, by_default) = (self.request.pool.clone(), self.request.by_default);
        let names = self.names.clone();
        let id = line.id.as_deref().unwrap_or_default();
        let who = format!(
            "the start of container {} on CPUs of its own",
            names.with_id(&Id::shown(id))
        );
        last_words::arrange(host, &who)?;
        let pin = || -> Result<Pinned> {
            let options = self.device.as_ref().map(|device| device.options.clone());
            let settings = Settings::of_shim(&options.unwrap_or_default(), deadline)?;
            let runtime = behind::configured(host, settings.runtime())?;
            let start = ShimStart {
                settings: &settings,
                line,
                runtime: &runtime,
                names: self.names,
                device: self.device,
                bundle: Bundle::new(self.path, self.text)?,
            };
            let id = line.id.as_deref().unwrap_or_default();
            let reservation = start.pin(Id::parse(id)?, self.request)?;
            Ok(Pinned {
                runtime,
                settings,
                reservation,
            })
        };
        pin().with_context(|| match by_default {
            true => format!(
                "cannot put container {} into the default pool {pool}",
                names.with_id(&Id::shown(id))
            ),
            false => format!("{} on CPUs of pool {pool}", cannot_start(line, &names)),
        })
    }
}

/// A pinned configuration: the shim becomes the runtime, or cancels the reservation.
pub(super) struct Pinned {
    pub(super) runtime: Runtime,
    pub(super) settings: Settings,
    pub(super) reservation: Claim,
}

/// The names that people use for a configuration's container.
pub(super) fn names_in(config: &Config, line: &CommandLine, host: &Host) -> Names {
    let annotations = config.annotations(names::is_name_key).unwrap_or_default();
    Ancestry::of_this_process(host)
        .with_config(&line.config_path())
        .names(line.id.as_deref().unwrap_or_default(), &annotations)
}

fn cannot_start(line: &CommandLine, names: &Names) -> String {
    let id = line.id.as_deref().unwrap_or_default();
    format!("cannot start container {}", names.with_id(&Id::shown(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Durability;
    use crate::oci::Pinning;

    const FOUND: &str = r#"{"process":{"env":["A=1"]},"annotations":{}}"#;

    /// What a start by default writes in place of `FOUND`.
    fn written() -> String {
        let mut config = Config::parse(FOUND).unwrap();
        let pinning = Pinning {
            program: "/p",
            engine: None,
            device: None,
            options: &[],
            nonce: "1-2",
            lists: &["1".to_owned()],
            cpus: &"1".parse().unwrap(),
            mems: None,
            by_default: true,
            has_cgroup: true,
        };
        config.pin(&pinning).unwrap();
        config.print().unwrap()
    }

    fn put(path: &std::path::Path, text: &str) {
        files::replace(path, text.as_bytes(), 0o600, Durability::Crash).unwrap();
    }

    fn read(path: &std::path::Path) -> Result<Option<Box<Silent>>> {
        let bundle = path.parent().unwrap();
        let words = [
            "create".as_ref(),
            "-b".as_ref(),
            bundle.as_os_str(),
            "web".as_ref(),
        ];
        let line = CommandLine::parse(&words.map(std::ffi::OsStr::to_owned));
        match Asking::read(&line, &Host::new("/"))? {
            Read::Silent(silent) => Ok(silent),
            Read::Asking(_) | Read::ByHooks(_) => bail!("it asks"),
        }
    }

    #[test]
    fn what_an_earlier_start_by_default_found_counts_if_it_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        put(&path, FOUND);
        let bundle = Bundle::new(path.clone(), FOUND.into()).unwrap();
        let ours = written();
        bundle.write(&ours).unwrap();
        let silent = read(&path).unwrap().unwrap();
        assert_eq!(silent.config, Config::parse(FOUND).unwrap());
        silent.put_back().unwrap();
        assert_eq!(files::read(&path).unwrap(), FOUND);

        // A torn one of ours is not left to the runtime either.
        let bundle = Bundle::new(path.clone(), FOUND.into()).unwrap();
        bundle.write(&ours).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let changed = file.metadata().unwrap().modified().unwrap();
        file.set_len(9).unwrap();
        file.set_modified(changed).unwrap();
        read(&path).unwrap().unwrap().put_back().unwrap();
        assert_eq!(files::read(&path).unwrap(), FOUND);

        // An edited one, whose original is there, and a copied one, whose original is not.
        let bundle = Bundle::new(path.clone(), FOUND.into()).unwrap();
        bundle.write(&ours).unwrap();
        put(&path, &ours.replace("A=1", "A=2"));
        let copied = dir.path().join("copy/config.json");
        std::fs::create_dir(copied.parent().unwrap()).unwrap();
        put(&copied, &ours);
        for path in [path, copied] {
            let before = files::read(&path).unwrap();
            let refused = read(&path).err().unwrap().to_string();
            assert!(
                refused.contains("has the CPUs of an earlier start"),
                "{refused}"
            );
            assert_eq!(files::read(&path).unwrap(), before);
        }
    }
}
