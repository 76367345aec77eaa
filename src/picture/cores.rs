//! Draws cores: their CPUs, the pools of these, and who owns them.

use std::collections::BTreeMap;

use unicode_width::UnicodeWidthStr;

use super::layout::GAP;
use super::machine::{DrawnOwner, LABEL_LINE, LINE, Load, Scene};
use super::owners::title;
use super::pools::{Tenure, cell};
use super::style::{LABEL, SMALL, letters};
use super::svg::{Rect, Svg, clipped, columns_in, columns_width, width};
use crate::cpulist::CpuSet;
use crate::placement::{OwnerState, SurveyedPool};
use crate::pools::Kind;
use crate::text::one_line;
use crate::topology::{Part, Topology};

/// The space between a core's edge and its content, in pixels.
const PAD: i32 = 5;
/// The height of a CPU's box.
const CELL: i32 = 20;
/// The height of the bar of an owner's load.
pub(super) const BAR: i32 = 6;
/// The most CPUs of a core side by side.
const MOST_BESIDE: usize = 4;
/// The most cores of a machine that counts as small.
const FEW_CORES: usize = 16;
/// The most letters of names in a core: on a small machine, and on others.
const COLUMNS: [usize; 2] = [22, 14];
/// The fewest letters for which there is room.
const FEWEST_COLUMNS: usize = 10;

/// How cores are drawn; all have the same size.
#[derive(Debug)]
pub(super) struct CoreGrid<'a> {
    topology: &'a Topology,
    pools: &'a [SurveyedPool],
    owners: &'a [DrawnOwner<'a>],
    of_cpu: BTreeMap<u32, OfCpu>,
    cell: i32,
    has_marks: bool,
    has_bars: bool,
    pub(super) width: i32,
    pub(super) height: i32,
}

/// The pools and the owners of a CPU, by their index in the scene.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct OfCpu {
    pools: Vec<usize>,
    owners: Vec<usize>,
}

