//! The configuration file: the same keys as the options, for hooks too, which have no environment.

mod pools;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

pub use pools::{Door, PoolTable};

use crate::files;
use crate::host::Host;
use crate::pools::plan::Reserve;
use crate::refusal::{OrRefuse, Refusal};

/// What the file says; every key may be missing, and an unknown one is an error.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// The pool directory.
    pub conf_dir: Option<PathBuf>,
    /// The directory of claims.
    pub run_dir: Option<PathBuf>,
    /// The root below which `/sys`, `/proc` and the rest are.
    pub host_root: Option<PathBuf>,
    /// How long to wait for the lock, in seconds.
    pub lock_timeout: Option<f64>,
    /// What is logged, as in `PINFOLD_LOG`.
    pub log: Option<String>,
    /// What `pinfold-runtime` runs.
    pub runtime: Option<RuntimeTable>,
    /// Where it is written down what owners have used.
    #[serde(default)]
    pub usage: UsageTable,
    /// What CPU lists containers had last.
    #[serde(default)]
    pub last_lists: LastListsTable,
    /// The CPUs of the host's own work, for whatever makes or changes pools.
    #[serde(default, deserialize_with = "pools::reserve")]
    pub reserve: Option<Reserve>,
    /// The host itself, and whoever asks for nothing.
    #[serde(default)]
    pub host: HostTable,
    /// How pools are to be, and who may use them.
    #[serde(default)]
    pub pools: BTreeMap<String, PoolTable>,
}

/// The table `[host]`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct HostTable {
    /// The shared pool of containers that ask for none.
    #[serde(deserialize_with = "pools::default_pool")]
    pub default_pool: Option<String>,
    /// May a container stay out of it by an annotation? An image can carry annotations too.
    pub default_pool_opt_out: bool,
    /// Is a start refused where it cannot be given?
    pub default_pool_needed: bool,
    /// Where the host's own units may run.
    pub confine: Confine,
}

/// Where services, sessions and systemd itself may run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confine {
    /// Wherever they do.
    #[default]
    None,
    /// On the CPUs that no exclusive pool has.
    Pools,
}

/// The table `[usage]`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct UsageTable {
    /// Is anything written down at all?
    pub enabled: bool,
    /// The file.
    pub path: Option<PathBuf>,
    /// How large it grows, in MiB, before another is begun; the one before it is kept.
    pub rotate_at_mib: NonZeroU16,
}

/// So large, in MiB: about twenty thousand records.
const ROTATE_AT_MIB: NonZeroU16 = NonZeroU16::new(8).unwrap();

impl Default for UsageTable {
    fn default() -> UsageTable {
        UsageTable {
            enabled: true,
            path: None,
            rotate_at_mib: ROTATE_AT_MIB,
        }
    }
}

/// The table `[last-lists]`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LastListsTable {
    /// How many days a container that does not come back is remembered; 0: none is.
    pub days: u16,
    /// The directory of the files.
    pub path: Option<PathBuf>,
}

/// A month, as a machine may be away for repair.
const DAYS: u16 = 30;

impl Default for LastListsTable {
    fn default() -> LastListsTable {
        LastListsTable {
            days: DAYS,
            path: None,
        }
    }
}

/// The table `[runtime]`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RuntimeTable {
    /// The runtime that `pinfold-runtime` becomes.
    pub path: Option<PathBuf>,
    /// What it may become: `path` has to be one of them, and without `path` it is the first that is
    /// there.
    pub allow: Option<Vec<PathBuf>>,
    /// The engine that calls it, whose marks count for pools of some namespaces.
    pub engine: Option<String>,
}

impl ConfigFile {
    /// Reads the file that was named, or the default one where there is one.
    ///
    /// # Errors
    /// A named file that is missing; one that others can write, or that is not in this form.
    pub fn load(host: &Host, named: Option<&Path>) -> Result<ConfigFile> {
        let default = host.default_config();
        let path = named.unwrap_or(&default);
        let config = load(host, path)?;
        if config.is_none() && named.is_some() {
            bail!(Refusal::new(
                format!("the configuration file {} does not exist", path.display()),
                "make it, or name another with --config"
            ));
        }
        Ok(config.unwrap_or_default())
    }

