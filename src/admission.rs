//! Who may use which pool: applies the configuration's rules, for the hook and the shim alike.

use anyhow::{Result, bail, ensure};

use crate::config::{Door, PoolTable};
use crate::engines::Engine;
use crate::refusal::{Reason, Refusal};
use crate::request;
use crate::text::Shown;

/// The origin of a request.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The way by which the pool is requested.
    pub door: Door,
    /// The engine that runs the container; only its marks count.
    pub engine: Option<Engine>,
}

impl Caller {
    /// Checks the pool's rules. `annotation` returns the value of the container's annotation with a
    /// key.
    pub fn may_use(
        self,
        rules: Option<&PoolTable>,
        annotation: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<()> {
        let Some(rules) = rules else {
            return Ok(());
        };
        if let Some(doors) = &rules.doors {
            self.may_come_by(doors)?;
        }
        if let Some(allowed) = &rules.namespaces {
            self.may_come_from(allowed, annotation)?;
        }
        Ok(())
    }

    fn may_come_by(self, doors: &[Door]) -> Result<()> {
        let words: Vec<&str> = doors.iter().map(|door| door.word()).collect();
        ensure!(
            doors.contains(&self.door),
            kept_out(
                format!(
                    "it may not be asked for by {}: doors in the configuration has {}",
                    self.door.word(),
                    match words.as_slice() {
                        [] => "none".to_owned(),
                        words => words.join(", "),
                    }
                ),
                format!(
                    "ask for another pool, or have {} added there",
                    self.door.word()
                )
            )
        );
        Ok(())
    }

    /// Checks the container's namespace, which its engine's own mark gives.
    fn may_come_from(
        self,
        allowed: &[String],
        annotation: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<()> {
        let mark = match self.engine {
            Some(Engine::Containerd) => request::CONTAINERD_NAMESPACE,
            Some(Engine::Crio) => request::CRIO_NAMESPACE,
            Some(Engine::Podman | Engine::Docker) => {
                bail!(kept_out(
                    "only pods of Kubernetes may use it",
                    "ask for another pool"
                ))
            }
            None => bail!(kept_out(
                "only pods of some namespaces may use it, and nothing says which engine runs it",
                match self.door {
                    Door::Shim => "name that as runtime.engine in the configuration",
                    Door::Annotation | Door::Cdi =>
                        "add --engine to the arguments of the hook, as `pinfold install` does",
                }
            )),
        };
        match annotation(mark)? {
            Some(namespace) if allowed.contains(&namespace) => Ok(()),
            Some(namespace) => bail!(kept_out(
                format!("its namespace {} may not use it", Shown(&namespace)),
                "ask for another pool, or have it added to namespaces in the configuration"
            )),
            None => bail!(kept_out(
                format!(
                    "it has no mark {mark} of its namespace, and only pods of some namespaces may \
                     use it"
                ),
                "ask for another pool"
            )),
        }
    }
}

fn kept_out(what: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal::new(what, remedy).because(Reason::Rules)
}
