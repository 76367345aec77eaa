//! Names of an owner beside its id: the name from its engine, its pod, its unit. Whoever starts a
//! container writes them, so only short names of printable characters are kept.

mod found;

use serde::{Deserialize, Serialize};

pub use found::{Ancestry, DockerRecord, is_name_key, of_command};

/// Longest name that is kept, in bytes: Kubernetes' limit for names of pods.
const LONGEST: usize = 253;

/// Digits that are shown of an id of 64, as docker and podman do.
const SHORT_ID: usize = 12;

/// What people call an owner, as it was when the owner was given its CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The engine: `podman`, `crio`, `containerd` or `docker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// A container's name, or the file name of a command's program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's Kubernetes namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The systemd service that runs the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Names {
    /// Is no name known?
    pub fn is_empty(&self) -> bool {
        *self == Names::default()
    }

    /// Adds the systemd service whose cgroup holds the container: podman puts a container there
    /// where it is told to split the service's cgroup. Other engines' containers are left out: all
    /// are below the service of the engine's daemon.
    pub fn add_unit_of(&mut self, cgroup: &str) {
        if self.engine.as_deref().is_none_or(|engine| engine == PODMAN) {
            self.unit = found::unit_of(cgroup);
        }
    }

    /// Is it the infra container of a pod of podman's, which holds the pod's namespaces and no
    /// program of anybody's? podman marks it by nothing but its name: the pod's short id, and
    /// `-infra`.
    pub fn is_infra(&self) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        let pod = name.strip_suffix("-infra").unwrap_or_default();
        let is_id = pod.len() == SHORT_ID && pod.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.engine.as_deref() == Some(PODMAN) && is_id
    }

    /// The name to show: `POD/NAME` for a container of a pod, the unit of a command, else the name.
    pub fn title(&self) -> Option<String> {
        let name = self.name.as_deref();
        match (&self.pod, name, &self.unit) {
            (Some(pod), Some(name), _) => Some(format!("{pod}/{name}")),
            (Some(pod), None, _) => Some(pod.clone()),
            (None, Some(name), Some(_)) if self.engine.is_some() => Some(name.to_owned()),
            (None, _, Some(unit)) => Some(unit.clone()),
            (None, name, None) => name.map(str::to_owned),
        }
    }

    /// Does `called` name this owner? It may be the name, the pod, the unit with or without
    /// `.service`, `POD/NAME`, `NAMESPACE/POD` or `NAMESPACE/POD/NAME`.
    pub fn include(&self, called: &str) -> bool {
        let joined = |parts: &[&Option<String>]| {
            let parts: Option<Vec<&str>> = parts.iter().map(|part| part.as_deref()).collect();
            parts.is_some_and(|parts| parts.join("/") == called)
        };
        let (name, pod, namespace) = (&self.name, &self.pod, &self.namespace);
        let unit = self.unit.as_deref().unwrap_or_default();
        joined(&[name])
            || joined(&[pod])
            || joined(&[pod, name])
            || joined(&[namespace, pod])
            || joined(&[namespace, pod, name])
            || !called.is_empty() && [unit, unit.trim_end_matches(SERVICE)].contains(&called)
    }

    /// The names by which a container is known again when it comes back, as a rule with another id:
    /// its engine, name and pod. Without a name from an engine, the id that somebody chose is the
    /// name; `None` where an engine made the id up.
    pub fn lasting(&self, id: &str) -> Option<Names> {
        let id = || usable(id).filter(|id| !is_long_id(id) && self.pod.is_none());
        let name = self.name.clone().or_else(id)?;
        Some(Names {
            name: Some(name),
            unit: None,
            ..self.clone()
        })
    }

    /// The owner in a sentence: `web (3f9ac41b0c22)`, or its id alone where it has no other name.
    pub fn with_id(&self, id: &str) -> String {
        match self.title() {
            Some(title) if title != id => format!("{title} ({})", short_id(id)),
            _ => id.to_owned(),
        }
    }
}

/// Marks the end of an id or a title that a table has shortened.
pub const CUT: char = '…';