    /// Reads a file's text; `path` is what a refusal calls it.
    ///
    /// # Errors
    /// It is not in this form.
    pub fn of_text(text: &str, path: &Path) -> Result<ConfigFile> {
        of_text(text, path)
    }
}

/// What `pinfold-runtime` needs to know for containers that ask for nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plain {
    /// The directory of claims.
    pub run_dir: Option<PathBuf>,
    /// What it runs.
    #[serde(default)]
    pub runtime: RuntimeTable,
    /// The pool of those that ask for none.
    #[serde(default)]
    pub host: HostTable,
}

impl Plain {
    /// Reads that in the default file, whatever else is in it: a container that runs has to be
    /// reached, and ended, also where a key of another table is misspelt.
    ///
    /// # Errors
    /// As for the whole file, but for what is in its other tables.
    pub fn load(host: &Host) -> Result<Plain> {
        let plain: Option<Plain> = load(host, &host.default_config())?;
        Ok(plain.unwrap_or_default())
    }
}

impl RuntimeTable {
    /// What can be made out of that table where the file as a whole makes no sense: for containers
    /// that ask for nothing, which must not depend on it. Nothing where others than root could have
    /// written it.
    pub fn made_out(host: &Host) -> RuntimeTable {
        let text = trusted_text(host, &host.default_config());
        let text = text.ok().flatten().unwrap_or_default();
        let (file, _) = DeTable::parse_recoverable(&text);
        let table = file.get_ref().get("runtime");
        let entry = |key: &str| Some(table?.get_ref().get(key)?.get_ref());
        let path = |value: &DeValue<'_>| value.as_str().map(PathBuf::from);
        let allow = entry("allow").and_then(DeValue::as_array).map(|all| {
            let all = all.iter().map(|value| value.get_ref());
            all.filter_map(path).collect()
        });
        RuntimeTable {
            path: entry("path").and_then(path),
            allow,
            engine: entry("engine").and_then(DeValue::as_str).map(str::to_owned),
        }
    }
}

/// A configuration file; `None` where there is none.
fn load<T: DeserializeOwned>(host: &Host, path: &Path) -> Result<Option<T>> {
    let text = trusted_text(host, path)?;
    text.map(|text| of_text(&text, path)).transpose()
}

fn of_text<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    parse(text).or_refuse(|| {
        Refusal::new(
            format!("the configuration file {}", path.display()),
            "mend it there: pinfold(8) has its keys under FILES",
        )
    })
}

