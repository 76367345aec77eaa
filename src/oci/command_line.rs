//! The command line of an OCI runtime, as runc and crun parse it (runc(8), crun(1)). Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A bundle's configuration (OCI runtime specification, "Filesystem Bundle").
const CONFIG: &str = "config.json";

/// The verbs of runtimes (runc(8), crun(1), youki). A word after an option that is no verb is that
/// option's value.
const VERBS: [&str; 18] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "info",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
];
/// The global options that take a value; `r` and `l` are youki's `root` and `log`.
const GLOBAL_VALUES: [&str; 9] = [
    "log",
    "log-format",
    "log-level",
    "root",
    "criu",
    "rootless",
    "cgroup-manager",
    "r",
    "l",
];
/// The global options without a value. An option in neither list may take a value or not.
const GLOBAL_FLAGS: [&str; 6] = [
    "debug",
    "systemd-cgroup",
    "systemd-log",
    "s",
    "version",
    "v",
];
/// The options of `create`, `run` and `restore` that take a value.
const VERB_VALUES: [&str; 15] = [
    "bundle",
    "b",
    "config",
    "f",
    "console-socket",
    "pid-file",
    "preserve-fds",
    "pidfd-socket",
    "image-path",
    "work-path",
    "parent-path",
    "manage-cgroups-mode",
    "empty-ns",
    "lsm-profile",
    "lsm-mount-context",
];
/// The options of `create`, `run` and `restore` without a value.
const VERB_FLAGS: [&str; 14] = [
    "auto-dedup",
    "d",
    "detach",
    "ext-unix-sk",
    "file-locks",
    "keep",
    "lazy-pages",
    "no-new-keyring",
    "no-pivot",
    "no-subreaper",
    "shell-job",
    "tcp-close",
    "tcp-established",
    "h",
];
/// The one-letter options of `create`, `run` and `restore` without a value (crun): other letters
/// can follow after the same dash.
const VERB_LETTERS: &[u8] = b"d";

/// Who makes a container's cgroup (runc(8) `--systemd-cgroup`, crun(1) `--cgroup-manager`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum CgroupManager {
    /// The runtime itself.
    #[default]
    Cgroupfs,
    /// systemd, which the runtime asks.
    Systemd,
    /// Nobody: the container has no cgroup.
    Disabled,
}

/// What we need of a runtime's command line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The verb; `None` where there is none.
    pub verb: Option<String>,
    /// The container's id: the first word after the verb that is neither an option nor an option's
    /// value.
    pub id: Option<String>,
    /// `--root`: where the runtime keeps its containers' state; `None` for the runtime's default.
    pub root: Option<PathBuf>,
    /// An unknown option; the verb depends on whether it takes a value.
    pub in_doubt: Option<String>,
    /// Who makes the container's cgroup.
    pub cgroups: CgroupManager,
    /// The bundle's directory; `None` for the working directory.
    pub bundle: Option<PathBuf>,
    /// `--config`: a file used instead of the bundle's `config.json` (crun).
    pub config: Option<PathBuf>,
    /// `--log`: the file that the engine reads errors from.
    pub log: Option<PathBuf>,
    /// Does the log hold one JSON object per line (`--log-format json`)?
    pub log_is_json: bool,
    is_id_unsure: bool,
}

/// How to read an unknown option that a verb follows.
#[derive(Debug, Clone, Copy)]
enum Unknown {
    Alone,
    WithValue,
}

/// The option right before a word.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Preceding {
    /// There is none, or it takes no value, or it has its value already.
    #[default]
    Known,
    /// An unknown option: the word may be its value.
    Unknown,
}

impl CommandLine {
    /// Parses the arguments, without the program's name. The runtime refuses what makes no sense.
    /// If the word after an unknown option could be its value or a verb, the reading that makes a
    /// container counts: no request for CPUs may get past us.
    pub fn parse(arguments: &[OsString]) -> CommandLine {
        let alone = CommandLine::read(arguments, Unknown::Alone);
        let valued = CommandLine::read(arguments, Unknown::WithValue);
        if valued.verb == alone.verb || !valued.has_known_verb() {
            return CommandLine {
                in_doubt: None,
                ..alone
            };
        }
        let (line, other) = match alone.makes_a_container() {
            true => (alone, valued),
            false => (valued, alone),
        };
        // In neither reading is a container made.
        let in_doubt = other.in_doubt.filter(|_| line.makes_a_container());
        CommandLine { in_doubt, ..line }
    }