/// The owners that somebody means by a word, as with the engines' own commands: those with this id;
/// else those with this name; else those whose id begins with it; else, where the word was
/// shortened by a table, those whose id or title begins with the rest.
pub fn meant<'a, T>(
    all: &'a [T],
    called: &str,
    id: impl Fn(&T) -> &str,
    has_names: impl Fn(&T, &dyn Fn(&Names) -> bool) -> bool,
) -> Vec<&'a T> {
    let cut = called.strip_suffix(CUT).filter(|rest| !rest.is_empty());
    let is_cut_of = |whole: &str| cut.is_some_and(|beginning| whole.starts_with(beginning));
    let is_title_cut = |names: &Names| names.title().is_some_and(|title| is_cut_of(&title));
    let matches: [&dyn Fn(&&T) -> bool; 4] = [
        &|one| id(one) == called,
        &|one| has_names(one, &|names| names.include(called)),
        &|one| begins(id(one), called),
        &|one| is_cut_of(id(one)) || has_names(one, &is_title_cut),
    ];
    let found = matches.iter().map(|matches| all.iter().filter(matches));
    let mut found = found.map(|found| found.collect::<Vec<_>>());
    found.find(|found| !found.is_empty()).unwrap_or_default()
}

/// Does `id` begin with `beginning`? `false` where that would cut a number: `isolate-12` is not
/// `isolate-123`, nor `web-1` `web-10`. Digits of a long id are not a number.
fn begins(id: &str, beginning: &str) -> bool {
    let Some(rest) = id.strip_prefix(beginning).filter(|_| !beginning.is_empty()) else {
        return false;
    };
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let cuts_a_number = is_digit(beginning.as_bytes().last()) && is_digit(rest.as_bytes().first());
    is_long_id(id) || !cuts_a_number
}

/// The name of the engine podman in [`Names::engine`].
const PODMAN: &str = "podman";

/// Suffix of a systemd service's name.
const SERVICE: &str = ".service";

/// Is this an id that an engine made up: 64 hexadecimal digits?
pub fn is_long_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// An id as a table shows it: the first 12 digits of a long id, any other id whole.
pub fn short_id(id: &str) -> &str {
    if is_long_id(id) { &id[..SHORT_ID] } else { id }
}

