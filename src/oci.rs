//! The state that a runtime hands to a hook on standard input.

use std::collections::BTreeMap;
use std::io::{self, Read};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::ContainerState;
use serde::Deserialize;

use crate::files;

/// The largest state that is read, in bytes. Linux itself bounds a container's annotations far lower.
pub const MOST_STATE: u64 = 4 << 20;

/// The parts of a container's state that a hook may rely on (OCI runtime specification, "State").
///
/// The bundle is left out: crun gives `/` for it, and youki's working directory is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The container's id, as [`is_container_id`] allows.
    pub id: String,
    /// The first process, in the runtime's pid namespace; `None` where the state has none, or 0.
    pub pid: Option<i32>,
    /// The container's status, where the state has one.
    pub status: Option<ContainerState>,
    /// The container's annotations; empty where the state has none.
    pub annotations: BTreeMap<String, String>,
}

impl State {
    /// Reads a state to its end, and at most [`MOST_STATE`] bytes of it.
    pub fn read(mut source: impl Read) -> Result<State> {
        let text = files::read_bounded(&mut source, MOST_STATE)
            .context("read the container's state from standard input");
        // A runtime that is still writing would be killed by SIGPIPE if we left it: take the rest.
        io::copy(&mut source, &mut io::sink()).context("read standard input")?;
        State::parse(&text?)
    }

    /// Parses a state.
    pub fn parse(text: &str) -> Result<State> {
        ensure!(
            !text.trim().is_empty(),
            "the container's state on standard input is empty: a hook is run by an OCI runtime"
        );
        let wire: Wire = serde_json::from_str(text)
            .context("the container's state on standard input is not an OCI state")?;
        if !is_container_id(&wire.id) {
            bail!(
                "the container id {} in the state cannot be used: ids have 1 to 200 letters, digits, _ + - and ., and no \"..\"",
                crate::text::Shown(&wire.id)
            );
        }
        let pid = match wire.pid {
            None | Some(0) => None,
            Some(pid) => match i32::try_from(pid) {
                Ok(pid) if pid > 0 => Some(pid),
                _ => bail!("the pid {pid} in the state is no process"),
            },
        };
        Ok(State {
            id: wire.id,
            pid,
            status: wire.status,
            annotations: wire.annotations.unwrap_or_default(),
        })
    }
}

/// Is this an id that can name a file? The characters are runc's; `.` alone and `..` anywhere are refused.
pub fn is_container_id(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    (1..=200).contains(&id.len()) && id.bytes().all(allowed) && id != "." && !id.contains("..")
}

/// The state as it is written: whatever else stands in it is left unread.
#[derive(Deserialize)]
struct Wire {
    id: String,
    pid: Option<i64>,
    status: Option<ContainerState>,
    annotations: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_runtimes_write() {
        let runc = r#"{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":5021,"bundle":"/b","annotations":{"a":"b"}}"#;
        let state = State::read(runc.as_bytes()).unwrap();
        assert_eq!((state.id.as_str(), state.pid), ("web", Some(5021)));
        assert_eq!(state.status, Some(ContainerState::Creating));
        assert_eq!(state.annotations["a"], "b");
        let crun = r#"{ "ociVersion": "1.0", "id": "web", "pid": 0, "root": "\/r", "bundle": "\/",
            "status": "stopped", "annotations": null }"#;
        let state = State::read(crun.as_bytes()).unwrap();
        assert_eq!((state.pid, state.annotations.len()), (None, 0));
    }

    #[test]
    fn refuses_what_is_no_state() {
        for (text, part) in [
            ("", "empty"),
            (" \n", "empty"),
            ("hello", "not an OCI state"),
            (r#"{"id":"web","pid":1"#, "not an OCI state"),
            (r#"{"pid":1}"#, "not an OCI state"),
            (r#"{"id":7}"#, "not an OCI state"),
            (r#"{"id":"a","status":"asleep"}"#, "not an OCI state"),
            (r#"{"id":"a","pid":-1}"#, "no process"),
            (r#"{"id":"a","pid":4294967297}"#, "no process"),
            (r#"{"id":""}"#, "cannot be used"),
            (r#"{"id":"a/b"}"#, "cannot be used"),
            (r#"{"id":".."}"#, "cannot be used"),
            (r#"{"id":"a..b"}"#, "cannot be used"),
            (r#"{"id":"a\u0000"}"#, r"a\0"),
            (r#"{"id":"a\u001b[0m"}"#, r"\u{1b}"),
        ] {
            let error = format!("{:#}", State::parse(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains(['\x1b', '\n', '\0']), "{text}: {error:?}");
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(300));
        assert!(State::parse(&long).is_err());
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
