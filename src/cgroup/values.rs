//! Files with a line for each key: the key, a space and a number (kernel: cgroup-v2.rst, "Format",
//! "Flat keyed").

/// The number on the line of `name`; `None` where there is no such line, or no number on it.
pub(super) fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok()).flatten()
    })
}
