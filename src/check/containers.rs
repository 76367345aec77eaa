//! The running containers: whether those that ask for CPUs have some, and who else was told to run
//! on the CPUs of exclusive pools.

use std::collections::BTreeMap;

use nix::unistd::geteuid;

use super::{Finding, Report, Scope, hooks};
use crate::cgroup::{self, cpuset};
use crate::containers::{self, Container, FoundContainers, Starter};
use crate::cpulist::CpuSet;
use crate::engines::{Engine, RUNTIME, SHIM, docker};
use crate::host::Host;
use crate::install::{self, Place};
use crate::outside;
use crate::placement::{
    Lack, Neighbour, Owner, Site, Survey, SurveyedPool, labels_meant, neighbours, unpinned,
};
use crate::pools::{Kind, PoolDirectory};
use crate::request::PREFIX;
use crate::text::Shown;

/// The most groups that are named: a node can have a hundred that all have the same CPUs.
const MOST_NAMED: usize = 16;

/// A list of an exclusive pool, whose CPUs are kept for one owner.
#[derive(Debug, Clone)]
pub struct KeptCpus {
    /// The CPUs of the list.
    pub cpus: CpuSet,
    /// The pool's name.
    pub pool: String,
    /// The present owner of the list.
    pub owner: Option<String>,
}

/// The containers that run on a machine, as [`containers::running`] finds them. docker's are looked
/// for where its configuration puts them.
pub fn running(host: &Host) -> FoundContainers {
    let text = install::daemon_json(&Place::default_on(host));
    let exec_root = text.ok().and_then(|(_, text)| docker::exec_root(&text));
    containers::running(host, exec_root.as_deref())
}

pub(super) fn check(scope: &Scope<'_>, report: &mut Report) {
    let found = running(scope.host());
    for remark in &found.remarks {
        report.warn(
            "containers",
            remark,
            "run this as root, or mend what it names",
        );
    }
    let before = report.findings.len();
    match unpinned(scope.site, &found.containers) {
        Ok(lacks) => unpinned_ones(scope, &found, &lacks, report),
        // The check of the pools says that only root can read the claims.
        Err(_) if !geteuid().is_root() => return,
        Err(error) => return report.error("containers", &error),
    }
    match containers::labels(scope.host(), &found.containers) {
        Ok(labels) => labelled_ones(scope, &found, &labels, report),
        Err(error) => {
            let text =
                format!("labels that may be meant for annotations are not looked at: {error:#}");
            report.warn("containers", text, "see what `podman ps` says");
        }
    }
    if report.findings.len() == before {
        let text = match found.containers.len() {
            0 => "none runs that could be found".to_owned(),
            count => format!("of those that run ({count}), each that asks for CPUs has some"),
        };
        report.ok("containers", text);
    }
}

/// The findings of `check` about containers that ask for CPUs and have none. Labels for which
/// podman would have to be asked are left out. Empty where the claims cannot be read.
pub fn check_requests(scope: &Scope<'_>) -> Vec<Finding> {
    let mut report = Report::default();
    let found = running(scope.host());
    if let Ok(lacks) = unpinned(scope.site, &found.containers) {
        unpinned_ones(scope, &found, &lacks, &mut report);
        let labels = containers::recorded_labels(&found.containers);
        labelled_ones(scope, &found, &labels, &mut report);
    }
    report.findings
}

fn unpinned_ones(
    scope: &Scope<'_>,
    found: &FoundContainers,
    lacks: &[(usize, Lack)],
    report: &mut Report,
) {
    for (place, lack) in lacks {
        one(scope, &found.containers[*place], lack, report);
    }
}

fn labelled_ones(
    scope: &Scope<'_>,
    found: &FoundContainers,
    labels: &BTreeMap<String, Vec<String>>,
    report: &mut Report,
) {
    for container in &found.containers {
        let mut annotations = container.config.plain_annotations();
        if annotations.any(|(key, _)| key.starts_with(PREFIX)) {
            // A container that has our annotations does not need our labels.
            continue;
        }
        let keys = labels.get(&container.id).into_iter().flatten();
        for lack in labels_meant(keys.map(String::as_str)) {
            one(scope, container, &lack, report);
        }
    }
}