impl<'a> CoreGrid<'a> {
    pub(super) fn of(scene: &'a Scene<'_>) -> CoreGrid<'a> {
        let mut of_cpu: BTreeMap<u32, OfCpu> = BTreeMap::new();
        for (place, pool) in scene.pools.iter().enumerate() {
            for cpu in pool.lists.iter().flat_map(|list| list.cpus.iter()) {
                let pools = &mut of_cpu.entry(cpu).or_default().pools;
                if !pools.contains(&place) {
                    pools.push(place);
                }
            }
        }
        for (place, owned) in scene.owners.iter().enumerate() {
            for cpu in owned.owner.cpus.iter() {
                of_cpu.entry(cpu).or_default().owners.push(place);
            }
        }
        let topology = scene.topology;
        let cores = &topology.levels.cores;
        let marks = cores
            .iter()
            .map(|core| topology.marks(&core.cpus).join(", "));
        let marks = marks.map(|marks| marks.width()).max().unwrap_or_default();
        let names = scene.pools.iter().map(|pool| one_line(&pool.name).width());
        let owners = scene.owners.iter().map(|one| caption(one).width());
        let longest = names.chain(owners).max().unwrap_or_default();
        let most = COLUMNS[usize::from(cores.len() > FEW_CORES)];
        let columns = match scene.pools.is_empty() {
            true => marks,
            false => marks.max(longest.clamp(FEWEST_COLUMNS, most)),
        };
        let threads = cores.iter().map(|core| core.cpus.len()).max().unwrap_or(1);
        let beside = i32::try_from(threads.min(MOST_BESIDE)).unwrap_or(1);
        let rows = i32::try_from(threads.div_ceil(MOST_BESIDE)).unwrap_or(1);
        let cell = cell_width(topology, &of_cpu);
        let has_bars = scene.owners.iter().any(|owned| owned.load.is_some());
        let lines = i32::from(marks > 0) + 2 * i32::from(!scene.pools.is_empty());
        let bar = if has_bars { BAR + 4 } else { 0 };
        CoreGrid {
            topology,
            pools: scene.pools,
            owners: &scene.owners,
            cell,
            has_marks: marks > 0,
            has_bars,
            width: 2 * PAD + (beside * (cell + 2) - 2).max(columns_width(columns, SMALL)),
            height: 2 * PAD + rows * (CELL + 2) - 2 + lines * LINE + bar,
            of_cpu,
        }
    }

    pub(super) fn draw(&self, svg: &mut Svg, core: &Part, rect: Rect) {
        svg.group(&self.about(core), |svg| {
            svg.rect("core", rect);
            let (x, mut y) = (rect.x + PAD, rect.y + PAD);
            let most = columns_in(self.width - 2 * PAD, SMALL);
            let line = |svg: &mut Svg, class: &str, y: i32, text: &str| {
                svg.text(class, (x, y), &clipped(&one_line(text), most));
            };
            if self.has_marks {
                let marks = self.topology.marks(&core.cpus).join(", ");
                if !marks.is_empty() {
                    line(svg, "small muted", y + SMALL, &marks);
                }
                y += LINE;
            }
            let cpus: Vec<u32> = core.cpus.iter().collect();
            for row in cpus.chunks(MOST_BESIDE) {
                let beside = i32::try_from(row.len()).unwrap_or(1);
                let full = self.width - 2 * PAD;
                let cell = (full - 2 * (beside - 1)) / beside;
                for (x, cpu) in (rect.x + PAD..).step_by(cell as usize + 2).zip(row) {
                    self.draw_cpu(svg, *cpu, (x, y), cell, "cpu");
                }
                y += CELL + 2;
            }
            y -= 2;
            if self.pools.is_empty() {
                return;
            }
            let (pools, owners) = (self.pools_of(&core.cpus), self.owners_of(&core.cpus));
            let names: Vec<&str> = pools
                .iter()
                .map(|place| self.pools[*place].name.as_str())
                .collect();
            line(svg, "small", y + LINE - 2, &names.join(", "));
            y += LINE;
            let class = match owners.is_empty() {
                true => "small muted",
                false => "small strong",
            };
            line(svg, class, y + LINE - 2, &self.holders(&pools, &owners));
            y += LINE;
            let loads = owners.iter().map(|place| self.owners[*place].load);
            if let ([Some(load)], true) = (&loads.collect::<Vec<_>>()[..], self.has_bars) {
                bar(svg, (x, y + 4), self.width - 2 * PAD, load);
            }
        });
    }

    /// The text that says who owns a core's CPUs.
    fn holders(&self, pools: &[usize], owners: &[usize]) -> String {
        let is_exclusive = |place: &usize| self.pools[*place].kind == Kind::Exclusive;
        match owners {
            [] if pools.iter().any(is_exclusive) => "free".to_owned(),
            [] if !pools.is_empty() => "shared".to_owned(),
            [] => String::new(),
            [one] => caption(&self.owners[*one]),
            [one, other] => [one, other]
                .map(|one| caption(&self.owners[*one]))
                .join(", "),
            more => format!("{} owners", more.len()),
        }
    }

    /// Draws the box of a CPU, with its number and the letters of its pools.
    fn draw_cpu(&self, svg: &mut Svg, cpu: u32, (x, y): (i32, i32), width: i32, classes: &str) {
        let known = self.of_cpu.get(&cpu);
        let rect = Rect {
            x,
            y,
            width,
            height: CELL,
        };
        let pools = known.map_or(&[][..], |known| &known.pools);
        let tenure = match known.is_some_and(|known| !known.owners.is_empty()) {
            true => Tenure::Owned,
            false => Tenure::Free,
        };
        let ink = cell(svg, classes, pools.first().copied(), tenure, rect);
        let base = y + CELL - 5;
        svg.text(ink, (x + 4, base), &cpu.to_string());
        if let Some(letters) = letters_of(pools) {
            let at = (x + width - 4, base);
            svg.text(format_args!("{ink} small strong end"), at, &letters);
        }
    }

    fn pools_of(&self, cpus: &CpuSet) -> Vec<usize> {
        self.places(cpus, |known| &known.pools)
    }

    fn owners_of(&self, cpus: &CpuSet) -> Vec<usize> {
        self.places(cpus, |known| &known.owners)
    }

    fn places(&self, cpus: &CpuSet, of: impl Fn(&OfCpu) -> &Vec<usize>) -> Vec<usize> {
        let known = cpus.iter().filter_map(|cpu| self.of_cpu.get(&cpu));
        let mut places: Vec<usize> = known.flat_map(|known| of(known).clone()).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Describes a core in words: the title of its drawing.
    fn about(&self, core: &Part) -> String {
        let mut about = vec![core.to_string()];
        about.extend(
            self.topology
                .marks(&core.cpus)
                .iter()
                .map(ToString::to_string),
        );
        for place in self.pools_of(&core.cpus) {
            let pool = &self.pools[place];
            let lists = pool.lists.iter();
            let lists = lists.filter(|list| !list.cpus.is_disjoint(&core.cpus));
            let lists: Vec<&str> = lists.map(|list| list.name.as_str()).collect();
            let lists = lists.join(" and ");
            about.push(format!("pool {}, list {lists}", pool.name));
        }
        for place in self.owners_of(&core.cpus) {
            let owned = &self.owners[place];
            let state = owned.owner.state.word();
            about.push(format!("{}, {state}", owned.owner.shown()));
        }
        about.join("; ")
    }

    /// The width and height of the box of offline CPUs, which should be at most `most` wide.
    pub(super) fn offline_size(&self, cpus: &CpuSet, most: i32) -> (i32, i32) {
        let (beside, rows) = self.offline_rows(cpus, most);
        let width = (beside * (self.cell + 2) - 2).max(width(OFFLINE, LABEL));
        let height = GAP / 2 + LABEL_LINE + GAP / 2 + rows * (CELL + 2) - 2 + GAP;
        (width + 2 * GAP, height)
    }

    fn offline_rows(&self, cpus: &CpuSet, most: i32) -> (i32, i32) {
        let count = i32::try_from(cpus.len()).unwrap_or(i32::MAX);
        let beside = ((most - 2 * GAP + 2) / (self.cell + 2)).clamp(1, MOST_OFFLINE_BESIDE);
        (beside.min(count), (count + beside - 1) / beside)
    }

    pub(super) fn draw_offline(&self, svg: &mut Svg, cpus: &CpuSet, rect: Rect) {
        svg.rect("box even", rect);
        let (x, y) = (rect.x + GAP, rect.y + GAP / 2 + LABEL_LINE);
        svg.text("label", (x, y - 5), OFFLINE);
        let (beside, _) = self.offline_rows(cpus, rect.width);
        for (index, cpu) in (0..).zip(cpus.iter()) {
            let (column, row) = (index % beside, index / beside);
            let at = (x + column * (self.cell + 2), y + GAP / 2 + row * (CELL + 2));
            self.draw_cpu(svg, cpu, at, self.cell, "cpu offline");
        }
    }
}

