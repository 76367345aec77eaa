//! Finds the name that an engine gave a container. Where a source cannot be read, there is no name:
//! a start must not fail for want of one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Names, PODMAN, SERVICE, usable};
use crate::files;
use crate::host::Host;
use crate::oci::CommandLine;
use crate::process;

/// The annotation that says which engine wrote the annotations: CRI-O and podman both write it
/// (containers/common, `ContainerManager`).
const MANAGER: &str = "io.container.manager";
/// CRI-O's annotations for the kubelet's names: container, pod, namespace.
const CRIO: [&str; 3] = [
    "io.kubernetes.container.name",
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
];
/// The annotations of containerd's CRI plugin for these names (containerd, `pkg/cri/annotations`).
const CRI: [&str; 3] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
];
/// nerdctl's annotation for a container's name.
const NERDCTL: &str = "nerdctl/name";

/// Most processes above this one that are looked at: an engine's monitor is the second or third.
const MOST_ANCESTORS: usize = 3;
/// Longest record of a container that is read from an engine, in bytes.
const MOST_RECORD: u64 = 1 << 20;

/// Is this the key of an annotation that holds a name?
pub fn is_name_key(key: &str) -> bool {
    key == MANAGER || key == NERDCTL || CRIO.contains(&key) || CRI.contains(&key)
}

/// The runtime and the engine's monitor that started this process, found by the command lines of
/// the processes above it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ancestry {
    monitor: Option<Monitor>,
    /// The container's `config.json`, where a runtime above this process was given a bundle.
    config: Option<PathBuf>,
}

/// The process that an engine runs beside each container.
#[derive(Debug, PartialEq, Eq)]
enum Monitor {
    /// conmon(8), of podman and CRI-O, with the container's name that it was given.
    Conmon(Option<String>),
    /// containerd's shim, with containerd's namespace.
    Shim(String),
}

impl Ancestry {
    /// Looks at the processes above this process.
    pub fn of_this_process(host: &Host) -> Ancestry {
        Ancestry::up_from(host, parent_id().try_into().ok())
    }

    /// Looks at the processes above a container's process `pid`.
    pub fn of(host: &Host, pid: i32) -> Ancestry {
        Ancestry::up_from(host, process::parent(host, pid))
    }

    fn up_from(host: &Host, mut next: Option<i32>) -> Ancestry {
        let mut ancestry = Ancestry::default();
        for above in 1..=MOST_ANCESTORS {
            let Some(pid) = next.filter(|pid| *pid > 1) else {
                break;
            };
            ancestry.add(&process::command_line(host, pid));
            if ancestry.monitor.is_some() || above == MOST_ANCESTORS {
                break;
            }
            next = process::parent(host, pid);
        }
        ancestry
    }

    /// Sets the container's `config.json`: the runtime itself knows it.
    #[must_use]
    pub fn with_config(self, config: &Path) -> Ancestry {
        Ancestry {
            config: Some(config.to_owned()),
            ..self
        }
    }

    fn add(&mut self, line: &[OsString]) {
        let Some((program, arguments)) = line.split_first() else {
            return;
        };
        let program = Path::new(program).file_name().unwrap_or_default();
        let program = program.to_string_lossy();
        if program == "conmon" {
            self.monitor = Some(Monitor::Conmon(value_of(arguments, &["-n", "--name"])));
        } else if program.starts_with("containerd-shim") {
            let namespace = value_of(arguments, &["-namespace", "--namespace"]);
            self.monitor = Some(Monitor::Shim(namespace.unwrap_or_default()));
        } else if self.config.is_none() {
            let line = CommandLine::parse(arguments);
            if line.makes_a_container() && line.config_path().is_absolute() {
                self.config = Some(line.config_path());
            }
        }
    }

