//! Labels of containers. No runtime sees them: each engine keeps them to itself.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::Deserialize;

use super::{Container, Starter};
use crate::files;
use crate::host::Host;
use crate::names::DockerRecord;

/// How long podman may take to tell them.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that is read of what podman says, in bytes.
const MOST_SAID: u64 = 64 << 20;

/// The keys of the labels of containers, by their ids. Those of docker's are in its record of a
/// container; podman, which has them in a database, is asked, where it started any and is a program
/// of this machine's. (`ctr` makes annotations of its labels, and nothing else is known to have
/// any.)
///
/// # Errors
/// podman does not tell.
pub fn labels(host: &Host, containers: &[Container]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut labels = recorded_labels(containers);
    let is_ours = |one: &&Container| one.user == geteuid().as_raw();
    let mut own = containers.iter().filter(is_ours);
    if own.any(|one| one.starter == Starter::Podman) && host.is_running_root() {
        labels.extend(of_podman(host)?);
    }
    Ok(labels)
}

/// The same of docker's alone, which stand in a file: no other program is waited for.
pub fn recorded_labels(containers: &[Container]) -> BTreeMap<String, Vec<String>> {
    let docker = containers
        .iter()
        .filter(|one| one.starter == Starter::Docker);
    let labels = docker.map(|container| {
        let record = DockerRecord::of(&container.config_path, &container.id);
        let keys = record.map(DockerRecord::labels).unwrap_or_default();
        (container.id.clone(), keys)
    });
    labels.collect()
}

fn of_podman(host: &Host) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    struct Marks {
        #[serde(rename = "Id")]
        id: String,
        #[serde(rename = "Labels")]
        labels: Option<BTreeMap<String, String>>,
    }
    let Some(podman) = host.program("podman") else {
        return Ok(BTreeMap::new());
    };
    let mut command = Command::new(podman);
    command.args(["ps", "--no-trunc", "--format", "json"]);
    let said = ask(&mut command).context("ask podman for the labels of its containers")?;
    let told: Vec<Marks> = serde_json::from_str(&said).context("read what `podman ps` says")?;
    let labels = told.into_iter().map(|one| {
        let labels = one.labels.unwrap_or_default();
        (one.id, labels.into_keys().collect())
    });
    Ok(labels.collect())
}

/// What a program prints, if it ends in time.
fn ask(command: &mut Command) -> Result<String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().context("it has no output")?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(files::read_bounded(stdout.take(MOST_SAID), MOST_SAID)));
    let said = receive.recv_timeout(PATIENCE);
    if said.is_err() {
        // It is our child, and not waited for yet: the number is its own.
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    }
    child.wait()?;
    Ok(said.context("it takes too long")??)
}
