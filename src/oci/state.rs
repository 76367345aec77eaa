//! A container's state, which a runtime hands to a hook on standard input.

use std::collections::BTreeMap;
use std::io::{self, Read};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::ContainerState;
use serde::Deserialize;
use serde_json::Value;

use super::Id;
use crate::files;
use crate::text::Shown;

/// The largest state that is read, in bytes. Linux itself bounds a container's annotations far
/// lower.
pub const MOST_STATE: u64 = 4 << 20;

/// The fields of a container's state that a hook may rely on (OCI runtime specification, "State").
/// A field is judged when it is asked for: a container without a request is never refused for the
/// form of its state.
///
/// `oci_spec`'s `State` is not used: it refuses the whole state for one annotation that is no text.
/// The bundle is left out: crun gives `/`, and youki has another working directory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct State {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    pid: Value,
    #[serde(default)]
    status: Value,
    #[serde(default)]
    annotations: Value,
}

impl State {
    /// Reads and parses a state of at most [`MOST_STATE`] bytes.
    pub fn read(source: impl Read) -> Result<State> {
        State::parse(&State::text(source)?)
    }

    /// Reads a state's text without parsing it.
    pub fn text(mut source: impl Read) -> Result<String> {
        let text = files::read_bounded(&mut source, MOST_STATE)
            .context("read the container's state from standard input");
        // A runtime that is still writing would be killed by SIGPIPE if we stopped: read the rest.
        if text.is_err() {
            io::copy(&mut source, &mut io::sink()).context("read standard input")?;
        }
        text
    }

    /// Parses a state.
    pub fn parse(text: &str) -> Result<State> {
        ensure!(
            !text.trim().is_empty(),
            "the container's state on standard input is empty: a hook is run by an OCI runtime"
        );
        serde_json::from_str(text)
            .context("the container's state on standard input is not an OCI state")
    }

    /// The container's id.
    pub fn id(&self) -> Result<Id<'_>> {
        let id = self.id.as_str();
        Id::parse(id.context("the state on standard input has no container id")?)
    }

    /// The id, escaped for a message, whatever it is.
    pub fn shown_id(&self) -> String {
        let id = self.id.as_str();
        id.map_or_else(|| "without an id".to_owned(), Id::shown)
    }

    /// The pid of the container's first process, in the runtime's pid namespace. The process waits
    /// for us.
    pub fn first_process(&self) -> Result<i32> {
        let status = ContainerState::deserialize(&self.status);
        ensure!(
            !status.is_ok_and(|status| status == ContainerState::Stopped),
            "its state says that it is stopped: this hook must run as prestart or createRuntime"
        );
        match self.pid.as_i64().map(i32::try_from) {
            None | Some(Ok(0)) => {
                bail!("its state has no pid: this hook must run as prestart or createRuntime")
            }
            Some(Ok(pid)) if pid > 0 => Ok(pid),
            Some(_) => bail!("the pid {} in its state is not a process", self.pid),
        }
    }

    /// Is it certain that no annotation's key begins with `prefix`? Not if there are no
    /// annotations: some engines leave them out.
    pub fn surely_lacks(&self, prefix: &str) -> bool {
        let Some(all) = self.annotations.as_object() else {
            return false;
        };
        !all.is_empty() && !all.keys().any(|key| key.starts_with(prefix))
    }

    /// The annotations whose key is `wanted`. Their values must be text; others need not be.
    pub fn annotations(&self, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        let all = self.annotations.as_object().into_iter().flatten();
        let wanted = all.filter(|(key, _)| wanted(key));
        wanted
            .map(|(key, value)| match value.as_str() {
                Some(value) => Ok((key.clone(), value.to_owned())),
                None => bail!("annotation {} is not text", Shown(key)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_runtimes_write() {
        let runc = r#"{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":5021,
            "bundle":"/b","annotations":{"a":"b","c":null}}"#;
        let state = State::read(runc.as_bytes()).unwrap();
        assert_eq!(
            (state.id().unwrap().as_str(), state.first_process().unwrap()),
            ("web", 5021)
        );
        assert_eq!(state.annotations(|key| key == "a").unwrap()["a"], "b");
        assert!(state.annotations(|_| true).is_err());
        assert!(state.surely_lacks("x") && !state.surely_lacks("a"));
        let crun = r#"{ "ociVersion": "1.0", "id": "web", "pid": 0, "root": "\/r", "bundle": "\/",
            "status": "stopped", "annotations": null }"#;
        let state = State::read(crun.as_bytes()).unwrap();
        assert!(state.first_process().is_err() && !state.surely_lacks("x"));
    }

    #[test]
    fn any_readable_state_is_one() {
        for text in [
            "{}",
            r#"{"id":7,"pid":-1,"status":"asleep","annotations":[]}"#,
            r#"{"id":"..","annotations":{"a":1}}"#,
        ] {
            let state = State::parse(text).unwrap();
            assert!(state.annotations(|_| false).unwrap().is_empty(), "{text}");
            assert!(
                state.id().is_err() && state.first_process().is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_state() {
        for (text, part) in [
            ("", "empty"),
            (" \n", "empty"),
            ("hello", "not an OCI state"),
            ("7", "not an OCI state"),
            (r#"{"id":"web","pid":1"#, "not an OCI state"),
            (r#"{"id":"a","id":"b"}"#, "duplicate field"),
        ] {
            let error = format!("{:#}", State::parse(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn ids_and_pids_are_judged_when_asked_for() {
        for id in [
            "",
            "a/b",
            ".",
            "..",
            "a..b",
            "a\\u0000",
            "a\\u001b[0m",
            &"x".repeat(201),
        ] {
            let state = State::parse(&format!(r#"{{"id":"{id}"}}"#)).unwrap();
            let error = format!("{:#}", state.id().unwrap_err());
            assert!(
                error.contains("cannot be used") && !error.contains(char::is_control),
                "{error:?}"
            );
            assert!(!state.shown_id().contains(char::is_control));
        }
        for (pid, status) in [
            ("-1", "creating"),
            ("4294967297", "creating"),
            ("1.5", "creating"),
            ("7", "stopped"),
        ] {
            let text = format!(r#"{{"id":"a","pid":{pid},"status":"{status}"}}"#);
            assert!(
                State::parse(&text).unwrap().first_process().is_err(),
                "{text}"
            );
        }
        for status in ["creating", "created", "running", "paused"] {
            let text = format!(r#"{{"id":"a","pid":7,"status":"{status}"}}"#);
            assert_eq!(
                State::parse(&text).unwrap().first_process().unwrap(),
                7,
                "{text}"
            );
        }
    }

    #[test]
    fn a_state_over_the_bound_is_refused_but_read_to_its_end() {
        let large = vec![b' '; MOST_STATE as usize + 100];
        let mut source = large.as_slice();
        let error = State::read(&mut source).unwrap_err();
        assert!(format!("{error:#}").contains("larger than 4194304 bytes"));
        assert!(source.is_empty());
    }
}
