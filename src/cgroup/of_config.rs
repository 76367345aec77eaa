//! Pure: the group that a runtime will make for a container, from the container's configuration.

/// The slice that runtimes use where the configuration names none.
const DEFAULT_SLICE: &str = "system.slice";

/// The group that a runtime will make.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    /// The path of the group.
    pub path: String,
    /// Is the whole path known? If not, the slice is right, and its last part stands for a name
    /// that depends on the runtime.
    pub is_exact: bool,
}

/// The group that `linux.cgroupsPath` means (OCI runtime specification, "Cgroups Path"; runc:
/// docs/systemd.md). `None` where it depends on the runtime.
pub fn expected(cgroups_path: &str, by_systemd: bool) -> Option<Expected> {
    if !by_systemd {
        return cgroups_path.starts_with('/').then(|| Expected {
            path: cgroups_path.to_owned(),
            is_exact: true,
        });
    }
    let (slice, rest) = match cgroups_path.split_once(':') {
        Some((slice, rest)) => (slice, rest),
        None if cgroups_path.is_empty() => ("", ""),
        None => return None,
    };
    let slice = if slice.is_empty() {
        DEFAULT_SLICE
    } else {
        slice
    };
    let scope = scope_name(rest);
    Some(Expected {
        path: format!(
            "{}/{}",
            slice_path(slice)?,
            scope.as_deref().unwrap_or("scope")
        ),
        is_exact: scope.is_some(),
    })
}

/// The scope's name for `prefix:name`; `None` where runtimes name it differently.
fn scope_name(prefix_and_name: &str) -> Option<String> {
    let (prefix, name) = prefix_and_name.split_once(':')?;
    let is_plain = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
    let is_scope = !name.ends_with(".slice") && !name.ends_with(".scope");
    (is_plain(prefix) && is_plain(name) && is_scope).then(|| format!("{prefix}-{name}.scope"))
}

/// The path of a slice (systemd.slice(5)): `a-b.slice` is `/a.slice/a-b.slice`. `None` where the
/// name is not a slice's.
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
        for (written, by_systemd, path, is_exact) in [
            ("/a/b", false, Some("/a/b"), true),
            ("a/b", false, None, true),
            ("", false, None, true),
            (
                "a-b.slice:docker:web",
                true,
                Some("/a.slice/a-b.slice/docker-web.scope"),
                true,
            ),
            (
                ":docker:web",
                true,
                Some("/system.slice/docker-web.scope"),
                true,
            ),
            ("-.slice:x:y", true, Some("/x-y.scope"), true),
            // Runtimes name the scope differently for these.
            ("a.slice:x", true, Some("/a.slice/scope"), false),
            ("a.slice::y", true, Some("/a.slice/scope"), false),
            ("a.slice:x:y.slice", true, Some("/a.slice/scope"), false),
            ("a.slice:x:../y", true, Some("/a.slice/scope"), false),
            ("a.slice:x:y:z", true, Some("/a.slice/scope"), false),
            ("", true, Some("/system.slice/scope"), false),
            ("/a/b", true, None, false),
            ("a--b.slice:x:y", true, None, false),
            ("../a.slice:x:y", true, None, false),
            ("a:x:y", true, None, false),
        ] {
            let wanted = path.map(|path| Expected {
                path: path.to_owned(),
                is_exact,
            });
            assert_eq!(expected(written, by_systemd), wanted, "{written}");
        }
    }
}