    fn read(arguments: &[OsString], unknown: Unknown) -> CommandLine {
        let mut line = CommandLine::default();
        let mut arguments = arguments.iter().map(OsString::as_os_str);
        let mut before = Preceding::Known;
        while let Some(argument) = arguments.next() {
            let values: &[&str] = match line.verb {
                Some(_) if line.makes_a_container() => &VERB_VALUES,
                Some(_) => &[],
                None => &GLOBAL_VALUES,
            };
            let last = std::mem::take(&mut before);
            match Word::of(argument, values) {
                Word::Plain if line.verb.is_none() => {
                    let is_verb = argument.to_str().is_some_and(|word| VERBS.contains(&word));
                    match (last, unknown) {
                        (Preceding::Unknown, Unknown::Alone) if !is_verb => continue,
                        (Preceding::Unknown, Unknown::WithValue) => continue,
                        _ => line.verb = Some(argument.to_string_lossy().into_owned()),
                    }
                }
                Word::Plain => line.name(argument, last),
                // A runtime that is asked for help does nothing else; after the id runc takes
                // `--help` for a plain word.
                Word::Flag if line.id.is_none() && asks_for_help(argument) => {
                    line.verb = None;
                    break;
                }
                Word::Flag => {
                    before = line.flag(argument);
                    if before == Preceding::Unknown && line.verb.is_none() {
                        line.in_doubt
                            .get_or_insert_with(|| argument.to_string_lossy().into_owned());
                    }
                }
                Word::Takes(name) => {
                    let value = arguments.next().unwrap_or_default();
                    line.take(name, value);
                }
                Word::Has(name, value) => line.take(name, value),
            }
        }
        line
    }

    /// Takes a word as the id. If that word could be an unknown option's value, the next word
    /// replaces it.
    fn name(&mut self, word: &OsStr, before: Preceding) {
        if self.id.is_none() || self.is_id_unsure {
            self.id = Some(word.to_string_lossy().into_owned());
            self.is_id_unsure = before == Preceding::Unknown;
        }
    }

    fn has_known_verb(&self) -> bool {
        let verb = self.verb.as_deref();
        verb.is_some_and(|verb| VERBS.contains(&verb))
    }

    /// Takes an option that is not followed by its value; returns whether it is known to take none.
    fn flag(&mut self, argument: &OsStr) -> Preceding {
        let word = argument
            .to_str()
            .unwrap_or_default()
            .trim_start_matches('-');
        let has_value = word.contains('=');
        let (name, value) = word.split_once('=').unwrap_or((word, "true"));
        // What Go's strconv.ParseBool takes for true.
        let is_true = matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
        if self.verb.is_none() && name == "systemd-cgroup" && is_true {
            self.cgroups = CgroupManager::Systemd;
        }
        let known: &[&str] = match self.verb {
            Some(_) => &VERB_FLAGS,
            None => &GLOBAL_FLAGS,
        };
        // `--` ends the options.
        match has_value || name.is_empty() || known.contains(&name) {
            true => Preceding::Known,
            false => Preceding::Unknown,
        }
    }

    fn take(&mut self, name: &str, value: &OsStr) {
        match (name, self.verb.is_some()) {
            ("log" | "l", false) => self.log = log_file(value),
            ("root" | "r", false) => self.root = Some(value.into()),
            ("log-format", false) => self.log_is_json = value == "json",
            ("cgroup-manager", false) => {
                self.cgroups = match value.to_str() {
                    Some("systemd") => CgroupManager::Systemd,
                    Some("disabled") => CgroupManager::Disabled,
                    _ => CgroupManager::Cgroupfs,
                };
            }
            ("bundle" | "b", true) => self.bundle = Some(value.into()),
            ("config" | "f", true) => self.config = Some(value.into()),
            _ => {}
        }
    }

    /// Does the verb make a container, from a bundle or a checkpoint?
    pub fn makes_a_container(&self) -> bool {
        matches!(self.verb.as_deref(), Some("create" | "run" | "restore"))
    }

    /// The path of the container's configuration. A `--config` of another name is relative to the
    /// working directory, not to the bundle (crun: src/run.c resolves it before it changes to the
    /// bundle).
    pub fn config_path(&self) -> PathBuf {
        match &self.config {
            Some(other) if other != Path::new(CONFIG) => Path::new(".").join(other),
            _ => {
                let bundle = self.bundle.clone().unwrap_or_else(|| ".".into());
                bundle.join(CONFIG)
            }
        }
    }
}