    /// The names of a container. `annotations` are those whose key [`is_name_key`] accepts. A pod's
    /// author may have written some of them: only those of the engine that runs the container
    /// count.
    pub fn names(&self, id: &str, annotations: &BTreeMap<String, String>) -> Names {
        let of = |key: &str| annotations.get(key).and_then(|value| usable(value));
        let named = |engine: &str, [name, pod, namespace]: [&str; 3]| Names {
            engine: usable(engine),
            name: of(name),
            pod: of(pod),
            namespace: of(namespace),
            unit: None,
        };
        match &self.monitor {
            None => Names::default(),
            Some(Monitor::Conmon(_)) if of(MANAGER).as_deref() == Some("cri-o") => {
                named("crio", CRIO)
            }
            Some(Monitor::Conmon(name)) => Names {
                engine: usable(PODMAN),
                name: name.clone(),
                ..Names::default()
            },
            Some(Monitor::Shim(namespace)) if namespace == "k8s.io" => named("containerd", CRI),
            Some(Monitor::Shim(_)) => match self.name_of_docker(id) {
                Some(name) => Names {
                    engine: usable("docker"),
                    name: usable(&name),
                    ..Names::default()
                },
                None => Names {
                    engine: usable("containerd"),
                    name: of(NERDCTL),
                    ..Names::default()
                },
            },
        }
    }

    fn name_of_docker(&self, id: &str) -> Option<String> {
        let record = DockerRecord::of(self.config.as_deref()?, id)?;
        Some(record.name.trim_start_matches('/').to_owned())
    }
}

/// Docker's own record of a container (moby: container/container.go).
#[derive(Debug, Deserialize)]
pub struct DockerRecord {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Name")]
    name: String,
    #[serde(default, rename = "Config")]
    config: DockerConfig,
}

#[derive(Debug, Default, Deserialize)]
struct DockerConfig {
    #[serde(default, rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

impl DockerRecord {
    /// The record of the container with this `config.json` and id: docker keeps it beside the files
    /// that it mounts into the container.
    pub fn of(config: &Path, id: &str) -> Option<DockerRecord> {
        #[derive(Deserialize)]
        struct Bundled {
            mounts: Vec<DockerMount>,
        }
        #[derive(Deserialize)]
        struct DockerMount {
            #[serde(default)]
            source: PathBuf,
        }
        let config: Bundled = read_json(config)?;
        let is_its_home =
            |home: &&Path| home.ends_with(Path::new("containers").join(id)) && home.is_absolute();
        let home = config.mounts.iter().find_map(|mount| {
            let home = mount.source.parent();
            home.filter(is_its_home)
        })?;
        let record: DockerRecord = read_json(&home.join("config.v2.json"))?;
        (record.id == id).then_some(record)
    }

