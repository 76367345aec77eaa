//! Edits containerd's `config.toml`: a runtime handler for its CRI plugin, in versions 1 to 4 of
//! that file (containerd: docs/man/containerd-config.toml.5.md, docs/cri/config.md).
//!
//! A file can import others. containerd 1.x takes a plugin's whole table from the last file that
//! has it, and 2.x merges them key by key. For both, the file to write to is the last one that has
//! the CRI plugin's table.

use anyhow::{Context, Result, bail, ensure};
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value};

use super::toml_text::{document, find, remove as remove_entry, table_at};
use super::{ANNOTATIONS, RUNTIME, is_shim};

use crate::refusal::Refusal;

/// The newest version of the file that is known: containerd 2.3's.
const NEWEST: i64 = 4;
/// The type of containerd's own shim for runc, and for all runtimes with runc's command line.
const RUNC_V2: &str = "io.containerd.runc.v2";
/// The CRI plugin's names, whose table has the handlers, each with the version of the file that
/// introduced it.
const PLUGINS: [(i64, &str); 3] = [
    (1, "cri"),
    (2, "io.containerd.grpc.v1.cri"),
    (3, "io.containerd.cri.v1.runtime"),
];
/// The handler of pods that name none, and its program.
const RUNC: &str = "runc";
const NOTE: &str =
    "# By `pinfold install containerd`; `pinfold uninstall containerd` takes it out.";
const RUNC_NOTE: &str =
    "# By `pinfold install containerd`: containerd 1.x has no handler runc once another is named.";
/// The text of a new file. containerd reads version 2 from 1.3 on.
const NEW_FILE: &str = "version = 2\n";

/// One configuration file.
#[derive(Debug, Clone)]
pub struct ContainerdFile {
    text: String,
    document: DocumentMut,
    /// The version in the file, or else the version of the file that imports it.
    version: i64,
}

/// A runtime handler in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handler {
    /// The runtime that it runs; empty for containerd's default.
    pub binary: String,
    /// Does it pass our annotations on, both the pod's and the container's?
    pub passes_annotations: bool,
}

impl ContainerdFile {
    /// Reads the main file, or one that a file of version `importer` imports.
    ///
    /// # Errors
    /// It is not TOML, or of an unknown version.
    pub fn parse(text: &str, importer: Option<i64>) -> Result<ContainerdFile> {
        let document = document(text)?;
        let version = match document.get("version") {
            None => importer.unwrap_or(1),
            Some(item) => item.as_integer().context("version is not a number")?,
        };
        ensure!(
            (1..=NEWEST).contains(&version),
            Refusal::new(
                format!("it is of version {version}, and versions 1 to {NEWEST} are known"),
                "add the handler by hand, or get a newer Pinfold"
            )
        );
        Ok(ContainerdFile {
            text: text.to_owned(),
            document,
            version,
        })
    }

    /// A new file.
    pub fn new() -> ContainerdFile {
        ContainerdFile::parse(NEW_FILE, None).expect("it is well-formed")
    }

    /// Its version, 1 to 4.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// The files that it imports: paths relative to its own directory, some with `*`.
    pub fn imports(&self) -> Vec<String> {
        strings(self.document.get("imports"))
    }

    /// Does it turn the CRI plugin off? docker's packages do that.
    pub fn disables_cri(&self) -> bool {
        let disabled = strings(self.document.get("disabled_plugins"));
        let names = PLUGINS.map(|(_, name)| name);
        disabled.iter().any(|name| names.contains(&name.as_str()))
    }

    /// Does it have the CRI plugin's table?
    pub fn has_cri(&self) -> bool {
        find(self.document.as_table(), &["plugins", self.plugin()]).is_some()
    }

    /// Our handler; `None` if no handler has our name, or the one that has runs another program.
    pub fn ours(&self) -> Option<Handler> {
        self.handler(RUNTIME)
            .filter(|handler| is_shim(&handler.binary))
    }

    /// Does somebody else's handler have our name?
    pub fn has_namesake(&self) -> bool {
        self.handler_table(RUNTIME).is_some() && self.ours().is_none()
    }

    /// Do two files have the same settings, however they are written?
    pub fn says_the_same_as(&self, other: &ContainerdFile) -> bool {
        let table = |file: &ContainerdFile| toml::from_str::<toml::Table>(&file.text).ok();
        table(self) == table(other)
    }

