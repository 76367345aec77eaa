//! Files of a line each for a name and a number (kernel: cgroup-v2.rst, "Format", "Flat keyed").

/// The number of a name.
pub(super) fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok()).flatten()
    })
}
