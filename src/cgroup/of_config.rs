//! Where a runtime will make a container's group, from what its configuration says. Pure.

/// The unit that runtimes use where none is named.
const DEFAULT_SLICE: &str = "system.slice";

/// Where a runtime will make a group.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its path.
    pub path: String,
    /// Is it the very path? Otherwise its last part, below a slice, need not be the real one.
    pub is_exact: bool,
}

/// The group that `linux.cgroupsPath` means (OCI runtime specification, "Cgroups Path"; runc: docs/systemd.md). `None` where
/// it depends on the runtime.
pub fn expected(cgroups_path: &str, by_systemd: bool) -> Option<Expected> {
    if !by_systemd {
        return cgroups_path.starts_with('/').then(|| Expected {
            path: cgroups_path.to_owned(),
            is_exact: true,
        });
    }
    let slice = match cgroups_path.split_once(':') {
        Some(("", _)) => DEFAULT_SLICE,
        Some((slice, _)) => slice,
        None if cgroups_path.is_empty() => DEFAULT_SLICE,
        None => return None,
    };
    Some(Expected {
        path: format!("{}/scope", slice_path(slice)?),
        is_exact: false,
    })
}

/// The path of a slice: each dash in its name is a step down (systemd.slice(5)).
fn slice_path(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(String::new());
    }
    let mut path = String::new();
    let mut above = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        above = if above.is_empty() {
            part.to_owned()
        } else {
            format!("{above}-{part}")
        };
        path.push_str(&format!("/{above}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_below_those_that_its_name_begins_with() {
        for (written, by_systemd, path) in [
            ("/a/b", false, Some("/a/b")),
            ("a/b", false, None),
            ("", false, None),
            (
                "a-b.slice:docker:web",
                true,
                Some("/a.slice/a-b.slice/scope"),
            ),
            (":docker:web", true, Some("/system.slice/scope")),
            ("", true, Some("/system.slice/scope")),
            ("-.slice:x:y", true, Some("/scope")),
            ("/a/b", true, None),
            ("a--b.slice:x:y", true, None),
            ("../a.slice:x:y", true, None),
            ("a:x:y", true, None),
        ] {
            let found = expected(written, by_systemd);
            let wanted = path.map(|path| Expected {
                path: path.to_owned(),
                is_exact: !by_systemd,
            });
            assert_eq!(found, wanted, "{written}");
        }
    }
}