    /// What is at a path; `None` where the file does not say.
    pub(super) fn setting(&self, path: &[&str]) -> Option<&Item> {
        find(self.document.as_table(), path)
    }

    /// The handler of this name.
    pub fn handler(&self, name: &str) -> Option<Handler> {
        let table = self.handler_table(name)?;
        let passes = |key| {
            strings(table.get(key))
                .iter()
                .any(|glob| glob == ANNOTATIONS)
        };
        let binary = find(table, &["options", "BinaryName"]).and_then(Item::as_str);
        Some(Handler {
            binary: binary.unwrap_or_default().to_owned(),
            passes_annotations: passes("pod_annotations") && passes("container_annotations"),
        })
    }

    /// The handler of containers that name none; `None` if the file does not say.
    pub fn default_handler(&self) -> Option<&str> {
        let path = [
            "plugins",
            self.plugin(),
            "containerd",
            "default_runtime_name",
        ];
        find(self.document.as_table(), &path).and_then(Item::as_str)
    }

    /// The file's text with a block added at its end.
    fn with(&self, block: &str) -> String {
        let text = &self.text;
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        format!("{text}{end}{block}")
    }

    /// Is the edited text TOML with the same settings, except for our handler, and runc's if that
    /// is missing in either text?
    fn is_kept_by(&self, edited: &str) -> bool {
        let Ok(edited) = ContainerdFile::parse(edited, Some(self.version)) else {
            return false;
        };
        let mut names = vec![RUNTIME];
        if [self, &edited]
            .iter()
            .any(|file| file.handler_table("runc").is_none())
        {
            names.push("runc");
        }
        let without = |file: &ContainerdFile| {
            let mut table: toml::Table = toml::from_str(&file.text).ok()?;
            prune(&mut table, &self.handlers_path(), &names);
            Some(table)
        };
        without(self) == without(&edited)
    }

    fn plugin(&self) -> &'static str {
        let newest_first = PLUGINS.iter().rev();
        let of_version = newest_first
            .clone()
            .find(|(version, _)| *version <= self.version);
        of_version.map_or(PLUGINS[0].1, |(_, name)| name)
    }

    fn handlers_path(&self) -> [&'static str; 4] {
        ["plugins", self.plugin(), "containerd", "runtimes"]
    }

    fn handler_table(&self, name: &str) -> Option<&dyn TableLike> {
        let handlers = find(self.document.as_table(), &self.handlers_path())?;
        handlers.as_table_like()?.get(name)?.as_table_like()
    }
}

impl Default for ContainerdFile {
    fn default() -> Self {
        ContainerdFile::new()
    }
}

/// The index of the file that counts for the CRI plugin. The files are in the order in which
/// containerd reads them.
pub fn deciding(files: &[ContainerdFile]) -> usize {
    files.iter().rposition(ContainerdFile::has_cri).unwrap_or(0)
}

/// The handler from which ours is copied: runc's, or else the default one, if its type is
/// [`RUNC_V2`].
fn model(files: &[ContainerdFile]) -> Option<&dyn TableLike> {
    let default = files.iter().rev().find_map(ContainerdFile::default_handler);
    let names = ["runc"]
        .into_iter()
        .chain(default)
        .filter(|name| *name != RUNTIME);
    let mut tables = names.flat_map(|name| {
        files
            .iter()
            .rev()
            .filter_map(move |file| file.handler_table(name))
    });
    tables.find(|table| table.get("runtime_type").and_then(Item::as_str) == Some(RUNC_V2))
}

/// What containerd would run without our handler for a pod that names none: a name or a path.
/// `None` if that is not a runtime of runc's kind.
pub fn runtime_without_ours(files: &[ContainerdFile]) -> Option<String> {
    let latest = |name: &str| {
        let mut newest_first = files.iter().rev();
        newest_first.find_map(|file| file.handler_table(name))
    };
    let default = files.iter().rev().find_map(ContainerdFile::default_handler);
    let name = default.filter(|name| *name != RUNTIME).unwrap_or(RUNC);
    let Some(table) = latest(name) else {
        return (name == RUNC).then(|| RUNC.to_owned());
    };
    let kind = table.get("runtime_type").and_then(Item::as_str);
    let binary = find(table, &["options", "BinaryName"]).and_then(Item::as_str);
    let binary = binary.filter(|binary| !binary.is_empty()).unwrap_or(RUNC);
    (kind.is_none_or(|kind| kind == RUNC_V2)).then(|| binary.to_owned())
}

