//! Edits docker's `daemon.json`: a runtime, and CDI devices (dockerd(8)).

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};

use super::{RUNTIME, is_shim};

use crate::refusal::{OrRefuse, Refusal};

/// The mark with which Windows' editors begin a file.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// The indentation of a new file.
const INDENT: &str = "  ";

/// The runtime of containers that name none, if the file does not say (dockerd(8),
/// `--default-runtime`).
const DEFAULT: &str = "runc";

/// What a file says of our runtime, and of CDI devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// The program of our runtime; `None` if the file does not have it.
    pub shim: Option<String>,
    /// The program of somebody else's runtime with our name; empty if it names none.
    pub namesake: Option<String>,
    /// Are CDI devices turned on? `None` if the file does not say: then docker 25 to 28.1 has them
    /// off.
    pub cdi: Option<bool>,
}

/// Reads what a file says of our runtime, and of CDI devices.
///
/// # Errors
/// It is not JSON, or not an object.
pub fn read(text: &str) -> Result<Wiring> {
    let daemon = parse(text)?;
    let runtime = daemon.get("runtimes").and_then(|all| all.get(RUNTIME));
    let path = |runtime: &Value| {
        let path = runtime.get("path").and_then(Value::as_str);
        path.unwrap_or_default().to_owned()
    };
    let (shim, namesake) = match runtime.map(path) {
        Some(path) if is_shim(&path) => (Some(path), None),
        other => (None, other),
    };
    let cdi = daemon
        .get("features")
        .and_then(|all| all.get("cdi")?.as_bool());
    Ok(Wiring {
        shim,
        namesake,
        cdi,
    })
}

/// Is a file without any settings?
///
/// # Errors
/// It is not JSON, or not an object.
pub fn is_empty(text: &str) -> Result<bool> {
    Ok(parse(text)?.is_empty())
}

/// What docker would run without our runtime for a container that names none: a name or a path.
///
/// # Errors
/// It is not JSON, or not an object.
pub fn runtime_without_ours(text: &str) -> Result<String> {
    let daemon = parse(text)?;
    let named = daemon.get("default-runtime").and_then(Value::as_str);
    let name = named.filter(|name| *name != RUNTIME).unwrap_or(DEFAULT);
    let path = daemon
        .get("runtimes")
        .and_then(|all| all.get(name)?.get("path")?.as_str());
    Ok(path.unwrap_or(name).to_owned())
}

/// The directory in which docker keeps the state of what runs; `None` if the file does not say, or
/// is not a JSON object.
pub fn exec_root(text: &str) -> Option<String> {
    let daemon = parse(text).ok()?;
    daemon.get("exec-root")?.as_str().map(str::to_owned)
}

/// Adds our runtime to a file, and CDI devices if it does not say whether they are on.
///
/// docker 25 to 28.1 has them off by default, later versions have them on, and earlier ones ignore
/// the setting.
///
/// # Errors
/// It is not JSON, or has something else where an object should be: that is never overwritten.
pub fn add(text: &str, shim: &str) -> Result<String> {
    let mut daemon = parse(text)?;
    let before = daemon.clone();
    let runtimes = object_in(&mut daemon, "runtimes")?;
    if read(text)?.namesake.is_some() {
        runtimes.insert(RUNTIME.to_owned(), json!({}));
    }
    let runtime = object_in(runtimes, RUNTIME)?;
    runtime.insert("path".to_owned(), json!(shim));
    object_in(&mut daemon, "features")?
        .entry("cdi")
        .or_insert(json!(true));
    // A file that has it all already stays as it is, to the last blank.
    if daemon == before {
        Ok(text.to_owned())
    } else {
        print(&daemon, text)
    }
}

