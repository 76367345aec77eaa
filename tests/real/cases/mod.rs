//! The cases, by what they show.

mod again;
mod books;
mod by_hand;
mod compose;
mod confine;
mod crowd;
mod default_pool;
mod dockerd_takes;
mod endings;
mod examples;
mod hook_process;
pub(crate) mod hookfiles;
mod hotplug;
mod inside;
mod installed;
mod intervals;
mod irqbalance;
mod isolate;
mod isolation;
mod kcm;
mod killpoints;
mod killpoints_irqs;
mod killpoints_isolate;
mod killpoints_isolation;
mod killpoints_runtime;
mod killpoints_shim;
mod kube;
mod last_words;
mod life;
mod lists;
mod masks;
mod metrics;
mod named;
mod nearness;
mod noise;
mod nri;
mod offenders;
mod outputs;
mod owners;
mod partition;
mod pinned;
mod pods;
mod pools;
mod pools_peer;
mod reboot;
mod refusals;
mod release;
mod rootless;
mod served;
mod shim;
mod shim_alone;
mod stats;
mod status;
mod supervised;
mod unpinned;
mod untouched;
mod unusual;
mod usage;
mod wired;
mod wreckage;

use crate::harness::case::Case;

/// All of them, in the order in which they run.
pub(crate) fn all() -> Vec<Case> {
    [
        pinned::cases(),
        again::cases(),
        nearness::cases(),
        crowd::cases(),
        untouched::cases(),
        endings::cases(),
        life::cases(),
        masks::cases(),
        unusual::cases(),
        hotplug::cases(),
        kube::cases(),
        rootless::cases(),
        reboot::cases(),
        wreckage::cases(),
        owners::cases(),
        isolate::cases(),
        supervised::cases(),
        isolation::cases(),
        offenders::cases(),
        irqbalance::cases(),
        confine::cases(),
        partition::cases(),
        inside::cases(),
        intervals::cases(),
        release::cases(),
        books::cases(),
        refusals::cases(),
        outputs::cases(),
        hook_process::cases(),
        hookfiles::cases(),
        served::cases(),
        compose::cases(),
        examples::cases(),
        named::cases(),
        stats::cases(),
        metrics::cases(),
        noise::cases(),
        usage::cases(),
        status::cases(),
        pods::cases(),
        default_pool::cases(),
        nri::cases(),
        installed::cases(),
        dockerd_takes::cases(),
        shim::cases(),
        unpinned::cases(),
        by_hand::cases(),
        shim_alone::cases(),
        wired::cases(),
        kcm::cases(),
        pools::cases(),
        pools_peer::cases(),
        killpoints::cases(),
        killpoints_isolate::cases(),
        killpoints_runtime::cases(),
        killpoints_irqs::cases(),
        killpoints_isolation::cases(),
        killpoints_shim::cases(),
        lists::cases(),
        last_words::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
