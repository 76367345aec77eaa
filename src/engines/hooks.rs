//! Writes and reads the hook files of podman and CRI-O (oci-hooks(5)).

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Engine;

/// The stages for which we have a hook file, and its name. `prestart` is an older name of
/// createRuntime: never use both.
pub const FILES: [(&str, &str); 2] = [
    ("createRuntime", "pinfold-createRuntime.json"),
    ("poststop", "pinfold-poststop.json"),
];

/// How long an engine lets a hook run, in seconds: longer than the 20 that a hook gives itself.
pub const TIMEOUT: u32 = 30;

/// The option of a hook that gives containers without a request CPUs of the default pool.
pub const DEFAULT_POOL: &str = "--default-pool";

/// Which containers a hook is run for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Whom {
    /// Those with an annotation of ours.
    #[default]
    Annotated,
    /// All: the configuration has a default pool.
    Everybody,
}

/// The arguments of the hook for a stage; the first is the name by which it is called. `options`
/// are further options for it.
pub fn arguments(stage: &str, engine: Option<Engine>, options: &[String]) -> Vec<String> {
    let engine = engine.iter().flat_map(|engine| ["--engine", engine.word()]);
    let words = ["pinfold", "hook", stage].into_iter().chain(engine);
    let words = words.chain(options.iter().map(String::as_str));
    words.map(str::to_owned).collect()
}

/// The text of the hook file for a stage. `more` are further options of the hook.
pub fn file(stage: &str, pinfold: &str, engine: Engine, whom: Whom, more: &[String]) -> String {
    let (default_pool, when) = match whom {
        Whom::Annotated => (None, json!({"annotations": {"^pinfold\\.io/": ".*"}})),
        Whom::Everybody => (Some(DEFAULT_POOL), json!({"always": true})),
    };
    let options = default_pool.map(str::to_owned).into_iter();
    let options: Vec<String> = options.chain(more.iter().cloned()).collect();
    let file = json!({
        "version": "1.0.0",
        "hook": {
            "path": pinfold,
            "args": arguments(stage, Some(engine), &options),
            "timeout": TIMEOUT,
        },
        "when": when,
        "stages": [stage],
    });
    format!("{file:#}\n")
}

/// What a hook file says, as far as we need it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HookFile {
    /// The program.
    pub hook: HookProgram,
    /// The stages at which it is run.
    #[serde(default)]
    pub stages: Vec<String>,
}

/// The program that a hook runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HookProgram {
    /// Its path.
    pub path: String,
    /// Its arguments, of which the first is the name by which it is called.
    #[serde(default)]
    pub args: Vec<String>,
    /// How long it may run, in seconds.
    pub timeout: Option<u32>,
}

impl HookFile {
    /// Parses anybody's hook file; `None` for an older form, which is not ours.
    ///
    /// # Errors
    /// It is not JSON. Engines stop at such a file.
    pub fn parse(text: &str) -> Result<Option<HookFile>> {
        let value: Value = serde_json::from_str(text).context("it is not JSON")?;
        Ok(serde_json::from_value(value).ok())
    }

    /// Does it run `pinfold hook`?
    pub fn is_ours(&self) -> bool {
        let names = [Some(&self.hook.path), self.hook.args.first()];
        let is_pinfold = |name: &&String| name.rsplit('/').next() == Some("pinfold");
        self.hook.args.get(1).is_some_and(|verb| verb == "hook")
            && names.iter().flatten().any(is_pinfold)
    }

    /// Does it see to containers without a request, too?
    pub fn has_default_pool(&self) -> bool {
        self.hook.args.iter().any(|arg| arg == DEFAULT_POOL)
    }

    /// The engine that it names.
    pub fn engine(&self) -> Option<&str> {
        self.option("--engine")
    }

    /// The value of an option in its arguments.
    pub fn option(&self, name: &str) -> Option<&str> {
        let mut args = self.hook.args.iter().skip_while(|arg| *arg != name);
        args.nth(1).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_ours_is_known_again() {
        for (stage, whom) in [
            (FILES[0].0, Whom::Annotated),
            (FILES[0].0, Whom::Everybody),
            (FILES[1].0, Whom::Everybody),
        ] {
            let text = file(stage, "/opt/bin/pinfold", Engine::Crio, whom, &[]);
            let parsed = HookFile::parse(&text).unwrap().unwrap();
            assert!(parsed.is_ours());
            assert_eq!(parsed.stages, [stage]);
            assert_eq!(parsed.engine(), Some("crio"));
            assert_eq!(parsed.hook.path, "/opt/bin/pinfold");
            let sees_all = whom == Whom::Everybody;
            assert_eq!(parsed.has_default_pool(), sees_all);
            assert_eq!(text.contains(r#""always": true"#), sees_all, "{text}");
        }
    }
}
