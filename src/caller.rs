//! The container engine that runs us, recognized by our parent process.

use std::os::unix::process::parent_id;

use crate::engines::Engine;
use crate::host::Host;
use crate::process;

/// The parent process's engine; `None` if it is none that we know.
pub fn engine(host: &Host) -> Option<Engine> {
    let pid = i32::try_from(parent_id()).ok()?;
    let line = process::command_line(host, pid);
    let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
    // A process can give itself any name; its program file it cannot choose.
    let program = std::fs::read_link(host.proc_pid(pid, "exe")).ok();
    let program = program
        .as_deref()
        .and_then(|path| path.file_name()?.to_str());
    let called = || words.first().and_then(|word| word.rsplit('/').next());
    told(program.or_else(called)?, &words)
}

fn told(program: &str, words: &[&str]) -> Option<Engine> {
    // The program was replaced while it runs.
    let program = program.strip_suffix(" (deleted)").unwrap_or(program);
    match program {
        "podman" | "buildah" => Some(Engine::Podman),
        "crio" => Some(Engine::Crio),
        "dockerd" => Some(Engine::Docker),
        "containerd" => Some(Engine::Containerd),
        "conmon" | "conmonrs" => Some(of_conmon(words)),
        shim if shim.starts_with("containerd-shim") => Some(of_shim(words)),
        _ => None,
    }
}

/// conmon's engine: podman has conmon run podman when the container ends (conmon(8),
/// `--exit-command`); CRI-O does not.
fn of_conmon(words: &[&str]) -> Engine {
    match words.iter().any(|word| word.starts_with("--exit-command")) {
        true => Engine::Podman,
        false => Engine::Crio,
    }
}

/// The shim's engine: docker has a containerd namespace of its own (moby: daemon/config,
/// `DefaultContainersNamespace`).
fn of_shim(words: &[&str]) -> Engine {
    let namespace = words
        .iter()
        .position(|word| word.trim_start_matches('-') == "namespace");
    let namespace = namespace.and_then(|at| words.get(at + 1));
    match namespace == Some(&"moby") {
        true => Engine::Docker,
        false => Engine::Containerd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_told_by_what_they_run_as() {
        for (line, engine) in [
            ("podman run x", Some(Engine::Podman)),
            (
                "conmon --api-version 1 -r /x/pinfold-runtime --exit-command /usr/bin/podman",
                Some(Engine::Podman),
            ),
            (
                "conmon -s -c x -r /x/pinfold-runtime --exit-dir /var/run/crio/exits",
                Some(Engine::Crio),
            ),
            ("crio", Some(Engine::Crio)),
            (
                "containerd-shim-runc-v2 -namespace moby -id x",
                Some(Engine::Docker),
            ),
            (
                "containerd-shim-runc-v2 -namespace k8s.io -id x",
                Some(Engine::Containerd),
            ),
            (
                "containerd-shim-runc-v2 -namespace",
                Some(Engine::Containerd),
            ),
            ("dockerd", Some(Engine::Docker)),
            ("bash -c podman", None),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(told(words[0], &words), engine, "{line}");
        }
    }
}
