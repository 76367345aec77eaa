//! Draws the machine: its parts as boxes within each other, with the pools and owners of its CPUs.

use std::time::Duration;

use super::cores::CoreGrid;
use super::layout::{GAP, Layout};
use super::owners::OwnersTable;
use super::pools;
use super::style::{HEADING, LABEL, SMALL};
use super::svg::Svg;
use crate::placement::{Owner, SurveyedPool};
use crate::topology::{Part, Topology};

/// What a picture of a machine shows.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The machine.
    pub topology: &'a Topology,
    /// Its pools.
    pub pools: &'a [SurveyedPool],
    /// The owners, in the order of the table.
    pub owners: Vec<DrawnOwner<'a>>,
    /// How long owners were measured; `None` if they were not.
    pub interval: Option<Duration>,
}

/// An owner and its load.
#[derive(Debug, Clone, Copy)]
pub struct DrawnOwner<'a> {
    /// The owner.
    pub owner: &'a Owner,
    /// Its load; `None` if it is not known.
    pub load: Option<Load>,
}

/// Shares of the time of an owner's CPUs, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// The share that the owner used.
    pub used: f64,
    /// The share that others used.
    pub noise: f64,
}

/// The margin around everything, in pixels.
pub(super) const MARGIN: i32 = 16;

/// The widths that are tried for the machine, in pixels, without the margins. The one that gives
/// the picture for the smallest screen is taken.
const WIDTHS: std::ops::RangeInclusive<i32> = 720..=2400;
const WIDTH_STEP: usize = 80;

/// Draws the picture as SVG. The same scene gives the same picture.
pub fn machine(scene: &Scene<'_>) -> String {
    let (cores, tree) = (CoreGrid::of(scene), Part::of(scene.topology));
    let table = OwnersTable::of(scene);
    let least = table.width.max(*WIDTHS.start());
    let layout = |most| Layout::of(&tree, &scene.topology.offline, &cores, most);
    // Screens are 16 wide to 10 high, or flatter.
    let screen = |layout: &Layout<'_>| {
        let width = layout.width.max(least);
        (width * 10).max((layout.height + table.height(width)) * 16)
    };
    let layouts = WIDTHS.step_by(WIDTH_STEP).map(layout);
    let best = layouts.min_by_key(screen);
    let layout = best.unwrap_or_else(|| layout(*WIDTHS.start()));
    let width = layout.width.max(least);

    let mut svg = Svg::default();
    let heading = heading(scene.topology);
    let mut y = MARGIN + HEADING;
    svg.text("heading", (MARGIN, y), &heading);
    y += GAP;
    y = pools::legend(&mut svg, scene, (MARGIN, y), width);
    layout.draw(&mut svg, (MARGIN, y), &cores);
    y += layout.height;
    if let Some(interval) = scene.interval {
        y += GAP + SMALL;
        let seconds = interval.as_secs_f64();
        let about = format!("Shares of the time of an owner's CPUs, over {seconds:.1} s:");
        pools::bars_legend(&mut svg, (MARGIN, y), &about);
    }
    table.draw(&mut svg, (MARGIN, y), width);
    y += table.height(width);
    let size = (width + 2 * MARGIN, y + MARGIN);
    svg.into_file(size, &heading, &about(scene))
}

/// `8 CPUs: 0-7`.
fn heading(topology: &Topology) -> String {
    let online = &topology.online;
    let word = if online.len() == 1 { "CPU" } else { "CPUs" };
    format!("{} {word}: {online}", online.len())
}

/// Describes the picture in words, for those who cannot see it.
fn about(scene: &Scene<'_>) -> String {
    let levels = &scene.topology.levels;
    let many = |count: usize, one: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    };
    let mut about = format!(
        "{} in {}, {}, {}.",
        many(levels.cores.len(), "core"),
        many(levels.packages.len(), "package"),
        many(levels.nodes.len(), "NUMA node"),
        match levels.caches.len() {
            1 => "1 last-level cache".to_owned(),
            count => format!("{count} last-level caches"),
        },
    );
    for pool in scene.pools {
        let cpus = pool.cpus();
        let owners = scene.owners.iter();
        let owners = owners.filter(|owned| owned.owner.pool == pool.name);
        about.push_str(&format!(
            " Pool {}, {}: CPUs {}, {}.",
            pool.name,
            pool.kind.word(),
            cpus,
            many(owners.count(), "owner")
        ));
    }
    about
}

/// The height of a line of small letters.
pub(super) const LINE: i32 = SMALL + 4;

/// The height of a line of labels.
pub(super) const LABEL_LINE: i32 = LABEL + 5;
