//! The schema of each document that `--json` prints: `docs/json-schema`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::{Command, CommandFactory};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::*;
use crate::files::{self, Durability};

/// The schemas by the words of the verb; `failure` is that of what any verb writes to standard
/// error.
fn schemas() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        schema::<apply::Document>("apply"),
        schema::<check::Document>("check"),
        schema::<describe::Document>("describe"),
        schema::<explain::Document>("explain"),
        schema::<Failure>("failure"),
        schema::<noise::Document>("noise"),
        schema::<pool::Document>("pool show"),
        schema::<reconcile::Document>("reconcile"),
        schema::<stats::Document>("stats"),
        schema::<status::Document>("status"),
        schema::<topology::Document>("topology"),
        schema::<usage::Document>("usage"),
        schema::<why::Document>("why"),
    ])
}

fn schema<T: JsonSchema>(verb: &'static str) -> (&'static str, Value) {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), format!("pinfold {verb}").into());
    (verb, schema.into())
}

/// Made anew by `PINFOLD_TEST_WRITE=1 cargo test --lib schemas`.
#[test]
fn the_schemas_in_docs_are_those_of_the_types() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = std::fs::read_to_string(docs.join("json.md")).unwrap();
    let mut files = BTreeSet::new();
    for (verb, schema) in schemas() {
        let name = format!("{}.json", verb.replace(' ', "-"));
        let (path, text) = (
            docs.join("json-schema").join(&name),
            format!("{schema:#}\n"),
        );
        if std::env::var_os("PINFOLD_TEST_WRITE").is_some() {
            files::replace(&path, text.as_bytes(), 0o644, Durability::Crash).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == text,
            "{name}: PINFOLD_TEST_WRITE=1 cargo test --lib schemas"
        );
        assert!(page.contains(&format!("(json-schema/{name})")), "{name}");
        files.insert(name);
    }
    let there = std::fs::read_dir(docs.join("json-schema")).unwrap();
    let there = there.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), files);
}

#[test]
fn every_verb_that_prints_json_has_a_schema() {
    fn add(found: &mut BTreeSet<String>, command: &Command, above: &str) {
        for verb in command.get_subcommands() {
            let name = format!("{above}{}", verb.get_name());
            if verb
                .get_arguments()
                .any(|argument| argument.get_id() == "json")
            {
                found.insert(name.clone());
            }
            add(found, verb, &format!("{name} "));
        }
    }
    let mut verbs = BTreeSet::from(["failure".to_owned()]);
    add(&mut verbs, &Cli::command(), "");
    let schemas: BTreeSet<String> = schemas().into_keys().map(str::to_owned).collect();
    assert_eq!(verbs, schemas);
}

#[test]
fn every_field_and_every_word_is_described() {
    fn look(at: &Value, path: &str) {
        let described = |value: &Value| value["description"].is_string();
        for (name, field) in at["properties"].as_object().into_iter().flatten() {
            assert!(described(field), "{path}: {name}");
        }
        assert!(at.get("const").is_none() || described(at), "{path}");
        match at {
            Value::Object(parts) => parts
                .iter()
                .for_each(|(key, value)| look(value, &format!("{path}/{key}"))),
            Value::Array(parts) => parts.iter().for_each(|value| look(value, path)),
            _ => {}
        }
    }
    for (verb, schema) in schemas() {
        look(&schema, verb);
    }
}
