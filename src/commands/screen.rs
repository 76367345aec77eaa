//! Tables that fit the line, and words in colour. Colours go only to terminals, and not if
//! `NO_COLOR` is set (no-color.org).

use std::borrow::Cow;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use rustix::termios::tcgetwinsize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::names::CUT;
use crate::text::one_line;

/// Good.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// Worth a look.
pub(super) const ODD: Style = AnsiColor::Yellow.on_default();
/// Bad.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Plain text.
pub(super) const PLAIN: Style = Style::new();

/// The width of a line where none is known, in columns.
const USUAL_WIDTH: usize = 80;
/// The height of a terminal of unknown size, in rows.
const USUAL_HEIGHT: usize = 24;
/// The columns between two columns of a table.
pub(super) const GAP: usize = 2;

/// The width of standard output's terminal, in columns; `None` if it is no terminal. A terminal of
/// unknown size has `COLUMNS`, or 80.
pub(super) fn terminal_width() -> Option<usize> {
    terminal_size().map(|(columns, _)| columns)
}

/// The columns and rows of standard output's terminal; 24 rows if its size is unknown.
pub(super) fn terminal_size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    let told = |number: u16| Some(usize::from(number)).filter(|number| *number > 0);
    let columns = told(size.ws_col).unwrap_or_else(said_width);
    Some((columns, told(size.ws_row).unwrap_or(USUAL_HEIGHT)))
}

/// The width of a table, in columns: the terminal's width, else `COLUMNS`, else 80.
pub(super) fn table_width() -> usize {
    terminal_width().unwrap_or_else(said_width)
}

fn said_width() -> usize {
    let columns = std::env::var("COLUMNS").ok();
    let columns = columns.and_then(|columns| columns.parse().ok());
    columns
        .filter(|columns| *columns > 0)
        .unwrap_or(USUAL_WIDTH)
}

/// A table whose columns line up.
pub(super) struct Table {
    /// For each column, its heading and the fewest characters to which cells are shortened; 0 for
    /// never.
    columns: Vec<(&'static str, usize)>,
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, usize)]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Text is escaped, since others may have written it; an empty cell becomes a dash.
    pub(super) fn row(&mut self, cells: Vec<(String, Style)>) {
        let shown = |(text, style): (String, Style)| match one_line(&text) {
            text if text.is_empty() => ("-".to_owned(), PLAIN),
            text => (text, style),
        };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Drops the last columns if lines of `most` columns have no room for them even when shortened.
    pub(super) fn drop_beyond(&mut self, most: usize) {
        let least = self.widths().into_iter().zip(&self.columns);
        let least = least.map(|(width, (_, least))| match least {
            0 => width,
            least => width.min(*least),
        });
        let ends = least.scan(0, |end, width| {
            let begin = if *end == 0 { 0 } else { *end + GAP };
            *end = begin + width;
            Some(*end)
        });
        let room = ends.take_while(|end| *end <= most).count().max(1);
        self.columns.truncate(room);
        self.rows.iter_mut().for_each(|row| row.truncate(room));
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| name.len()).collect();
        for row in &self.rows {
            for (width, (text, _)) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.width());
            }
        }
        widths
    }

    /// Writes the table; shortens cells so that lines have at most `most` columns, if that is
    /// possible.
    pub(super) fn write(&self, out: &mut impl Write, most: Option<usize>) -> io::Result<()> {
        let mut widths = self.widths();
        if let Some(most) = most {
            let least: Vec<usize> = self.columns.iter().map(|(_, least)| *least).collect();
            fit(&mut widths, &least, most);
        }
        let mut page = String::new();
        let headings = self.columns.iter().map(|(name, _)| (*name, PLAIN));
        add_line(&mut page, headings, &widths);
        for row in &self.rows {
            let cells = row.iter().map(|(text, style)| (text.as_str(), *style));
            add_line(&mut page, cells, &widths);
        }
        // One write: the colour filter is slow over many pieces.
        out.write_all(page.as_bytes())
    }
}

/// Narrows the widest column that may be shortened until the line fits, or none can be shortened.
fn fit(widths: &mut [usize], least: &[usize], most: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > most {
        let can = |index: &usize| least[*index] > 0 && widths[*index] > least[*index];
        let widest = (0..widths.len())
            .filter(can)
            .max_by_key(|index| widths[*index]);
        match widest {
            Some(index) => widths[index] -= 1,
            None => return,
        }
    }
}