/// The path given to `--log`; `None` if crun is to log to journald or syslog (crun(1), `--log`).
fn log_file(value: &OsStr) -> Option<PathBuf> {
    let bytes = value.as_bytes();
    if bytes.starts_with(b"journald:") || bytes.starts_with(b"syslog:") {
        return None;
    }
    let path = bytes.strip_prefix(b"file:").unwrap_or(bytes);
    Some(OsStr::from_bytes(path).into())
}

fn asks_for_help(argument: &OsStr) -> bool {
    ["-h", "-help", "--help"]
        .iter()
        .any(|help| argument == *help)
}

/// One word of a command line.
enum Word<'a> {
    Plain,
    Flag,
    Takes(&'a str),
    Has(&'a str, &'a OsStr),
}

impl<'a> Word<'a> {
    /// One dash is as good as two (runc). A one-letter option can have its value right behind it,
    /// and an unambiguous beginning of a long option is enough (crun: getopt_long(3)).
    fn of(argument: &'a OsStr, with_value: &[&'a str]) -> Word<'a> {
        let bytes = argument.as_bytes();
        let Some(option) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) else {
            return Word::Plain;
        };
        let option = option.strip_prefix(b"-").unwrap_or(option);
        let known = |name: &[u8]| {
            with_value
                .iter()
                .find(|known| known.as_bytes() == name)
                .copied()
        };
        let (word, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => (&option[..at], Some(OsStr::from_bytes(&option[at + 1..]))),
            None => (option, None),
        };
        let begun = || {
            let mut all = with_value
                .iter()
                .filter(|name| name.as_bytes().starts_with(word));
            all.next().filter(|_| all.next().is_none()).copied()
        };
        let is_long = bytes.starts_with(b"--");
        let name = known(word).or_else(|| begun().filter(|_| is_long && word.len() > 1));
        match (name, value) {
            (Some(name), Some(value)) => return Word::Has(name, value),
            (Some(name), None) => return Word::Takes(name),
            (None, _) if is_long => return Word::Flag,
            (None, _) => {}
        }
        let alone = option.iter().take_while(|it| VERB_LETTERS.contains(it));
        let letters = &option[alone.count()..];
        match (known(&letters[..letters.len().min(1)]), letters.len()) {
            (Some(name), 1) => Word::Takes(name),
            (Some(name), _) => Word::Has(name, OsStr::from_bytes(&letters[1..])),
            (None, _) => Word::Flag,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_bundles_are_found_as_runtimes_find_them() {
        for (words, verb, config) in [
            ("create -b /x id", Some("create"), "/x/config.json"),
            ("restore -h", None, "./config.json"),
            ("--help create", None, "./config.json"),
            ("run -b /x id -h", Some("run"), "/x/config.json"),
            ("run -b -h id", Some("run"), "-h/config.json"),
            ("run -h=false id", Some("run"), "./config.json"),
            ("--root create state id", Some("state"), "./config.json"),
            (
                "--root=/r --systemd-cgroup run --bundle=/x id",
                Some("run"),
                "/x/config.json",
            ),
            (
                "-log /l -log-format json create -bundle /x id",
                Some("create"),
                "/x/config.json",
            ),
            (
                "--debug create --pid-file create --no-pivot id",
                Some("create"),
                "./config.json",
            ),
            ("create -b/x id", Some("create"), "/x/config.json"),
            (
                "create --console-socket -b -b /y id",
                Some("create"),
                "/y/config.json",
            ),
            ("run -f other.json -b /x id", Some("run"), "./other.json"),
            ("run -f config.json -b /x id", Some("run"), "/x/config.json"),
            ("run -df /o.json id", Some("run"), "/o.json"),
            ("run -db/x id", Some("run"), "/x/config.json"),
            ("run -d -detach id", Some("run"), "./config.json"),
            ("run -db/x=y id", Some("run"), "/x=y/config.json"),
            ("run -b/x=y id", Some("run"), "/x=y/config.json"),
            ("run -b=/x id", Some("run"), "/x/config.json"),
            ("run --bun /x id", Some("run"), "/x/config.json"),
            ("run --bund=/x --det id", Some("run"), "/x/config.json"),
            (
                "restore --lsm-profile -b --empty-ns -b -b /x id",
                Some("restore"),
                "/x/config.json",
            ),
            ("run --config=/etc/o.json id", Some("run"), "/etc/o.json"),
            (
                "--newoption v create -b /x id",
                Some("create"),
                "/x/config.json",
            ),
            (
                "--newoption=v create -b /x id",
                Some("create"),
                "/x/config.json",
            ),
            (
                "--new-flag create -b /x id",
                Some("create"),
                "/x/config.json",
            ),
            (
                "--one a --two b --log /l run -b /x id",
                Some("run"),
                "/x/config.json",
            ),
            (
                "-r /r -l /l create -b /x id",
                Some("create"),
                "/x/config.json",
            ),
            ("-n v -q create -b /x id", Some("create"), "/x/config.json"),
            ("--newoption v state id", Some("state"), "./config.json"),
            ("--newoption v", None, "./config.json"),
            ("delete -f create", Some("delete"), "./config.json"),
            ("--version", None, "./config.json"),
            ("", None, "./config.json"),
            (
                "--cgroup-manager systemd delete create",
                Some("delete"),
                "./config.json",
            ),
        ] {
            let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
            let line = CommandLine::parse(&words);
            assert_eq!(line.verb.as_deref(), verb, "{words:?}");
            assert_eq!(line.config_path().to_str(), Some(config), "{words:?}");
        }
    }

    #[test]
    fn the_id_and_who_makes_the_cgroup_are_found() {
        use CgroupManager::{Cgroupfs, Disabled, Systemd};
        for (words, id, cgroups) in [
            ("create -b /x web", Some("web"), Cgroupfs),
            (
                "--systemd-cgroup run --detach web more",
                Some("web"),
                Systemd,
            ),
            (
                "--cgroup-manager=systemd create -b x web",
                Some("web"),
                Systemd,
            ),
            (
                "--cgroup-manager disabled create web",
                Some("web"),
                Disabled,
            ),
            (
                "--systemd-cgroup=false create --no-pivot web",
                Some("web"),
                Cgroupfs,
            ),
            ("create --systemd-cgroup web", Some("web"), Cgroupfs),
            ("--systemd-cgroup=1 create web", Some("web"), Systemd),
            ("-systemd-cgroup=TRUE create web", Some("web"), Systemd),
            ("create", None, Cgroupfs),
        ] {
            let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
            let line = CommandLine::parse(&words);
            assert_eq!(
                (line.id.as_deref(), line.cgroups),
                (id, cgroups),
                "{words:?}"
            );
        }
    }

    #[test]
    fn an_option_that_is_not_known_hides_neither_verb_nor_id() {
        for (words, verb, id, in_doubt) in [
            // `state` is `--new`'s value or the verb: the reading that makes a container counts.
            (
                "--new state create -b /x id",
                Some("create"),
                Some("id"),
                Some("--new"),
            ),
            (
                "--new create state id",
                Some("create"),
                Some("state"),
                Some("--new"),
            ),
            ("--new kill state id", Some("state"), Some("id"), None),
            ("--new v create id", Some("create"), Some("id"), None),
            ("--new create id", Some("create"), Some("id"), None),
            ("--new state id", Some("state"), Some("id"), None),
            ("--debug state create", Some("state"), Some("create"), None),
            ("create --new v id", Some("create"), Some("id"), None),
            ("create --new id", Some("create"), Some("id"), None),
            (
                "create --no-pivot id more",
                Some("create"),
                Some("id"),
                None,
            ),
            ("delete -f id", Some("delete"), Some("id"), None),
            ("delete --force id", Some("delete"), Some("id"), None),
            ("kill id TERM", Some("kill"), Some("id"), None),
            ("exec --process p id", Some("exec"), Some("id"), None),
        ] {
            let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
            let line = CommandLine::parse(&words);
            assert_eq!(line.verb.as_deref(), verb, "{words:?}");
            assert_eq!(line.id.as_deref(), id, "{words:?}");
            assert_eq!(line.in_doubt.as_deref(), in_doubt, "{words:?}");
        }
    }

    #[test]
    fn the_log_is_that_of_the_engine() {
        let words =
            ["--log", "/l", "--log-format=json", "create", "--log", "x"].map(OsString::from);
        let line = CommandLine::parse(&words);
        assert_eq!(line.log, Some("/l".into()));
        assert!(line.log_is_json);
        for (value, file) in [
            ("file:/l", Some("/l")),
            ("journald:x", None),
            ("syslog:x", None),
        ] {
            let line = CommandLine::parse(&["--log", value].map(OsString::from));
            assert_eq!(line.log.as_deref(), file.map(Path::new));
        }
    }
}
