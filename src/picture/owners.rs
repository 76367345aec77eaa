//! Draws the table of owners.

use unicode_width::UnicodeWidthStr;

use super::cores::{BAR, bar};
use super::layout::GAP;
use super::machine::{DrawnOwner, LINE, Scene};
use super::pools::{BOX, Tenure, sample};
use super::style::{SMALL, letters};
use super::svg::{Svg, clipped, columns_width};
use crate::names::short_id;
use crate::placement::{Owner, OwnerState, pid_id};
use crate::text::one_line;

/// The height of a row, in pixels.
const ROW: i32 = 20;
/// The width of a load's bar.
const BAR_WIDTH: i32 = 80;
/// The most letters of each cell of a row.
const MOST: [usize; 4] = [36, 20, 28, 12];
/// The most owners that are listed.
const MOST_OWNERS: usize = 256;

/// An owner's name, or else its short id, or else its pid.
pub(super) fn title(owner: &Owner) -> String {
    let id = || match &owner.id {
        Some(id) => short_id(id).to_owned(),
        None => pid_id(owner.pid),
    };
    owner.names.title().unwrap_or_else(id)
}

/// The table, whose rows are in as many columns as there is room for.
#[derive(Debug)]
pub(super) struct OwnersTable<'a> {
    scene: &'a Scene<'a>,
    listed: &'a [DrawnOwner<'a>],
    rows: Vec<[String; 4]>,
    /// The width of each cell, in pixels; `None` if no owner has that cell.
    columns: [Option<i32>; 4],
    has_loads: bool,
    /// The width of one column of rows, in pixels.
    pub(super) width: i32,
}

impl<'a> OwnersTable<'a> {
    pub(super) fn of(scene: &'a Scene<'a>) -> OwnersTable<'a> {
        let listed = &scene.owners[..scene.owners.len().min(MOST_OWNERS)];
        let rows: Vec<[String; 4]> = listed.iter().map(cells).collect();
        let columns = [0, 1, 2, 3].map(|column| {
            let cells = rows.iter().map(|row| row[column].width());
            let widest = cells.max().filter(|widest| *widest > 0);
            widest.map(|widest| columns_width(widest.max(HEADINGS[column].len()), SMALL) + 2 * GAP)
        });
        let has_loads = listed.iter().any(|owned| owned.load.is_some());
        let loads = if has_loads { BAR_WIDTH + 2 * LOAD } else { 0 };
        OwnersTable {
            scene,
            listed,
            width: BOX.0 + GAP + columns.iter().flatten().sum::<i32>() + loads + 2 * GAP,
            rows,
            columns,
            has_loads,
        }
    }

    /// How many rows are below each other if the table may be `most` pixels wide.
    fn rows(&self, most: i32) -> i32 {
        let beside = ((most + 2 * GAP) / self.width).max(1);
        let count = i32::try_from(self.rows.len()).unwrap_or(i32::MAX);
        (count + beside - 1) / beside
    }

    /// The table's height in pixels if it may be `most` wide.
    pub(super) fn height(&self, most: i32) -> i32 {
        let more = if self.more() > 0 { LINE } else { 0 };
        match self.rows.is_empty() {
            _ if self.scene.pools.is_empty() => 0,
            true => 2 * GAP + LINE,
            false => 2 * GAP + ROW * (self.rows(most) + 1) + more,
        }
    }

    /// The number of owners that the table leaves out.
    fn more(&self) -> usize {
        self.scene.owners.len() - self.listed.len()
    }

    pub(super) fn draw(&self, svg: &mut Svg, (x, y): (i32, i32), most: i32) {
        if self.scene.pools.is_empty() {
            return;
        }
        let y = y + 2 * GAP;
        if self.rows.is_empty() {
            svg.text("small muted", (x, y + SMALL), "Nobody owns any CPUs.");
            return;
        }
        let high = self.rows(most);
        for (index, (row, owned)) in (0..).zip(self.rows.iter().zip(self.listed)) {
            let (x, line) = (x + index / high * self.width, index % high);
            if line == 0 {
                self.draw_headings(svg, (x, y));
            }
            self.draw_row(svg, owned, row, (x, y + (line + 1) * ROW));
        }
        if self.more() > 0 {
            let at = (x, y + ROW * (high + 1) + SMALL);
            let text = format!("and {} more owners", self.more());
            svg.text("small muted", at, &text);
        }
    }

    fn draw_headings(&self, svg: &mut Svg, (x, y): (i32, i32)) {
        let (mut at, base) = (x + BOX.0 + GAP, y + BOX.1 - 4);
        for (heading, width) in HEADINGS.iter().zip(self.columns) {
            if let Some(width) = width {
                svg.text("small muted", (at, base), heading);
                at += width;
            }
        }
        at += BAR_WIDTH;
        for heading in LOADS.iter().filter(|_| self.has_loads) {
            at += LOAD;
            svg.text("small muted end", (at, base), heading);
        }
    }

    fn draw_row(
        &self,
        svg: &mut Svg,
        owned: &DrawnOwner<'_>,
        row: &[String; 4],
        (x, y): (i32, i32),
    ) {
        let base = y + BOX.1 - 4;
        let mut pools = self.scene.pools.iter();
        if let Some(place) = pools.position(|pool| pool.name == owned.owner.pool) {
            sample(svg, Some(place), Tenure::Owned, (x, y), &letters(place));
        }
        let mut at = x + BOX.0 + GAP;
        for ((text, width), class) in row.iter().zip(self.columns).zip(CLASSES) {
            if let Some(width) = width {
                svg.text(class, (at, base), text);
                at += width;
            }
        }
        if let Some(load) = &owned.load {
            bar(svg, (at, y + (BOX.1 - BAR) / 2), BAR_WIDTH, load);
            at += BAR_WIDTH;
            for share in [load.used, load.noise] {
                at += LOAD;
                svg.text("small end", (at, base), &format!("{:.1}", share * 100.0));
            }
        }
    }
}

/// The headings of the cells.
const HEADINGS: [&str; 4] = ["OWNER", "POOL", "CPUS", "STATE"];
/// The style classes of the cells.
const CLASSES: [&str; 4] = ["small strong", "small", "small", "small muted"];
/// The headings of the two parts of a load.
const LOADS: [&str; 2] = ["USED%", "NOISE%"];
/// The width of each part of a load, in pixels.
const LOAD: i32 = 56;

/// The cells of an owner: name, pool, CPUs, and the state unless it is running.
fn cells(owned: &DrawnOwner<'_>) -> [String; 4] {
    let owner = owned.owner;
    let state = match owner.state {
        OwnerState::Running => "",
        state => state.word(),
    };
    let texts = [&title(owner), &owner.pool, &owner.cpus.to_string(), state];
    let mut cells = texts.map(one_line);
    for (cell, most) in cells.iter_mut().zip(MOST) {
        *cell = clipped(cell, most);
    }
    cells
}
