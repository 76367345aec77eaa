//! Places the boxes: those within a part are laid out in rows.

use super::cores::CoreGrid;
use super::machine::LABEL_LINE;
use super::style::LABEL;
use super::svg::{Rect, Svg, clipped, columns_in, width};
use crate::cpulist::CpuSet;
use crate::topology::{Part, What};

/// The space between boxes.
pub(super) const GAP: i32 = 8;

/// The most letters of a box's name. A die or a cluster has its CPUs in its name.
const MOST_NAME: usize = 40;

/// All boxes of a machine, in rows.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    boxes: Vec<PlacedBox<'a>>,
    pub(super) width: i32,
    pub(super) height: i32,
}

/// A box, and its position within the one around it.
#[derive(Debug)]
struct PlacedBox<'a> {
    x: i32,
    y: i32,
    width: i32,
    height: i32,
    what: Shape<'a>,
}

#[derive(Debug)]
enum Shape<'a> {
    Core(&'a Part),
    /// The offline CPUs.
    Offline(CpuSet),
    /// A part, the lines of its name, and the boxes in it.
    Part(&'a Part, Vec<String>, Vec<PlacedBox<'a>>),
}

impl<'a> Layout<'a> {
    /// Lays out a machine in rows that are at most `most` pixels wide, unless a single box is
    /// wider.
    pub(super) fn of(machine: &'a Part, offline: &CpuSet, cores: &CoreGrid<'_>, most: i32) -> Self {
        let parts = machine.parts.iter();
        let mut boxes: Vec<PlacedBox<'_>> = parts.map(|part| placed(part, cores, most)).collect();
        if !offline.is_empty() {
            let (width, height) = cores.offline_size(offline, most);
            let what = Shape::Offline(offline.clone());
            boxes.push(PlacedBox::sized(width, height, what));
        }
        let (width, height) = in_rows(&mut boxes, most);
        Layout {
            boxes,
            width,
            height,
        }
    }

    pub(super) fn draw(&self, svg: &mut Svg, at: (i32, i32), cores: &CoreGrid<'_>) {
        self.boxes.iter().for_each(|one| one.draw(svg, at, cores));
    }
}

impl<'a> PlacedBox<'a> {
    fn sized(width: i32, height: i32, what: Shape<'a>) -> PlacedBox<'a> {
        PlacedBox {
            x: 0,
            y: 0,
            width,
            height,
            what,
        }
    }

    fn draw(&self, svg: &mut Svg, (x, y): (i32, i32), cores: &CoreGrid<'_>) {
        let (x, y) = (x + self.x, y + self.y);
        let rect = Rect {
            x,
            y,
            width: self.width,
            height: self.height,
        };
        match &self.what {
            Shape::Core(core) => cores.draw(svg, core, rect),
            Shape::Offline(cpus) => cores.draw_offline(svg, cpus, rect),
            Shape::Part(part, name, inner) => {
                let level = match part.what {
                    What::Node(..) | What::Cluster => "odd",
                    _ => "even",
                };
                svg.rect(format_args!("box {level}"), rect);
                let mut line = y + GAP / 2;
                for text in name {
                    line += LABEL_LINE;
                    svg.text("label", (x + GAP, line - 5), text);
                }
                let at = (x + GAP, line + GAP / 2);
                inner.iter().for_each(|one| one.draw(svg, at, cores));
            }
        }
    }
}

fn placed<'a>(part: &'a Part, cores: &CoreGrid<'_>, most: i32) -> PlacedBox<'a> {
    if part.what == What::Core {
        return PlacedBox::sized(cores.width, cores.height, Shape::Core(part));
    }
    // Nested parts with the same CPUs are one box with all their names.
    let mut names = vec![clipped(&part.to_string(), MOST_NAME)];
    let mut parts = &part.parts;
    while let [inner] = &parts[..] {
        if inner.what == What::Core || inner.cpus != part.cpus {
            break;
        }
        names.push(clipped(&inner.to_string(), MOST_NAME));
        parts = &inner.parts;
    }
    if parts.is_empty() && !part.cpus.is_empty() {
        names.push(clipped(&format!("CPUs {}", part.cpus), MOST_NAME));
    }
    let within = most - 2 * GAP;
    let mut inner: Vec<PlacedBox<'_>> = parts
        .iter()
        .map(|part| placed(part, cores, within))
        .collect();
    let (width_of_parts, height) = in_rows(&mut inner, within);
    let longest = names.iter().map(|name| width(name, LABEL)).max();
    let width = width_of_parts.max(longest.unwrap_or_default());
    let lines = in_lines(&names, columns_in(width, LABEL));
    let lines_height = LABEL_LINE * i32::try_from(lines.len()).unwrap_or_default();
    let gap = if inner.is_empty() { 0 } else { GAP / 2 };
    PlacedBox::sized(
        width + 2 * GAP,
        GAP / 2 + lines_height + gap + height + GAP,
        Shape::Part(part, lines, inner),
    )
}

/// Joins names into lines of at most `most` letters.
fn in_lines(names: &[String], most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for name in names {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 3 + name.chars().count() <= most => {
                line.push_str(" · ");
                line.push_str(name);
            }
            _ => lines.push(name.clone()),
        }
    }
    lines
}

/// Puts boxes into the fewest rows of at most `most` pixels, which then are as narrow as that
/// number of rows allows. Returns the width and the height that they take.
fn in_rows(boxes: &mut [PlacedBox<'_>], most: i32) -> (i32, i32) {
    let rows = rows_of(boxes, most);
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = (low + high) / 2;
        match rows_of(boxes, middle) <= rows {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    let (mut x, mut y, mut height, mut width) = (0, 0, 0, 0);
    let mut begin = 0;
    for index in 0..boxes.len() {
        if x > 0 && x + boxes[index].width > low {
            align(&mut boxes[begin..index], height);
            begin = index;
            (x, y, height) = (0, y + height + GAP, 0);
        }
        let one = &mut boxes[index];
        (one.x, one.y) = (x, y);
        height = height.max(one.height);
        width = width.max(x + one.width);
        x += one.width + GAP;
    }
    align(&mut boxes[begin..], height);
    (width, y + height)
}

/// Gives the boxes of a row the same height.
fn align(row: &mut [PlacedBox<'_>], height: i32) {
    row.iter_mut().for_each(|one| one.height = height);
}

fn rows_of(boxes: &[PlacedBox<'_>], most: i32) -> usize {
    let (mut rows, mut x) = (1, 0);
    for one in boxes {
        if x > 0 && x + one.width > most {
            (rows, x) = (rows + 1, 0);
        }
        x += one.width + GAP;
    }
    rows
}