/// Adds our handler to the [`deciding`] file, and returns its text. The handler is like runc's,
/// except for the program and the annotations.
///
/// # Errors
/// Something else is where a table should be, or the file has a form that cannot be edited without
/// changing more.
pub fn add(files: &[ContainerdFile], shim: &str) -> Result<String> {
    let file = &files[deciding(files)];
    if file.handler_table(RUNTIME).is_none() {
        let text = file.with(&block(file, model(files), shim)?);
        // If the handlers are an inline table, nothing can be added after it.
        if file.is_kept_by(&text) {
            return Ok(text);
        }
    }
    let mut after = file.clone();
    let handlers = table_at(after.document.as_table_mut(), &file.handlers_path())?;
    if file.has_namesake() {
        handlers.remove(RUNTIME);
    }
    let is_new = handlers.get(RUNTIME).is_none();
    if is_new {
        handlers.insert(RUNTIME, Item::Table(handler_like(model(files))));
    }
    // A handler that is copied from another can be complete already.
    if !complete(table_at(handlers, &[RUNTIME])?, shim)? && !is_new {
        return Ok(file.text.clone());
    }
    let text = after.document.to_string();
    ensure!(
        file.is_kept_by(&text),
        Refusal::new(
            "it has a form that cannot be edited without changing more",
            format!("add the handler {RUNTIME} by hand")
        )
    );
    Ok(text)
}

/// Removes our handler, and puts back the one that had our name in `original`, the file before
/// ours. `None` if the file does not have our handler.
///
/// # Errors
/// Ours is the handler of containers that name none: without it containerd would not start them.
pub fn remove(file: &ContainerdFile, original: Option<&ContainerdFile>) -> Result<Option<String>> {
    if file.ours().is_none() {
        return Ok(None);
    }
    let path = file.handlers_path();
    let namesake = original.filter(|original| original.has_namesake());
    let namesake = namesake.and_then(|original| {
        let handlers = find(original.document.as_table(), &original.handlers_path())?;
        handlers.get(RUNTIME).cloned()
    });
    if let Some(namesake) = namesake {
        let mut after = file.clone();
        table_at(after.document.as_table_mut(), &path)?.insert(RUNTIME, namesake);
        return Ok(Some(after.document.to_string()));
    }
    if file.default_handler() == Some(RUNTIME) {
        bail!(Refusal::new(
            format!("default_runtime_name is {RUNTIME}"),
            "name another one there first"
        ));
    }
    // Somebody's comment can begin like our note: make sure that our handler was cut out.
    let is_without = |cut: &str| {
        let cut = ContainerdFile::parse(cut, Some(file.version));
        cut.is_ok_and(|cut| cut.handler_table(RUNTIME).is_none())
    };
    let mut cuts = without_block(&file.text);
    if let Some(cut) = cuts.find(|cut| is_without(cut) && file.is_kept_by(cut)) {
        return Ok(Some(cut));
    }
    let mut after = file.clone();
    let [plugins, plugin, containerd, runtimes] = path;
    let path = [plugins, plugin, containerd, runtimes, RUNTIME];
    remove_entry(after.document.as_table_mut(), &path);
    Ok(Some(after.document.to_string()))
}

/// The block that is added to the end of a file: our handler, and runc's if that would be lost.
fn block(file: &ContainerdFile, model: Option<&dyn TableLike>, shim: &str) -> Result<String> {
    let mut block = DocumentMut::new();
    let handlers = table_at(block.as_table_mut(), &file.handlers_path())?;
    let there = find(file.document.as_table(), &file.handlers_path()).and_then(Item::as_table_like);
    if there.is_none_or(TableLike::is_empty) && file.version < 3 {
        let mut runc = noted_table(RUNC_NOTE);
        set(&mut runc, "runtime_type", RUNC_V2.into());
        handlers.insert("runc", Item::Table(runc));
    }
    handlers.insert(RUNTIME, Item::Table(handler_like(model)));
    complete(table_at(handlers, &[RUNTIME])?, shim)?;
    // Quote the plugin's name as the file does.
    let [quoted, literal] = ['"', '\''].map(|quote| format!("{quote}{}{quote}", file.plugin()));
    let block = block.to_string();
    Ok(if file.text.contains(&literal) {
        block.replace(&quoted, &literal)
    } else {
        block
    })
}