fn one(scope: &Scope<'_>, container: &Container, lack: &Lack, report: &mut Report) {
    let who = container.shown();
    match lack {
        Lack::Unseen(pool) => report.fault(
            "containers",
            format!(
                "{who} asks for CPUs of pool {} and has none: neither a hook nor {SHIM} saw it \
                 start",
                Shown(pool)
            ),
            remedy(scope, container),
        ),
        Lack::Lost(pool) => report.fault(
            "containers",
            format!(
                "{who} asks for CPUs of pool {} and has none any more",
                Shown(pool)
            ),
            "start it again, if nobody released them on purpose",
        ),
        Lack::Unrefused(bad) => report.fault(
            "containers",
            format!("{who} runs, and nothing of Pinfold's saw what would have been refused: {bad}"),
            remedy(scope, container),
        ),
        Lack::Misspelt { key, meant } => report.warn(
            "containers",
            format!(
                "{who} has the annotation {}, which asks for nothing",
                Shown(key)
            ),
            format!("make it anew with the annotation {}", Shown(meant)),
        ),
        Lack::Label { key, meant } => report.warn(
            "containers",
            format!("{who} has the label {}, which asks for nothing", Shown(key)),
            format!("make it anew with --annotation {meant}=… in place of --label"),
        ),
    }
}

/// What to do so that we see the container's next start.
pub(super) fn remedy(scope: &Scope<'_>, container: &Container) -> String {
    let install = |engine: Engine, restart: &str| match knows_us(scope, engine) {
        true => String::new(),
        false => format!("`pinfold install {}`{restart}, and ", engine.word()),
    };
    match &container.starter {
        Starter::Docker => format!(
            "{}make it anew with `docker run --runtime {RUNTIME}`",
            install(Engine::Docker, ", `systemctl restart docker`")
        ),
        Starter::Podman if container.user != 0 => {
            "`pinfold install podman --user`, and `podman restart` it".to_owned()
        }
        Starter::Podman => format!(
            "{}`podman restart {}`",
            install(Engine::Podman, ""),
            container.name()
        ),
        Starter::Crio => format!(
            "{}make its pod anew",
            install(Engine::Crio, ", `systemctl restart crio`")
        ),
        Starter::Cri => format!(
            "{}make its pod anew with a RuntimeClass of the handler {RUNTIME}",
            install(Engine::Containerd, ", `systemctl restart containerd`")
        ),
        Starter::Containerd(_) => {
            format!("make it anew with `ctr run --runc-binary` and the path of {SHIM}")
        }
        Starter::Runtime(runtime) => {
            format!("make it anew with {SHIM} in place of {runtime}")
        }
    }
}

/// Is the engine configured to call us? `false` where that cannot be found out: another check says
/// why.
fn knows_us(scope: &Scope<'_>, engine: Engine) -> bool {
    let place = Place::default_on(scope.host());
    match engine {
        Engine::Podman => install::podman_files(&place).is_ok_and(|files| {
            hooks::check(
                scope,
                &files.all.hooks_dirs(),
                engine,
                &mut Report::default(),
            )
            .is_some()
        }),
        Engine::Crio => install::crio_files(&place).is_ok_and(|files| {
            hooks::check(scope, &files.all.hooks_dirs, engine, &mut Report::default()).is_some()
        }),
        Engine::Containerd => install::containerd_configuration(&place)
            .is_ok_and(|all| all.files.iter().any(|file| file.handler(RUNTIME).is_some())),
        Engine::Docker => install::daemon_json(&place)
            .and_then(|(_, text)| docker::read(&text))
            .is_ok_and(|wiring| wiring.shim.is_some()),
    }
}

/// The findings about those that run on CPUs kept for owners of exclusive pools, and were told so
/// by somebody else than us.
pub fn check_neighbours(site: &Site, kept: &[KeptCpus]) -> Vec<Finding> {
    let mut report = Report::default();
    if cpuset::hierarchy(&site.host).is_err() {
        // The check of the machine says why.
        return report.findings;
    }
    let cpus = kept.iter().map(|list| &list.cpus).collect();
    let running = running(&site.host).containers;
    match neighbours(site, &cpus, &running) {
        Ok(found) => {
            let (named, rest) = found.groups.split_at(found.groups.len().min(MOST_NAMED));
            for neighbour in named {
                let container = neighbour.container.map(|place| &running[place]);
                let is_owner = is_owner_elsewhere(site, neighbour);
                one_neighbour((neighbour, is_owner), container, kept, &mut report);
            }
            if !rest.is_empty() || found.is_cut {
                let text = match rest.len() {
                    0 => "there are more cgroups than are looked at".to_owned(),
                    more => format!("{more} more cgroups have CPUs of exclusive pools"),
                };
                report.warn("neighbours", text, "see to these first");
            }
            for unread in found.unread.iter().filter(|_| geteuid().is_root()) {
                report.warn(
                    "neighbours",
                    format!("a cgroup may have CPUs of exclusive pools: {unread}"),
                    "see whether it can be read, and what is in it (`systemd-cgls`)",
                );
            }
        }
        Err(_) if !geteuid().is_root() => {}
        Err(error) => report.error("neighbours", &error),
    }
    report.findings
}