/// Removes our runtime, and CDI devices if `original`, the file before ours, did not have them. A
/// runtime that had our name in `original` is put back. If nothing but the settings of `original`
/// is left, the result is `original` to the last byte. `None` if the file has nothing of ours.
///
/// # Errors
/// It is not JSON, or ours is the default runtime: without it docker would not start.
pub fn remove(text: &str, original: Option<&str>) -> Result<Option<String>> {
    let mut daemon = parse(text)?;
    if daemon.get("default-runtime") == Some(&json!(RUNTIME)) {
        bail!(Refusal::new(
            format!("default-runtime is {RUNTIME}"),
            "name another one there first"
        ));
    }
    let original_text = original.unwrap_or_default();
    let original = parse(original_text)?;
    let had = |object: &str, key: &str| {
        original
            .get(object)
            .is_some_and(|inner| inner.get(key).is_some())
    };
    if read(text)?.shim.is_none() {
        return Ok(None);
    }
    let namesake = original.get("runtimes").and_then(|all| all.get(RUNTIME));
    match namesake {
        Some(namesake) => {
            let runtimes = object_in(&mut daemon, "runtimes")?;
            runtimes.insert(RUNTIME.to_owned(), namesake.clone());
        }
        None => drop(remove_key(&mut daemon, &original, "runtimes", RUNTIME)),
    }
    if !had("features", "cdi") {
        remove_key(&mut daemon, &original, "features", "cdi");
    }
    match daemon == original {
        true => Ok(Some(original_text.to_owned())),
        false => print(&daemon, text).map(Some),
    }
}

/// Removes a key of an inner object, and that object if it is empty then and `original` does not
/// have it. `false` if there is no such key.
fn remove_key(
    daemon: &mut Map<String, Value>,
    original: &Map<String, Value>,
    object: &str,
    key: &str,
) -> bool {
    let Some(Value::Object(inner)) = daemon.get_mut(object) else {
        return false;
    };
    // The others keep their order.
    let removed = inner.shift_remove(key).is_some();
    if removed && inner.is_empty() && !original.contains_key(object) {
        daemon.shift_remove(object);
    }
    removed
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    // dockerd takes an empty file, or `null`, for one without settings, even after a byte order
    // mark (moby: daemon/config/config.go, `getConflictFreeConfiguration`).
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    let parsed = serde_json::from_str(text).or_refuse(|| {
        Refusal::new(
            "it is not JSON, so dockerd would not start with it either",
            "mend it first",
        )
    });
    match parsed? {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(Map::new()),
        _ => bail!(Refusal::new("it is not a JSON object", "mend it first")),
    }
}

fn object_in<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
) -> Result<&'a mut Map<String, Value>> {
    let value = parent.entry(key).or_insert_with(|| json!({}));
    // To dockerd, null is the same as a missing key.
    if value.is_null() {
        *value = json!({});
    }
    value
        .as_object_mut()
        .with_context(|| format!("{key} is not a JSON object: mend it first"))
}