    /// The keys of the container's labels.
    pub fn labels(self) -> Vec<String> {
        let labels = self.config.labels.unwrap_or_default();
        labels.into_keys().collect()
    }
}

/// The names of a command that this process will run.
pub fn of_command(host: &Host, program: &Path) -> Names {
    let name = program.file_name().unwrap_or_default();
    let groups = files::read_if_there(&host.proc_pid(std::process::id() as i32, "cgroup"));
    let groups = groups.ok().flatten().unwrap_or_default();
    // On cgroup v1, systemd has a hierarchy of its own (cgroups(7), "cgroups v1 named
    // hierarchies").
    let of_systemd = |line: &str| {
        let group = line.strip_prefix("0::").map(str::to_owned);
        group.or_else(|| Some(line.split_once(":name=systemd:")?.1.to_owned()))
    };
    Names {
        name: usable(&name.to_string_lossy()),
        unit: groups
            .lines()
            .filter_map(of_systemd)
            .find_map(|group| unit_of(&group)),
        ..Names::default()
    }
}

/// The systemd service that a cgroup belongs to; `None` for a user's manager, which nobody means.
pub(super) fn unit_of(cgroup: &str) -> Option<String> {
    let mut parts = cgroup.rsplit('/');
    let unit = parts.find(|part| part.ends_with(SERVICE))?;
    usable(unit).filter(|unit| !unit.starts_with("user@"))
}

fn value_of(arguments: &[OsString], names: &[&str]) -> Option<String> {
    let is_named = |argument: &&[OsString]| names.iter().any(|name| argument[0] == *name);
    let pair = arguments.windows(2).find(is_named)?;
    usable(pair[1].to_str()?)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let text = files::read_bounded(files::open_regular(path).ok()?, MOST_RECORD).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3b1e38fab2d3c42ef43fe80182c1799b61126c4104e0f2d34d278cf1db68cc92";

    fn ancestry(lines: &[&str]) -> Ancestry {
        let mut ancestry = Ancestry::default();
        for line in lines {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            ancestry.add(&words);
        }
        ancestry
    }

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn words(names: &Names) -> [&str; 4] {
        let parts = [&names.engine, &names.name, &names.pod, &names.namespace];
        parts.map(|part| part.as_deref().unwrap_or("-"))
    }

    #[test]
    fn each_engine_says_it_in_its_own_place() {
        let podman =
            "/usr/bin/conmon --api-version 1 -c 1 -r /usr/sbin/runc -b /b -n web --exit-dir /e";
        let cri = "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id 1 -address /a";
        let all = annotations(&[
            (CRIO[0], "crio-web"),
            (CRIO[1], "crio-pod"),
            (CRIO[2], "crio-ns"),
            (CRI[0], "web"),
            (CRI[1], "pod"),
            (CRI[2], "ns"),
            (NERDCTL, "nerd"),
        ]);
        let runc = "runc --root /r create --bundle /b --pid-file /p 1";
        for (lines, expected) in [
            (vec![], ["-"; 4]),
            (
                vec!["/usr/sbin/runc create --bundle /b 1", "bash"],
                ["-"; 4],
            ),
            (vec![runc, podman], ["podman", "web", "-", "-"]),
            (vec![runc, cri], ["containerd", "web", "pod", "ns"]),
            (
                vec![runc, "containerd-shim-runc-v2 -namespace default -id 1"],
                ["containerd", "nerd", "-", "-"],
            ),
            (
                vec![runc, "conmon -c 1 -n a\x1b[31m"],
                ["podman", "-", "-", "-"],
            ),
            (vec![runc, "conmon -n"], ["podman", "-", "-", "-"]),
        ] {
            let names = ancestry(&lines).names("1", &all);
            assert_eq!(words(&names), expected, "{lines:?}");
        }
        let mut crio = all.clone();
        crio.insert(MANAGER.into(), "cri-o".into());
        let names = ancestry(&["conmon -n k8s_web_pod_ns_uid_0"]).names("1", &crio);
        assert_eq!(words(&names), ["crio", "crio-web", "crio-pod", "crio-ns"]);
    }

    #[test]
    fn docker_keeps_it_in_its_own_record() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("containers").join(ID);
        std::fs::create_dir_all(&home).unwrap();
        let put = |path: &Path, text: String| {
            files::replace(path, text.as_bytes(), 0o600, files::Durability::Crash).unwrap();
        };
        let source = home.join("resolv.conf").display().to_string();
        let config = format!(
            concat!(
                r#"{{"mounts":[{{"destination":"/x","source":"/etc/hosts"}},"#,
                r#"{{"type":"proc"}},{{"source":{:?}}}]}}"#
            ),
            source
        );
        put(&dir.path().join("config.json"), config);
        let runc = format!("runc create --bundle {} {ID}", dir.path().display());
        let ancestry = ancestry(&[&runc, "containerd-shim-runc-v2 -namespace moby -id 1"]);
        for (record, expected) in [
            (
                format!(r#"{{"ID":"{ID}","Name":"/web","State":{{}}}}"#),
                "docker",
            ),
            (
                format!(r#"{{"ID":"other{ID}","Name":"/web"}}"#),
                "containerd",
            ),
            ("[".to_owned(), "containerd"),
        ] {
            put(&home.join("config.v2.json"), record);
            let names = ancestry.names(ID, &BTreeMap::new());
            assert_eq!(names.engine.as_deref(), Some(expected));
            assert_eq!(names.name.is_some(), expected == "docker");
        }
        // Another container's record says nothing of this container.
        assert_eq!(ancestry.names("other", &BTreeMap::new()).name, None);
    }

    #[test]
    fn a_service_is_told_by_its_group() {
        for (cgroup, unit) in [
            ("/system.slice/pin.service", Some("pin.service")),
            ("/system.slice/pin.service/worker", Some("pin.service")),
            ("/user.slice/user-0.slice/session-3.scope", None),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice",
                None,
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service",
                Some("x.service"),
            ),
            ("/", None),
        ] {
            assert_eq!(unit_of(cgroup).as_deref(), unit, "{cgroup}");
        }
    }
}