/// Returns a name that can be kept: 1 to 253 printable ASCII characters, without blanks and without
/// `/`, which joins names.
fn usable(text: &str) -> Option<String> {
    let is_usable = (1..=LONGEST).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    is_usable.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_infra_containers_are_known_by_their_names() {
        for (engine, name, is_infra) in [
            ("podman", "a2693f7bdf28-infra", true),
            ("docker", "a2693f7bdf28-infra", false),
            ("podman", "a2693f7bdf2-infra", false),
            ("podman", "a2693f7bdf2x-infra", false),
            ("podman", "web-infra", false),
            ("podman", "a2693f7bdf28", false),
        ] {
            let names = Names {
                engine: Some(engine.to_owned()),
                name: Some(name.to_owned()),
                ..Names::default()
            };
            assert_eq!(names.is_infra(), is_infra, "{engine} {name}");
        }
        assert!(!Names::default().is_infra());
    }

    #[test]
    fn what_lasts_of_a_name() {
        let web = names("podman", "web", "", "", "web.service");
        let lasting = web.lasting("0").unwrap();
        assert_eq!(lasting, names("podman", "web", "", "", ""));
        assert_eq!(lasting.lasting("1"), Some(lasting.clone()));
        let unnamed = Names::default();
        assert_eq!(unnamed.lasting("web"), Some(names("", "web", "", "", "")));
        for id in ["", "a/b", "a\x1b", &"0".repeat(64)] {
            assert_eq!(unnamed.lasting(id), None, "{id:?}");
        }
        assert_eq!(names("crio", "", "pod", "ns", "").lasting("web"), None);
    }

    fn names(engine: &str, name: &str, pod: &str, namespace: &str, unit: &str) -> Names {
        Names {
            engine: usable(engine),
            name: usable(name),
            pod: usable(pod),
            namespace: usable(namespace),
            unit: usable(unit),
        }
    }

    #[test]
    fn an_owner_is_called_by_what_tells_it_best() {
        let id = "3f9ac41b0c22".repeat(6)[..64].to_owned();
        for (names, with_id) in [
            (names("docker", "web", "", "", ""), "web (3f9ac41b0c22)"),
            (
                names("containerd", "web", "shop", "prod", ""),
                "shop/web (3f9ac41b0c22)",
            ),
            (
                names("podman", "web", "", "", "web.service"),
                "web (3f9ac41b0c22)",
            ),
            (
                names("", "sleep", "", "", "pin.service"),
                "pin.service (3f9ac41b0c22)",
            ),
            (names("", "sleep", "", "", ""), "sleep (3f9ac41b0c22)"),
            (Names::default(), id.as_str()),
        ] {
            assert_eq!(names.with_id(&id), with_id);
        }
        assert_eq!(names("", "web", "", "", "").with_id("web"), "web");
        assert_eq!(
            names("", "web", "", "", "").with_id("isolate-7"),
            "web (isolate-7)"
        );
    }

    #[test]
    fn an_owner_is_found_by_each_of_its_names() {
        let pod = names("crio", "web", "shop", "prod", "");
        for called in ["web", "shop", "shop/web", "prod/shop", "prod/shop/web"] {
            assert!(pod.include(called), "{called}");
        }
        for called in ["", "we", "prod", "prod/web", "/web", "shop/"] {
            assert!(!pod.include(called), "{called}");
        }
        let unit = names("", "sleep", "", "", "pin.service");
        assert!(
            ["sleep", "pin", "pin.service"]
                .iter()
                .all(|called| unit.include(called))
        );
        assert!(!Names::default().include(""));
    }

    #[test]
    fn a_beginning_cuts_no_number_short() {
        let long = "0123456789abcdef".repeat(4);
        for (id, beginning, expected) in [
            (long.as_str(), "0", true),
            (&long, "0123456", true),
            (&long, "1", false),
            ("isolate-123", "isolate-12", false),
            ("isolate-123", "isolate-", true),
            ("web-10", "web-1", false),
            ("web-1-a", "web-1", true),
            ("web", "", false),
            ("web", "web", true),
        ] {
            assert_eq!(begins(id, beginning), expected, "{id} {beginning}");
        }
    }

    #[test]
    fn whom_somebody_means() {
        let all = [
            ("web", names("", "a", "", "", "")),
            ("3f9", names("", "web", "", "", "")),
            (
                "isolate-4194304",
                names("", "sleep", "", "", "long.service"),
            ),
            ("isolate-4194305", names("", "sleep", "", "", "")),
        ];
        for (called, expected) in [
            ("web", &["web"] as &[&str]),
            ("a", &["web"]),
            ("sleep", &["isolate-4194304", "isolate-4194305"]),
            ("3", &["3f9"]),
            ("isolate-4194304", &["isolate-4194304"]),
            ("isolate-419", &[]),
            // Words as a table shortens them.
            ("isolate-419…", &["isolate-4194304", "isolate-4194305"]),
            ("long.ser…", &["isolate-4194304"]),
            ("…", &[]),
            ("", &[]),
        ] {
            let found = meant(&all, called, |one| one.0, |one, is| is(&one.1));
            let ids: Vec<&str> = found.iter().map(|one| one.0).collect();
            assert_eq!(ids, expected, "{called}");
        }
    }

    #[test]
    fn what_cannot_be_shown_is_not_kept() {
        for text in ["", "a b", "a\x1b[31m", "a/b", "ü", "a\n", &"x".repeat(254)] {
            assert_eq!(usable(text), None, "{text:?}");
        }
        let longest = "x".repeat(253);
        for text in ["web", "k8s_a_b-c.d", "foo@1.service", "[", &longest] {
            assert_eq!(usable(text).as_deref(), Some(text));
        }
    }
}
