//! Draws the legend: what colours and letters mean.

use super::cores::{BAR, bar};
use super::layout::GAP;
use super::machine::{LINE, Load, Scene};
use super::style::{PoolStyle, SMALL, letters};
use super::svg::{Rect, Svg, clipped, width};
use crate::placement::SurveyedPool;
use crate::pools::Kind;
use crate::text::one_line;

/// The height of a row of the legend, in pixels.
const ROW: i32 = 22;
/// The width and height of a pool's box, in pixels.
pub(super) const BOX: (i32, i32) = (28, 16);
/// The most letters of a pool's name in the legend.
const MOST_NAME: usize = 40;

/// Does somebody own what a box stands for?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenure {
    Owned,
    Free,
}

/// Draws a box in a pool's colour, or in none. Returns the style class of letters on it.
pub(super) fn cell(
    svg: &mut Svg,
    classes: &str,
    pool: Option<usize>,
    tenure: Tenure,
    rect: Rect,
) -> &'static str {
    let Some(look) = pool.map(PoolStyle::of) else {
        svg.rect(classes, rect);
        return "number";
    };
    match tenure {
        Tenure::Free => {
            svg.rect(format_args!("{classes} {} pale", look.fill), rect);
            "number"
        }
        Tenure::Owned => {
            svg.rect(format_args!("{classes} {}", look.fill), rect);
            if let Some(stripes) = look.stripes {
                svg.rect(stripes, rect);
            }
            look.ink
        }
    }
}

/// Draws the legend: names the pools, and says what else colours mean. Returns where it ends.
pub(super) fn legend(svg: &mut Svg, scene: &Scene<'_>, (x, y): (i32, i32), most: i32) -> i32 {
    if scene.pools.is_empty() {
        svg.text("small muted", (x, y + SMALL + 2), "There are no pools.");
        return y + LINE + GAP;
    }
    let about = |pool: &SurveyedPool| (pool.name.clone(), about(pool));
    let entries: Vec<(String, String)> = scene.pools.iter().map(about).collect();
    let y = names(svg, &entries, (x, y), most);
    let mut at = x;
    for (pool, tenure, word) in [
        (Some(0), Tenure::Owned, "owned"),
        (Some(0), Tenure::Free, "not owned"),
        (None, Tenure::Free, "in no pool"),
    ] {
        sample(svg, pool, tenure, (at, y), "");
        at += BOX.0 + 6;
        svg.text("small muted", (at, y + BOX.1 - 4), word);
        at += width(word, SMALL) + 2 * GAP;
    }
    y + ROW + GAP / 2
}

/// Names pools, each with its description beside it. Returns where that ends.
pub(super) fn names(
    svg: &mut Svg,
    entries: &[(String, String)],
    (x, y): (i32, i32),
    most: i32,
) -> i32 {
    let name = |name: &str| clipped(&one_line(name), MOST_NAME);
    let long = |(one, about): &(String, String)| width(&name(one), SMALL) + width(about, SMALL);
    let wide = BOX.0 + 6 + 10 + entries.iter().map(long).max().unwrap_or_default();
    let columns = ((most + 3 * GAP) / (wide + 3 * GAP)).max(1);
    let mut end = y;
    for (index, (place, (one, about))) in (0..).zip(entries.iter().enumerate()) {
        let (column, row) = (index % columns, index / columns);
        let at = (x + column * (wide + 3 * GAP), y + row * ROW);
        end = at.1 + ROW;
        sample(svg, Some(place), Tenure::Owned, at, &letters(place));
        let (at, base) = (at.0 + BOX.0 + 6, at.1 + BOX.1 - 4);
        svg.text("small strong", (at, base), &name(one));
        let at = at + width(&name(one), SMALL) + 10;
        svg.text("small muted", (at, base), about);
    }
    end
}

/// Draws the box of a pool, or of no pool, with a text in it.
pub(super) fn sample(
    svg: &mut Svg,
    pool: Option<usize>,
    tenure: Tenure,
    (x, y): (i32, i32),
    text: &str,
) {
    let rect = Rect {
        x,
        y,
        width: BOX.0,
        height: BOX.1,
    };
    let ink = cell(svg, "cpu", pool, tenure, rect);
    if !text.is_empty() {
        let at = (x + 5, y + BOX.1 - 4);
        svg.text(format_args!("{ink} small strong"), at, text);
    }
}

/// A pool's description: `exclusive, 2 of 4 lists free`.
fn about(pool: &SurveyedPool) -> String {
    let cpus = pool.cpus();
    let lists = pool.lists.len();
    let free = pool.lists.iter().filter(|list| list.owners == 0).count();
    match pool.kind {
        Kind::Exclusive => format!("exclusive, {free} of {lists} lists free"),
        Kind::Shared => format!("shared, {} CPUs", cpus.len()),
    }
}

/// Draws the legend of the bars: what their parts mean.
pub(super) fn bars_legend(svg: &mut Svg, (x, y): (i32, i32), about: &str) {
    svg.text("small muted", (x, y), about);
    let mut at = x + width(about, SMALL) + 2 * GAP;
    for (used, noise, word) in [
        (1.0, 0.0, "used by the owner"),
        (0.0, 1.0, "noise: by others"),
    ] {
        bar(svg, (at, y - BAR - 1), BOX.0, &Load { used, noise });
        at += BOX.0 + 6;
        svg.text("small muted", (at, y), word);
        at += width(word, SMALL) + 2 * GAP;
    }
}
