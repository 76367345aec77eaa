//! A pinned container keeps its CPUs and the memory nodes that it was given, whatever an update
//! says of them; the rest of the update passes. One that a hook is still to pin gets none before.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use pinfold::claims::{Claim, Entry, Ledger};
use pinfold::oci::Id;
use pinfold::refusal::Refusal;

use super::api::{
    ContainerUpdate, LinuxContainerUpdate, LinuxCpu, LinuxResources, UpdateContainerResponse,
};

/// The beginning of the names of a cpuset's files of cgroup v2.
const CPUSET: &str = "cpuset.";
const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";

/// What an update is to say instead; `None` where it can stay as it is. Claims are read without the
/// lock, and only where the update is about CPUs or memory nodes. `awaits` says whether a container
/// without a claim is still to get one: engines keep such an update for the start, at which the
/// hook refuses a container that somebody else has given CPUs. An answer can change a value, and
/// not take it away.
///
/// # Errors
/// Who owns what cannot be told; the update asks for what no other value can take the place of, or
/// comes before the container has its CPUs.
pub fn guarded(
    run_dir: &Path,
    id: &str,
    awaits: bool,
    asked: &LinuxResources,
) -> Result<Option<LinuxResources>> {
    if !is_of_cpuset(asked) {
        return Ok(None);
    }
    let id = Id::parse(id)?.as_str();
    let mut claims = Vec::new();
    for entry in Ledger::open_to_read(run_dir)?.of_id(id)? {
        match entry {
            Entry::Claim(claim) if claim.cpus.is_empty() => {}
            Entry::Claim(claim) => claims.push(*claim),
            Entry::Unreadable(one) => bail!(one.refusal()),
        }
    }
    let [first, others @ ..] = claims.as_slice() else {
        ensure!(
            !awaits,
            Refusal::new(
                "it asks for CPUs of a pool, and gets them when it starts",
                "leave its CPUs and memory nodes as they are"
            )
        );
        return Ok(None);
    };
    ensure!(
        others
            .iter()
            .all(|other| (&other.cpus, &other.mems) == (&first.cpus, &first.mems)),
        Refusal::new(
            "its id has several claims, and which CPUs are its own cannot be told",
            "`pinfold status` shows them"
        )
    );
    instead(first, asked)
}

/// Is an update about CPUs or memory nodes?
pub fn is_of_cpuset(asked: &LinuxResources) -> bool {
    let cpu = asked.cpu.as_ref();
    cpu.is_some_and(|cpu| !cpu.cpus.is_empty() || !cpu.mems.is_empty())
        || asked.unified.keys().any(|key| key.starts_with(CPUSET))
}

/// The values of a claim in the places in which the update has values.
fn instead(claim: &Claim, asked: &LinuxResources) -> Result<Option<LinuxResources>> {
    let cpus = claim.cpus.to_string();
    // Where the claim has no memory nodes they were never ours.
    let mems = claim.mems.as_ref().map(ToString::to_string);
    let mut said = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    if let Some(asked) = &asked.cpu {
        if !asked.cpus.is_empty() && asked.cpus != cpus {
            cpu.cpus.clone_from(&cpus);
        }
        if let Some(mems) = mems
            .as_ref()
            .filter(|mems| !asked.mems.is_empty() && asked.mems != **mems)
        {
            cpu.mems.clone_from(mems);
        }
    }
    said.cpu = (cpu != LinuxCpu::default()).then_some(cpu);
    for (key, value) in &asked.unified {
        let ours = match key.as_str() {
            CPUS => Some(&cpus),
            MEMS => mems.as_ref(),
            // What makes a partition, or gives CPUs to one, cannot be left out by an answer.
            key if key.starts_with(CPUSET) => bail!(Refusal::new(
                format!("{key} of a container that owns its CPUs is not to be changed"),
                "leave it out"
            )),
            _ => None,
        };
        if let Some(ours) = ours.filter(|ours| *ours != value) {
            said.unified.insert(key.clone(), ours.clone());
        }
    }
    Ok((said != LinuxResources::default()).then_some(said))
}

