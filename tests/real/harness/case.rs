//! A test before it runs: its name, what it needs, and its body.

use crate::needs::Need;
use crate::report;
use crate::world::World;
use libtest_mimic::{Arguments, Trial};
use std::time::{Duration, Instant};

/// From this on a test's duration is printed.
const SLOW: Duration = Duration::from_secs(5);

/// What a test runs its containers with.
pub(crate) trait Means: Copy + std::fmt::Display + Send + 'static {
    fn needs(self) -> Vec<Need>;

    fn columns(self) -> Columns;
}

/// Where the test belongs in the table of what is supported.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    pub(crate) engine: &'static str,
    pub(crate) runtime: &'static str,
    pub(crate) door: &'static str,
    pub(crate) driver: &'static str,
}

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) columns: Option<Columns>,
    needs: Vec<Need>,
    body: Box<dyn Fn(&World) + Send>,
}

/// One test that needs no engine.
pub(crate) fn plain(name: &str, needs: &[Need], body: fn(&World)) -> Case {
    Case {
        name: name.into(),
        columns: None,
        needs: needs.into(),
        body: Box::new(body),
    }
}

/// The same test with each of the engines.
pub(crate) fn each<M: Means>(
    engines: Vec<M>,
    name: &str,
    needs: &[Need],
    body: fn(&World, M),
) -> Vec<Case> {
    let case = |engine: M| Case {
        name: format!("{name}::{engine}"),
        columns: Some(engine.columns()),
        needs: [engine.needs(), needs.into()].concat(),
        body: Box::new(move |world: &World| body(world, engine)),
    };
    engines.into_iter().map(case).collect()
}

impl Case {
    /// What it needs and this machine has not.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.needs.iter().filter(|need| !need.is_met());
        missing.map(Need::to_string).collect()
    }

    /// Its name with what is missing, where it cannot run here.
    pub(crate) fn skipped(&self) -> Option<String> {
        let missing = self.missing();
        (!missing.is_empty()).then(|| format!("{} [needs {}]", self.name, missing.join(", ")))
    }

    /// Whether the command line's filters choose it.
    pub(crate) fn is_chosen(&self, arguments: &Arguments) -> bool {
        let name = self.skipped().unwrap_or_else(|| self.name.clone());
        let fits = |filter: &String| {
            if arguments.exact {
                name == *filter
            } else {
                name.contains(filter.as_str())
            }
        };
        arguments.filter.as_ref().is_none_or(fits) && !arguments.skip.iter().any(fits)
    }

    pub(crate) fn into_trial(self) -> Trial {
        let skipped = self.skipped();
        let name = skipped.clone().unwrap_or_else(|| self.name.clone());
        let trial = Trial::test(name, move || {
            let started = Instant::now();
            let record = report::Record::begin(&self);
            let world = World::new();
            (self.body)(&world);
            world.assert_sound("at the end");
            drop(world);
            record.passed();
            if started.elapsed() > SLOW {
                println!(
                    "slow: {} took {:.1} s",
                    self.name,
                    started.elapsed().as_secs_f32()
                );
            }
            Ok(())
        });
        trial.with_ignored_flag(skipped.is_some())
    }
}