fn add_line<'a>(
    page: &mut String,
    cells: impl Iterator<Item = (&'a str, Style)>,
    widths: &[usize],
) {
    for (index, ((text, style), width)) in cells.zip(widths).enumerate() {
        let mut has = text.width();
        let text = match has > *width {
            true => Cow::Owned(shortened(text, *width)),
            false => Cow::Borrowed(text),
        };
        if let Cow::Owned(short) = &text {
            has = short.width();
        }
        match style == PLAIN {
            true => page.push_str(&text),
            false => page.push_str(&format!("{style}{text}{style:#}")),
        }
        if index + 1 < widths.len() {
            page.extend(std::iter::repeat_n(' ', width - has + GAP));
        }
    }
    page.push('\n');
}

/// The text cut to `most` columns; an omission is shown as `…`.
fn shortened(text: &str, most: usize) -> String {
    let mut width = 0;
    let begin = text.chars().take_while(|character| {
        width += character.width().unwrap_or_default();
        width < most
    });
    begin.chain([CUT]).collect()
}

/// The line cut to `most` columns; its colour codes stay, also the one that ends the colour.
pub(super) fn cut(line: &str, most: usize) -> String {
    let mut shown = String::with_capacity(line.len());
    let (mut width, mut is_escape) = (0, false);
    for character in line.chars() {
        match character {
            '\x1b' => is_escape = true,
            // A letter ends an escape sequence that began with `ESC [` (ECMA-48, 5.4).
            _ if is_escape => is_escape = !character.is_ascii_alphabetic(),
            _ => {
                width += character.width().unwrap_or_default();
                if width > most {
                    continue;
                }
            }
        }
        shown.push(character);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> Table {
        let mut table = Table::new(&[("ID", 12), ("NAME", 4), ("STATE", 0)]);
        for row in rows {
            let cells = row.map(|text| (text.to_owned(), PLAIN));
            table.row(cells.to_vec());
        }
        table
    }

    fn written(table: &Table, most: Option<usize>) -> String {
        let mut out = Vec::new();
        table.write(&mut out, most).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_cut_where_it_can_be() {
        let table = table(&[["3f9", "a-long-name", "running"], ["7", "", "gone"]]);
        assert_eq!(
            written(&table, None),
            "ID   NAME         STATE\n3f9  a-long-name  running\n7    -            gone\n"
        );
        assert_eq!(
            written(&table, Some(20)),
            "ID   NAME    STATE\n3f9  a-lon…  running\n7    -       gone\n"
        );
        // Columns are never narrower than their least width.
        assert!(written(&table, Some(3)).contains("3f9  a-l…  running\n"));
    }

    #[test]
    fn columns_that_have_no_room_are_left_out() {
        let mut table = table(&[["3f9", "a-long-name", "running"]]);
        table.drop_beyond(15);
        assert_eq!(written(&table, Some(15)), "ID   NAME\n3f9  a-long-na…\n");
        table.drop_beyond(1);
        assert_eq!(written(&table, None), "ID\n3f9\n");
    }

    #[test]
    fn a_line_is_cut_without_its_colours() {
        let line = "ab\x1b[32mcd\x1b[0m日x\x1b[31mz\x1b[0m";
        assert_eq!(cut(line, 3), "ab\x1b[32mc\x1b[0m\x1b[31m\x1b[0m");
        assert_eq!(cut(line, 5), "ab\x1b[32mcd\x1b[0m\x1b[31m\x1b[0m");
        assert_eq!(cut(line, 8), line);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let table = table(&[["3f9", "日本日本", "running"], ["7", "web", "gone"]]);
        assert_eq!(
            written(&table, None),
            "ID   NAME      STATE\n3f9  日本日本  running\n7    web       gone\n"
        );
        assert!(written(&table, Some(18)).contains("3f9  日…   running\n"));
    }

    #[test]
    fn what_others_named_is_escaped() {
        let text = written(&table(&[["a\x1b[31m", "ä\n", "\u{7f}"]]), None);
        assert!(!text.contains(['\x1b', '\u{7f}']), "{text:?}");
        assert_eq!(text.lines().count(), 2);
    }
}