/// The text of such a file, if nobody but root and we can have written it.
fn trusted_text(host: &Host, path: &Path) -> Result<Option<String>> {
    if path.metadata().is_err_and(|error| files::is_gone(&error)) {
        return Ok(None);
    }
    files::ensure_trusted_way(path, || host.unknown_root())?;
    files::trusted_of_machine(path, || host.unknown_root())?;
    files::read_text_if_there(path)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    // The first line of the library's message says where, and the rest draws it.
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| text[..span.start].matches('\n').count() + 1);
        match line {
            Some(line) => anyhow!("line {line}: {}", error.message()),
            None => anyhow!("{}", error.message()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Durability;
    use crate::isolation::{Options, how_to_say};

    /// A remedy that could not be parsed would refuse every start of the machine.
    #[test]
    fn what_a_remedy_says_of_an_option_is_what_its_table_takes() {
        for (key, value) in [
            ("isolation", "root"),
            ("isolation-needed", "no"),
            ("isolation-needed", "yes"),
            ("allow", "none"),
            ("allow", "irqs"),
            ("allow", "irqs,quota"),
            ("irqs", "keep"),
            ("resume-latency", "20"),
        ] {
            let mut configured = Options::default();
            configured.set(key, value).unwrap();
            let remedy = how_to_say(Some(&configured), "dp", key, value);
            let line = remedy.split('`').nth(1).unwrap();
            let table: PoolTable = parse(line).unwrap_or_else(|error| panic!("{line}: {error:#}"));
            assert_eq!(table.options(), configured, "{line}");
        }
    }

    #[test]
    fn the_shipped_file_has_every_key_and_only_those() {
        let shipped = include_str!("../packaging/config.toml");
        assert_eq!(parse::<ConfigFile>(shipped).unwrap(), ConfigFile::default());
        let keys = shipped.lines().filter_map(|line| line.strip_prefix('#'));
        let keys: Vec<&str> = keys.filter(|line| !line.starts_with(' ')).collect();
        let mut config: ConfigFile = parse(&keys.join("\n")).unwrap();
        for (name, table) in &config.pools {
            assert!(table.declared(name).unwrap().is_some(), "{name}");
        }
        // No one table has all keys: some do not go together.
        let lists = config.pools.remove("fast").unwrap().lists;
        config.pools.get_mut("dataplane").unwrap().lists = lists;
        assert_eq!(
            config.usage,
            UsageTable {
                path: config.usage.path.clone(),
                ..UsageTable::default()
            }
        );
        assert_eq!(config.last_lists.days, DAYS);
        let text = format!("{config:?}");
        assert!(!text.contains("None"), "a key is missing: {text}");
    }

    #[test]
    fn reads_every_key_and_no_other() {
        let text = "conf-dir = '/a'\nrun-dir = '/b'\nhost-root = '/c'\nlock-timeout = 2.5\n\
                    log = 'debug'\n";
        let config: ConfigFile = parse(text).unwrap();
        assert_eq!(config.conf_dir.as_deref(), Some(Path::new("/a")));
        assert_eq!(config.lock_timeout, Some(2.5));
        assert_eq!(parse::<ConfigFile>("").unwrap(), ConfigFile::default());
        let text = "[usage]\nenabled = false\npath = '/u'\nrotate-at-mib = 3\n";
        let usage = parse::<ConfigFile>(text).unwrap().usage;
        assert_eq!(usage.path.as_deref(), Some(Path::new("/u")));
        assert_eq!((usage.enabled, usage.rotate_at_mib.get()), (false, 3));
        assert!(
            parse::<ConfigFile>("[usage]\npath = '/u'")
                .unwrap()
                .usage
                .enabled
        );
        for (text, part) in [
            ("\nconf_dir = '/a'", "line 2: unknown field `conf_dir`"),
            ("lock-timeout = 'x'", "line 1"),
            ("conf-dir", "line 1"),
            ("[usage]\nrotate-at-mib = 0", "line 2"),
            ("[usage]\nfile = '/u'", "unknown field `file`"),
            ("[last-lists]\ndays = -1", "line 2"),
            ("[last-lists]\nday = 1", "unknown field `day`"),
            ("[pools.dp]\nkind = 'own'", "line 2: kind is \"own\": it is"),
            (
                "[pools.dp]\ncores = 0",
                "line 2: cores is \"0\": the number",
            ),
            ("[pools.dp]\ncores = -1", "line 2: cores is \"-1\""),
            ("[pools.dp]\ncores = 1.5", "line 2"),
            ("[pools.dp]\nnuma = 'best'", "line 2: numa is \"best\""),
            ("[pools.dp]\nnuma = 10000", "line 2: numa is \"10000\""),
            ("[pools.dp]\ncache = 3", "line 2: cache is \"3\""),
            ("[pools.dp]\nunit = 'core'", "line 2: unit is \"core\""),
            ("[pools.dp]\nlists = '1'", "line 2"),
            (
                "[pools.dp]\nlists = ['x']",
                "line 2: lists: \"x\" is not a CPU",
            ),
            (
                "[host]\ndefault-pool = 'a b'",
                "line 2: default-pool is \"a b\": it is the name",
            ),
            ("[host]\ndefault-pool = 'none'", "line 2: default-pool"),
            ("[host]\ndefault-pool = 7", "line 2"),
            ("[host]\ndefault = 'x'", "unknown field `default`"),
            ("[host]\ndefault-pool-needed = 'no'", "line 2"),
            ("[host]\nconfine = 'all'", "line 2: unknown variant `all`"),
            ("reserve = 'all'", "line 1: reserve is \"all\""),
            (
                "[pools.dp]\ndoors = ['window']",
                "line 2: unknown variant `window`",
            ),
        ] {
            let error = parse::<ConfigFile>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn keys_of_a_pool_that_do_not_go_together_are_named() {
        for (text, said) in [
            ("cores = 1", "pools.dp.cores is there without kind"),
            ("numa = 1", "pools.dp.numa is there without kind"),
            ("kind = 'shared'", "pools.dp.kind is there without cores"),
            (
                "kind = 'shared'\ncores = 1\nlists = ['1']",
                "pools.dp.lists",
            ),
            (
                "kind = 'shared'\ncores = 1\nunit = 'threads'",
                "pools.dp.unit",
            ),
            ("kind = 'shared'\nlists = ['1']\nnuma = 0", "pools.dp.numa"),
            ("kind = 'shared'\nlists = ['']", "pools.dp.lists has no CPU"),
            ("kind = 'shared'\nlists = []", "pools.dp.lists has no CPU"),
            (
                "kind = 'shared'\nlists = ['1', '1-2']",
                "pools.dp.lists has CPU 1",
            ),
        ] {
            let config: ConfigFile = parse(&format!("[pools.dp]\n{text}\n")).unwrap();
            let error = config.pools["dp"].declared("dp").unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let config: ConfigFile = parse("[pools.none]\nkind = 'shared'\ncores = 1\n").unwrap();
        let error = config.pools["none"].declared("none").unwrap_err();
        assert!(error.to_string().contains("pools.none.kind is of no pool"));
        let rules: ConfigFile = parse("[pools.dp]\ndoors = []\n").unwrap();
        assert_eq!(rules.pools["dp"].declared("dp").unwrap(), None);
    }

    #[test]
    fn a_named_file_must_be_there_and_the_default_need_not() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(
            ConfigFile::load(&host, None).unwrap(),
            ConfigFile::default()
        );
        let error = ConfigFile::load(&host, Some(&dir.path().join("no"))).unwrap_err();
        assert!(error.to_string().contains("does not exist"));
    }

    #[test]
    fn the_runtime_is_known_where_the_rest_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(Plain::load(&host).unwrap().runtime, RuntimeTable::default());
        std::fs::create_dir_all(dir.path().join("etc/pinfold")).unwrap();
        let put = |text: &str| {
            let path = host.default_config();
            files::replace(&path, text.as_bytes(), 0o600, Durability::Crash).unwrap();
        };
        let text = "colour = 7\n[runtime]\npath = '/r'\n[pools.dp]\ndoors = ['window']\n";
        put(text);
        assert_eq!(Plain::load(&host).unwrap().runtime.path, Some("/r".into()));
        assert!(ConfigFile::load(&host, None).is_err());
        put("[runtime]\npaht = '/r'\n");
        let error = Plain::load(&host).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }

    #[test]
    fn of_a_file_that_makes_no_sense_what_can_be_made_out_counts() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        assert_eq!(RuntimeTable::made_out(&host), RuntimeTable::default());
        std::fs::create_dir_all(dir.path().join("etc/pinfold")).unwrap();
        for (text, path) in [
            (
                "[runtime]\npath = '/r'\nallow = ['/r', 7]\ncolour = 7\n[pools.\n",
                Some("/r"),
            ),
            (
                "conf-dir = \n\n[runtime]\npath = \"/r\" # mine\n",
                Some("/r"),
            ),
            ("= = =\n", None),
            ("[runtime]\npath = 7\n", None),
            ("runtime = 7\n", None),
            ("[runtime\npath = '/r'\n", None),
        ] {
            let file = host.default_config();
            files::replace(&file, text.as_bytes(), 0o600, Durability::Crash).unwrap();
            assert!(Plain::load(&host).is_err(), "{text}");
            assert_eq!(
                RuntimeTable::made_out(&host).path,
                path.map(PathBuf::from),
                "{text}"
            );
        }
        let text = b"[runtime]\npath = '/r'\n=\n";
        files::replace(&host.default_config(), text, 0o666, Durability::Crash).unwrap();
        assert_eq!(RuntimeTable::made_out(&host), RuntimeTable::default());
    }
}