/// The label of the box of offline CPUs.
const OFFLINE: &str = "offline";
const MOST_OFFLINE_BESIDE: i32 = 16;

/// The letters of a CPU's pools. A CPU should be in only one: of more than two, the first is shown,
/// and a `+`.
fn letters_of(pools: &[usize]) -> Option<String> {
    match pools {
        [] => None,
        [one] => Some(letters(*one)),
        [one, other] => Some(letters(*one) + &letters(*other)),
        [one, ..] => Some(letters(*one) + "+"),
    }
}

/// The width of a CPU's box, with room for the longest number and the most letters.
fn cell_width(topology: &Topology, of_cpu: &BTreeMap<u32, OfCpu>) -> i32 {
    let all = topology.online.iter().chain(topology.offline.iter());
    let digits = all.max().unwrap_or_default().to_string().len();
    let letters = of_cpu.values().filter_map(|known| letters_of(&known.pools));
    let letters = letters.map(|letters| letters.len()).max();
    let letters = letters.map_or(0, |columns| 4 + columns_width(columns, SMALL));
    8 + columns_width(digits, LABEL) + letters
}

/// An owner's name, with its state in front unless it is running.
fn caption(owned: &DrawnOwner<'_>) -> String {
    let title = one_line(&title(owned.owner));
    match owned.owner.state {
        OwnerState::Running => title,
        state => format!("{}: {title}", state.word()),
    }
}

/// Draws a load as a bar: what the owner used, and beside it the noise.
pub(super) fn bar(svg: &mut Svg, (x, y): (i32, i32), width: i32, load: &Load) {
    let pixels = |share: f64| (f64::from(width) * share.clamp(0.0, 1.0)).round() as i32;
    let used = pixels(load.used);
    let noise = pixels(load.used + load.noise) - used;
    let rect = |x, width| Rect {
        x,
        y,
        width,
        height: BAR,
    };
    svg.rect("track", rect(x, width));
    if used > 0 {
        svg.rect("used", rect(x, used));
    }
    if noise > 0 {
        svg.rect("noise", rect(x + used, noise));
    }
}