/// Prints the settings with the indentation, the byte order mark and the end of the former text.
fn print(daemon: &Map<String, Value>, before: &str) -> Result<String> {
    let indented = before.lines().find(|line| line.starts_with([' ', '\t']));
    // JSON has no other blanks (RFC 8259, section 2).
    let is_white = |letter| [' ', '\t'].contains(&letter);
    let blanks = |line: &str| line.len() - line.trim_start_matches(is_white).len();
    let indent = indented.map_or(INDENT, |line| &line[..blanks(line)]);
    let mark = before
        .strip_prefix(BYTE_ORDER_MARK)
        .map(|_| BYTE_ORDER_MARK);
    let mut out = mark.map(String::from).unwrap_or_default().into_bytes();
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    daemon.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    let mut text = String::from_utf8(out)?;
    if before.is_empty() || before.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_blanks_is_one_without_settings() {
        for blank in ["", "\n", "\t\u{b}\n", " \u{a0}\n"] {
            let after = add(blank, "/bin/pinfold-runtime").unwrap();
            assert_eq!(
                read(&after).unwrap().shim.as_deref(),
                Some("/bin/pinfold-runtime"),
                "{blank:?}"
            );
        }
    }

    #[test]
    fn other_keys_their_order_and_the_indentation_stay() {
        let before = "{\n\t\"z\": 1,\n\t\"a\": \"x\"\n}\n";
        let after = add(before, "/s/pinfold-runtime").unwrap();
        assert!(
            after
                .starts_with("{\n\t\"z\": 1,\n\t\"a\": \"x\",\n\t\"runtimes\": {\n\t\t\"pinfold\"")
        );
        assert_eq!(add(&after, "/s/pinfold-runtime").unwrap(), after);
        assert_eq!(remove(&after, Some(before)).unwrap().unwrap(), before);
        assert_eq!(remove(before, None).unwrap(), None);
    }

    #[test]
    fn what_is_there_counts() {
        for (before, has) in [
            ("", "\"cdi\": true"),
            (r#"{"features":{"cdi":false}}"#, "\"cdi\": false"),
            (
                r#"{"runtimes":{"pinfold":{
                    "path":"/old/pinfold-runtime","runtimeArgs":["--debug"]}}}"#,
                "--debug",
            ),
        ] {
            let after = add(before, "/s/pinfold-runtime").unwrap();
            assert!(after.contains(has), "{after}");
            assert_eq!(
                read(&after).unwrap().shim.as_deref(),
                Some("/s/pinfold-runtime")
            );
        }
        let kept = r#"{"features":{"cdi":true},"runtimes":{}}"#;
        let after = remove(&add(kept, "/s/pinfold-runtime").unwrap(), Some(kept))
            .unwrap()
            .unwrap();
        assert_eq!(parse(&after).unwrap(), parse(kept).unwrap());
    }

    #[test]
    fn what_docker_runs_without_ours_follows_its_file() {
        let crun = r#"{"default-runtime":"crun","runtimes":{"crun":{"path":"/usr/bin/crun"}}}"#;
        for (text, expected) in [
            ("", "runc"),
            (r#"{"default-runtime":"pinfold"}"#, "runc"),
            (crun, "/usr/bin/crun"),
            (r#"{"default-runtime":"crun"}"#, "crun"),
            (r#"{"runtimes":{"crun":{"path":"/usr/bin/crun"}}}"#, "runc"),
        ] {
            assert_eq!(runtime_without_ours(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_dockerd_takes_is_taken_and_comes_back() {
        for before in [
            "",
            " \n",
            "null",
            "null\n",
            "\u{feff}",
            "\u{feff}{\n    \"debug\": true\n}\n",
            "\u{feff}null",
            r#"{"runtimes":null,"features":null}"#,
            r#"{"runtimes":{"pinfold":{"path":"/opt/other","runtimeArgs":["--x"]}}}"#,
            r#"{"runtimes":{"pinfold":{"runtimeType":"io.containerd.other.v1"},"a":{}}}"#,
        ] {
            let after = add(before, "/s/pinfold-runtime").unwrap();
            let begins = |text: &str| text.starts_with(BYTE_ORDER_MARK);
            assert_eq!(begins(&after), begins(before), "{before:?}");
            assert!(
                !after.contains("--x") && !after.contains("runtimeType"),
                "{after}"
            );
            let wiring = read(&after).unwrap();
            assert_eq!(wiring.shim.as_deref(), Some("/s/pinfold-runtime"));
            assert_eq!(wiring.namesake, None);
            let back = |text: &str| remove(text, Some(before)).unwrap().unwrap();
            if !before.contains("runtimes\":null") {
                assert_eq!(back(&after), before);
                // Somebody has only changed the layout.
                let object = parse(&after).unwrap();
                assert_eq!(back(&serde_json::to_string(&object).unwrap()), before);
            }
            // Somebody has added something else: that stays, and the runtime that had our name is
            // back.
            let mut object = parse(&after).unwrap();
            object.insert("ipv6".into(), json!(true));
            let left = parse(&back(&serde_json::to_string(&object).unwrap())).unwrap();
            assert_eq!(left["ipv6"], true);
            let namesake =
                |object: &Map<String, Value>| object.get("runtimes")?.get(RUNTIME).cloned();
            assert_eq!(namesake(&left), namesake(&parse(before).unwrap()));
        }
        let namesake = r#"{"runtimes":{"pinfold":{"path":"/opt/other"}}}"#;
        assert_eq!(
            read(namesake).unwrap().namesake.as_deref(),
            Some("/opt/other")
        );
        assert_eq!(remove(namesake, None).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_merged_is_refused() {
        for text in [
            "{",
            "[]",
            "{\"a\":1} x",
            "{\"runtimes\":[]}",
            "{\"features\":1}",
            "# {}\n{}",
            "{\"a\":1,}",
        ] {
            assert!(add(text, "/s/pinfold-runtime").is_err(), "{text}");
        }
        assert!(
            remove(
                r#"{"default-runtime":"pinfold",
                    "runtimes":{"pinfold":{"path":"/s/pinfold-runtime"}}}"#,
                None
            )
            .is_err()
        );
    }
}
