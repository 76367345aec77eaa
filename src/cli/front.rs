//! Parses a hook's command line without clap.
//!
//! Every start of a container waits for its hooks, and clap builds all verbs before it looks for
//! the right one. This parser knows what engines and `pinfold-runtime` write. Any other line is
//! left to clap, which has the messages and the help. A line that both can parse means the same to
//! both.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::ValueEnum;

use super::{HookArgs, Options, seconds};

/// The options and the verb of a hook's line; `None` if clap has to parse it.
pub(super) fn hook(arguments: &[OsString]) -> Option<(HookArgs, Options)> {
    let mut line = HookLine::default();
    let mut arguments = arguments.iter();
    while let Some(word) = arguments.next() {
        line.read(word, &mut arguments)?;
    }
    // Clap says what is wrong with these together.
    if line.list.is_some() && (line.device.is_some() || line.reservation.is_some()) {
        return None;
    }
    let hook = HookArgs {
        stage: line.stage?,
        engine: line.engine,
        device: line.device,
        list: line.list,
        shim: line.shim,
        reservation: line.reservation,
        default_pool: line.default_pool,
    };
    Some((hook, line.options))
}

#[derive(Default)]
struct HookLine {
    is_hook: bool,
    stage: Option<super::Stage>,
    engine: Option<crate::engines::Engine>,
    device: Option<String>,
    list: Option<String>,
    shim: bool,
    reservation: Option<String>,
    default_pool: bool,
    options: Options,
}

impl HookLine {
    /// Reads a word, and the next one if that is its value; `None` if clap has to parse the line.
    fn read<'a>(
        &mut self,
        word: &'a OsStr,
        after: &mut impl Iterator<Item = &'a OsString>,
    ) -> Option<()> {
        let bytes = word.as_bytes();
        if !bytes.starts_with(b"-") {
            return self.read_positional(word.to_str()?);
        }
        let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        match (name, value) {
            (b"-v" | b"--verbose", None) if self.is_hook => {
                self.options.verbose = self.options.verbose.checked_add(1)?;
                return Some(());
            }
            // If it is there twice, clap reports that.
            (b"--shim", None) if self.is_hook && !self.shim => {
                self.shim = true;
                return Some(());
            }
            (b"--default-pool", None) if self.is_hook && !self.default_pool => {
                self.default_pool = true;
                return Some(());
            }
            _ => {}
        }
        let value = match value {
            Some(value) => value,
            None => after
                .next()
                .filter(|value| !value.as_bytes().starts_with(b"-"))?,
        };
        if value.is_empty() {
            return None;
        }
        let path = || Some(value.into());
        let text = || Some(value.to_str()?.to_owned());
        match name {
            b"--conf-dir" => set(&mut self.options.conf_dir, path()),
            b"--run-dir" => set(&mut self.options.run_dir, path()),
            b"--host-root" => set(&mut self.options.host_root, path()),
            b"--config" => set(&mut self.options.config, path()),
            b"--lock-timeout" => set(
                &mut self.options.lock_timeout,
                seconds(value.to_str()?).ok(),
            ),
            // What else stands before the word `hook` is left to clap.
            _ if !self.is_hook => None,
            b"--engine" => set(&mut self.engine, enum_value(value)),
            b"--device" => set(&mut self.device, text()),
            b"--list" => set(&mut self.list, text()),
            b"--reservation" => set(&mut self.reservation, text()),
            _ => None,
        }
    }

    fn read_positional(&mut self, word: &str) -> Option<()> {
        if !self.is_hook {
            self.is_hook = word == "hook";
            return self.is_hook.then_some(());
        }
        set(&mut self.stage, ValueEnum::from_str(word, false).ok())
    }
}

/// Sets an option; `None` if it is set already, or its value is not valid.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
    if place.is_some() {
        return None;
    }
    *place = Some(value?);
    Some(())
}

fn enum_value<T: ValueEnum>(value: &OsStr) -> Option<T> {
    T::from_str(value.to_str()?, false).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    /// What clap makes of the line, as text.
    fn by_clap(words: &[OsString]) -> Option<String> {
        let cli = Cli::try_parse_from([OsString::from("pinfold")].iter().chain(words)).ok()?;
        match cli.verb {
            Verb::Hook(hook) => Some(format!("{:?}", (hook, cli.options))),
            _ => None,
        }
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_engines_and_the_shim_write_is_read_without_clap() {
        for line in [
            "hook createRuntime",
            "hook prestart --engine podman",
            "hook poststop --engine=crio --shim",
            "--conf-dir /etc/kcm --run-dir=/run/x hook createRuntime --config /c \
             --lock-timeout 2.5",
            "hook --host-root / createRuntime --reservation 0a1b --shim -v --verbose",
            "hook createRuntime --device dataplane.2",
            "hook poststop --engine podman --default-pool",
            "hook poststop --list dataplane:0-2,8-10 --engine crio",
        ] {
            let words = words(line);
            let read = hook(&words).map(|read| format!("{read:?}"));
            assert!(read.is_some(), "{line}");
            assert_eq!(read, by_clap(&words), "{line}");
        }
    }

    /// Tries every line of up to five of these words: if it is read here, clap reads the same.
    #[test]
    fn what_is_read_is_what_clap_reads() {
        let vocabulary = words(
            "hook createRuntime --shim -v -vv --engine --engine=docker podman --device= --device \
             --conf-dir --conf-dir=/a --lock-timeout=1 --lock-timeout -1 -- - --help release \
             --json --reservation=-x --config== --list",
        );
        let mut both = 0;
        let mut tried = |line: &[OsString]| {
            if let Some(read) = hook(line) {
                both += 1;
                assert_eq!(Some(format!("{read:?}")), by_clap(line), "{line:?}");
            }
        };
        let n = vocabulary.len();
        for number in 0..n * n * n * n {
            let word = |place: u32| vocabulary[number / n.pow(place) % n].clone();
            tried(&[word(0), word(1), word(2), word(3)]);
            tried(&[
                "hook".into(),
                word(0),
                "poststop".into(),
                word(1),
                word(2),
                word(3),
            ]);
        }
        assert!(both > 1000, "{both}");
    }
}
