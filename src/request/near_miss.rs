//! Finds keys that look like misspelt keys of ours. Pure.

use strsim::damerau_levenshtein as distance;

use super::{KEYS, PREFIX};

/// The first part of our prefix.
const NAME: &str = "pinfold";

/// The most letters that may be wrong in the prefix, and in the key.
const MOST_WRONG: usize = 2;

/// The prefix of CDI's annotations, which nobody writes by hand (Container Device Interface,
/// "Kubernetes annotations").
const OTHERS: &str = "cdi.k8s.io/";

/// The longest key that is looked at, in bytes; ours with a container's name have about 80.
const LONGEST: usize = 317;

/// The key of ours that a misspelt key was meant to be; `None` for other keys. A key that begins
/// with [`PREFIX`] is ours whatever follows: a wrong one is refused.
pub fn meant(key: &str) -> Option<String> {
    if key.starts_with(PREFIX) || key.starts_with(OTHERS) || key.len() > LONGEST {
        return None;
    }
    let lower = key.trim().to_lowercase();
    let (domain, rest) = lower.split_once('/').unwrap_or(("", &lower));
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|letter: char| !letter.is_alphanumeric());
        let words = words.filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let (domain, rest) = match (words(domain), words(rest)) {
        // Without a slash, all before the last word is the prefix: `pinfold.io.pool`.
        (domain, mut rest) if domain.is_empty() => {
            let last = rest.pop()?;
            (rest, vec![last])
        }
        both => both,
    };
    let wrong = domain.iter().map(|word| distance(word, NAME)).min()?;
    let (first, container) = rest.split_first()?;
    let nearest = KEYS.iter().min_by_key(|known| distance(first, known))?;
    let is_key = distance(first, nearest) <= MOST_WRONG.min(nearest.len() / 4);
    if wrong > MOST_WRONG || !(is_key || wrong == 0) {
        return None;
    }
    let known = if is_key { nearest } else { "pool" };
    let container = match container {
        [] => String::new(),
        words => format!(".{}", words.join("-")),
    };
    Some(format!("{PREFIX}{known}{container}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_look_like_ours() {
        for (key, expected) in [
            ("pinfold/pool", Some("pinfold.io/pool")),
            ("Pinfold.io/pool", Some("pinfold.io/pool")),
            ("PINFOLD.IO/POOL", Some("pinfold.io/pool")),
            ("pinfold.io.pool", Some("pinfold.io/pool")),
            ("pinfold.pool", Some("pinfold.io/pool")),
            ("pinfold_io_cpus", Some("pinfold.io/cpus")),
            ("io.pinfold/pool", Some("pinfold.io/pool")),
            ("pinfold.com/lists", Some("pinfold.io/lists")),
            (" pinfold.io/pool", Some("pinfold.io/pool")),
            ("pinfld.io/pool", Some("pinfold.io/pool")),
            ("pnifold.io/numa", Some("pinfold.io/numa")),
            ("pinfold/poool", Some("pinfold.io/pool")),
            ("Pinfold.io/list", Some("pinfold.io/lists")),
            ("pinfold/pool.web", Some("pinfold.io/pool.web")),
            ("pinfold/size", Some("pinfold.io/pool")),
            // Keys of ours, whatever follows the prefix.
            ("pinfold.io/pool", None),
            ("pinfold.io/poool", None),
            ("pinfold.io//pool", None),
            // Keys of others.
            ("pool", None),
            ("", None),
            ("/", None),
            ("pinfold", None),
            ("com.example.manifold/size", None),
            ("io.kubernetes.pod.name", None),
            ("cdi.k8s.io/pinfold.io_pool", None),
            ("org.opencontainers.image.version", None),
            ("unrelated.io/pool", None),
        ] {
            assert_eq!(meant(key).as_deref(), expected, "{key:?}");
        }
        assert_eq!(meant(&format!("pinfold/{}", "x".repeat(1 << 20))), None);
    }
}
