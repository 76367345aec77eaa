//! A test before it runs: its name, what it needs, and its body.

use crate::world::World;
use libtest_mimic::Trial;
use std::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Root,
    Cpus(usize),
    Program(&'static str),
}

impl Need {
    fn is_met(self) -> bool {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        match self {
            Need::Root => nix::unistd::geteuid().is_root(),
            Need::Cpus(count) => cpus() >= count,
            Need::Program(name) => Command::new(name).arg("--version").output().is_ok(),
        }
    }
}

pub(crate) struct Case {
    name: String,
    needs: Vec<Need>,
    body: fn(&World),
}

pub(crate) fn plain(name: &str, needs: &[Need], body: fn(&World)) -> Case {
    Case {
        name: name.into(),
        needs: needs.into(),
        body,
    }
}

impl Case {
    /// Its name with what is missing, where it cannot run here.
    pub(crate) fn skipped(&self) -> Option<String> {
        let missing: Vec<&Need> = self.needs.iter().filter(|need| !need.is_met()).collect();
        (!missing.is_empty()).then(|| format!("{} [needs {missing:?}]", self.name))
    }

    pub(crate) fn into_trial(self) -> Trial {
        let skipped = self.skipped();
        let name = skipped.clone().unwrap_or_else(|| self.name.clone());
        let body = self.body;
        let trial = Trial::test(name, move || {
            body(&World::new());
            Ok(())
        });
        trial.with_ignored_flag(skipped.is_some())
    }
}