/// The lists of all exclusive pools.
pub fn kept(survey: &Survey) -> Vec<KeptCpus> {
    let is_exclusive = |pool: &&SurveyedPool| pool.kind == Kind::Exclusive;
    let lists = survey.pools.iter().filter(is_exclusive).flat_map(|pool| {
        let of_pool = move |list| (pool, list);
        pool.lists.iter().map(of_pool)
    });
    let kept = lists.map(|(pool, list)| {
        let mut owners = survey.owners.iter();
        let owner = owners.find(|owner| owner.is_alive() && owner.holds(&pool.name, &list.name));
        KeptCpus {
            cpus: list.cpus.clone(),
            pool: pool.name.clone(),
            owner: owner.map(Owner::shown),
        }
    });
    kept.collect()
}

/// Has another pool directory given these CPUs? Its groups are named by its lock, and the machine's
/// records have those of its owners for whom something was changed.
fn is_owner_elsewhere(site: &Site, neighbour: &Neighbour) -> bool {
    if let Some(key) = cgroup::lock_key_in(&neighbour.path) {
        let own = PoolDirectory::open(&site.host, &site.conf_dir);
        let own = own.and_then(|directory| directory.lock_key());
        return own.map_or(true, |own| own != key);
    }
    let kept = outside::owners(&site.host).into_iter();
    let tuned = outside::tuned(&site.host).into_iter();
    kept.map(|owner| (owner.group, owner.run_dir))
        .chain(tuned.map(|tuned| (tuned.group, tuned.run_dir)))
        .any(|(group, run_dir)| group == neighbour.path && run_dir != site.run_dir)
}

fn one_neighbour(
    (neighbour, is_owner): (&Neighbour, bool),
    container: Option<&Container>,
    kept: &[KeptCpus],
    report: &mut Report,
) {
    let touched = kept
        .iter()
        .filter(|list| !list.cpus.is_disjoint(&neighbour.cpus));
    let touched: Vec<String> = touched
        .map(|list| {
            let pool = Shown(&list.pool);
            match &list.owner {
                Some(owner) => format!("{} of pool {pool}, which {} owns", list.cpus, Shown(owner)),
                None => format!("{} of pool {pool}", list.cpus),
            }
        })
        .collect();
    let who = match container {
        Some(container) => container.shown(),
        None => format!("the cgroup {}", Shown(&neighbour.path)),
    };
    let touched = touched.join("; ");
    if is_owner {
        let text = format!(
            "{who} is an owner of another pool directory, which gave it the CPUs {}, among them \
             {touched}",
            neighbour.cpus
        );
        let remedy = "leave these CPUs out of one of the two: `pinfold pool resize --help`";
        return report.warn("neighbours", text, remedy);
    }
    let text = format!(
        "{who} was given the CPUs {} by others than Pinfold, among them {touched}",
        neighbour.cpus
    );
    report.warn("neighbours", text, neighbour_remedy(neighbour, container));
}

fn neighbour_remedy(neighbour: &Neighbour, container: Option<&Container>) -> String {
    let apart = "or leave them out of pools";
    match container.map(|container| &container.starter) {
        Some(Starter::Cri | Starter::Crio) => {
            format!("keep the kubelet's CPU manager off them (reservedSystemCPUs), {apart}")
        }
        Some(Starter::Docker | Starter::Podman) => {
            format!("make it anew without --cpuset-cpus, {apart}: docs/recipes.md has the way")
        }
        Some(_) => format!("take them out of its configuration, {apart}"),
        None => match neighbour.path.rsplit('/').next().unwrap_or_default() {
            unit if [".slice", ".service", ".scope"]
                .iter()
                .any(|end| unit.ends_with(end)) =>
            {
                format!("take them out of AllowedCPUs= of {}, {apart}", Shown(unit))
            }
            _ => format!("write others into its cpuset.cpus, {apart}"),
        },
    }
}
