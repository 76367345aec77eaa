//! Reads the labels of containers. No runtime sees them: each engine keeps them to itself.

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

/// How long podman may take to list its containers.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most that is read of podman's output, in bytes.
const MOST_SAID: u64 = 64 << 20;

/// The keys of containers' labels, by container id. docker's are in its record of a container.
/// podman keeps them in a database, and is asked if it started any container of our user and the
/// host is the running machine. (`ctr` makes annotations of its labels, and no other engine is
/// known to have any.)
///
/// # Errors
/// podman cannot be run, takes too long, or prints something else.
pub fn labels(host: &Host, containers: &[Container]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut labels = recorded_labels(containers);
    let is_ours = |one: &&Container| one.user == geteuid().as_raw();
    let mut own = containers.iter().filter(is_ours);
    if own.any(|one| one.starter == Starter::Podman) && host.is_running_root() {
        labels.extend(of_podman(host)?);
    }
    Ok(labels)
}

/// The keys of docker's labels alone, which are in a file: no other program is waited for.
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
    struct PodmanContainer {
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
    let told: Vec<PodmanContainer> =
        serde_json::from_str(&said).context("read what `podman ps` says")?;
    let labels = told.into_iter().map(|one| {
        let labels = one.labels.unwrap_or_default();
        (one.id, labels.into_keys().collect())
    });
    Ok(labels.collect())
}

/// Runs a program and returns what it prints. It is killed if it takes longer than [`PATIENCE`].
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
        // It is our child and not waited for yet, so its pid is not reused.
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    }
    child.wait()?;
    Ok(said.context("it takes too long")??)
}