/// The answer that gives a container these values.
pub fn response(id: &str, resources: Option<LinuxResources>) -> UpdateContainerResponse {
    let update = resources.map(|resources| ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(resources),
        }),
    });
    UpdateContainerResponse {
        update: update.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A claim of `web` on these CPUs and memory nodes.
    fn claim(pid: i32, cpus: &str, mems: &str) -> String {
        format!(
            r#"{{"version":1,"id":"web","kind":"container","boot_id":"b",
               "owner":{{"pid":{pid},"start":7}},"processes":[],"pool":"dp",
               "lists":["{cpus}"],"cpus":"{cpus}","mems":"{mems}","since":1}}"#
        )
    }

    /// A run directory with these files of the id `web`.
    fn run_dir(claims: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("claims/web");
        std::fs::create_dir_all(&home).unwrap();
        for (name, text) in claims {
            #[expect(clippy::disallowed_methods, reason = "a test makes its files plainly")]
            std::fs::write(home.join(name), text).unwrap();
        }
        dir
    }

    fn resources(cpus: &str, mems: &str, unified: &[(&str, &str)]) -> LinuxResources {
        let cpu = LinuxCpu {
            cpus: cpus.into(),
            mems: mems.into(),
        };
        let unified = unified.iter();
        LinuxResources {
            cpu: (cpu != LinuxCpu::default()).then_some(cpu),
            unified: unified
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn a_pinned_container_keeps_its_cpus_and_the_rest_passes() {
        let dir = run_dir(&[("5-7.json", claim(5, "1,5", "0"))]);
        let guard =
            |id: &str, asked: &LinuxResources| guarded(dir.path(), id, false, asked).unwrap();
        for (asked, expected) in [
            (resources("", "", &[]), None),
            (resources("", "", &[("memory.max", "1")]), None),
            (resources("1,5", "0", &[]), None),
            (resources("0", "", &[]), Some(resources("1,5", "", &[]))),
            (resources("0", "1", &[]), Some(resources("1,5", "0", &[]))),
            (resources("", "1", &[]), Some(resources("", "0", &[]))),
            (
                resources(
                    "",
                    "",
                    &[
                        ("cpuset.cpus", "0-7"),
                        ("cpuset.mems", "0"),
                        ("cpu.max", "1"),
                    ],
                ),
                Some(resources("", "", &[("cpuset.cpus", "1,5")])),
            ),
        ] {
            assert_eq!(guard("web", &asked), expected, "{asked:?}");
            assert_eq!(guard("other", &asked), None);
        }
        let partition = resources("", "", &[("cpuset.cpus.partition", "root")]);
        assert!(guarded(dir.path(), "web", false, &partition).is_err());
        assert_eq!(guard("other", &partition), None);
    }

    #[test]
    fn who_is_still_to_get_its_cpus_gets_none_before() {
        let dir = run_dir(&[("5-7.json", claim(5, "1,5", "0"))]);
        let guard = |id: &str, asked: &LinuxResources| guarded(dir.path(), id, true, asked);
        for asked in [
            resources("0", "", &[]),
            resources("", "0", &[]),
            resources("", "", &[("cpuset.cpus", "0-7")]),
            resources("", "", &[("cpuset.cpus.partition", "root")]),
        ] {
            let refused = guard("other", &asked).unwrap_err().to_string();
            assert!(refused.contains("when it starts"), "{refused}");
        }
        let rest = resources("", "", &[("memory.max", "1")]);
        assert_eq!(guard("other", &rest).unwrap(), None);
        // Its hook has been there.
        let said = guard("web", &resources("0", "", &[])).unwrap();
        assert_eq!(said, Some(resources("1,5", "", &[])));
    }

    #[test]
    fn memory_nodes_that_were_never_ours_can_be_changed() {
        let dir = run_dir(&[("5-7.json", claim(5, "1", ""))]);
        let asked = resources("2", "1", &[]);
        let said = guarded(dir.path(), "web", false, &asked).unwrap();
        assert_eq!(said, Some(resources("1", "", &[])));
    }

    #[test]
    fn where_the_owner_cannot_be_told_cpus_are_not_changed_and_the_rest_is() {
        let lists = [
            vec![("5-7.json", "{".to_owned())],
            vec![
                ("5-7.json", claim(5, "1", "")),
                ("6-7.json", claim(6, "2", "")),
            ],
        ];
        for claims in lists {
            let dir = run_dir(&claims);
            assert!(guarded(dir.path(), "web", false, &resources("0", "", &[])).is_err());
            assert_eq!(
                guarded(dir.path(), "web", false, &resources("", "", &[])).unwrap(),
                None
            );
        }
        let dir = run_dir(&[]);
        let asked = resources("0", "", &[]);
        assert!(guarded(dir.path(), "../web", false, &asked).is_err());
        assert_eq!(
            guarded(&dir.path().join("none"), "web", false, &asked).unwrap(),
            None
        );
    }
}