/// Cuts out the block, even if somebody edited it: from one of our notes to the next comment or
/// table that is not ours. There is a text for each note, in the order of the notes.
fn without_block(text: &str) -> impl Iterator<Item = String> {
    let mut starts: Vec<usize> = [RUNC_NOTE, NOTE]
        .iter()
        .flat_map(|note| text.match_indices(note))
        .map(|(start, _)| start)
        .collect();
    starts.sort_unstable();
    starts
        .into_iter()
        .map(|start| without_block_at(text, start))
}

fn without_block_at(text: &str, start: usize) -> String {
    let ours = |line: &str| {
        let line = line.trim();
        let is_header = line.starts_with('[') && line.contains(&format!("runtimes.{RUNTIME}"));
        let is_runc = line.starts_with('[') && line.ends_with("runtimes.runc]");
        is_header || is_runc || line == NOTE || line == RUNC_NOTE || !line.starts_with(['[', '#'])
    };
    let lines = text[start..]
        .split_inclusive('\n')
        .take_while(|line| ours(line));
    let end = start + lines.map(str::len).sum::<usize>();
    let before = text[..start].trim_end_matches('\n');
    let rest = text[end..].trim_start_matches('\n');
    match (before, rest) {
        ("", rest) => rest.to_owned(),
        (before, "") => format!("{before}\n"),
        (before, rest) => format!("{before}\n\n{rest}"),
    }
}

/// A new handler with the keys and values of another, but without its comments.
fn handler_like(model: Option<&dyn TableLike>) -> Table {
    let mut handler = noted_table(NOTE);
    for (key, item) in model.iter().flat_map(|table| table.iter()) {
        if let Some(options) = item.as_table_like() {
            let mut table = Table::new();
            for (key, item) in options.iter() {
                if let Some(value) = item.as_value() {
                    set(&mut table, key, value.clone());
                }
            }
            handler.insert(key, Item::Table(table));
        } else if let Some(value) = item.as_value() {
            set(&mut handler, key, value.clone());
        }
    }
    handler
}

/// Sets what makes a handler ours, and leaves the rest of it alone. Returns whether that changed
/// anything.
fn complete(handler: &mut dyn TableLike, shim: &str) -> Result<bool> {
    let mut is_changed = set(handler, "runtime_type", RUNC_V2.into());
    for key in ["pod_annotations", "container_annotations"] {
        let mut globs = strings(handler.get(key));
        if !globs.iter().any(|glob| glob == ANNOTATIONS) {
            globs.push(ANNOTATIONS.to_owned());
            is_changed |= set(handler, key, Value::Array(Array::from_iter(globs)));
        }
    }
    if handler.get("options").is_none() {
        handler.insert("options", Item::Table(Table::new()));
    }
    Ok(is_changed | set(table_at(handler, &["options"])?, "BinaryName", shim.into()))
}

fn noted_table(note: &str) -> Table {
    let mut table = Table::new();
    table.decor_mut().set_prefix(format!("\n{note}\n"));
    table
}

/// Sets a key, and keeps what is written around its value. `false` if it has this value already.
fn set(table: &mut dyn TableLike, key: &str, mut value: Value) -> bool {
    value.decor_mut().clear();
    let Some(before) = table.get_mut(key).and_then(Item::as_value_mut) else {
        table.insert(key, Item::Value(value));
        return true;
    };
    let is_same = match (before.as_str(), value.as_str()) {
        (Some(before), Some(value)) => before == value,
        _ => before.to_string().trim() == value.to_string(),
    };
    if !is_same {
        *value.decor_mut() = before.decor().clone();
        *before = value;
    }
    !is_same
}

pub(super) fn strings(item: Option<&Item>) -> Vec<String> {
    let array = item.and_then(Item::as_array);
    let texts = array.iter().flat_map(|array| array.iter());
    texts
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

/// Removes names from the table at the end of a path, and tables on the way that are empty then.
fn prune(table: &mut toml::Table, path: &[&str], names: &[&str]) {
    let Some((first, rest)) = path.split_first() else {
        table.retain(|key, _| !names.contains(&key));
        return;
    };
    if let Some(toml::Value::Table(inner)) = table.get_mut(*first) {
        prune(inner, rest, names);
        if inner.is_empty() {
            table.remove(*first);
        }
    }
}
