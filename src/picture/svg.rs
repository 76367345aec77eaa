//! Writes SVG (W3C, Scalable Vector Graphics 1.1): elements with whole numbers, and escaped text.

use std::fmt::{self, Display, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::style;
use crate::names::CUT;
use crate::text::one_line;

/// A picture that is being written.
#[derive(Debug, Default)]
pub(super) struct Svg {
    out: String,
}

/// A rectangle, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) width: i32,
    pub(super) height: i32,
}

impl Svg {
    /// Draws a rectangle with these style classes.
    pub(super) fn rect(&mut self, classes: impl Display, rect: Rect) {
        let Rect {
            x,
            y,
            width,
            height,
        } = rect;
        self.put(format_args!(
            "<rect class=\"{classes}\" x=\"{x}\" y=\"{y}\" \
             width=\"{width}\" height=\"{height}\"/>\n"
        ));
    }

    /// Draws a line with these style classes.
    pub(super) fn line(&mut self, classes: impl Display, from: (i32, i32), to: (i32, i32)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(
            "<line class=\"{classes}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>\n"
        ));
    }

    /// Writes a text with these style classes that begins at `x`, with its base line at `y`.
    pub(super) fn text(&mut self, classes: impl Display, (x, y): (i32, i32), text: &str) {
        self.put(format_args!(
            "<text class=\"{classes}\" x=\"{x}\" y=\"{y}\">{}</text>\n",
            XmlEscaped(text)
        ));
    }

    /// Draws a group of elements, whose title a browser shows.
    pub(super) fn group(&mut self, title: &str, draw: impl FnOnce(&mut Svg)) {
        self.put(format_args!("<g><title>{}</title>\n", XmlEscaped(title)));
        draw(self);
        self.put(format_args!("</g>\n"));
    }

    /// The whole file: a picture of this size, with a title and a description for those who cannot
    /// see it.
    pub(super) fn into_file(self, (width, height): (i32, i32), title: &str, about: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title about\">\n\
             <title id=\"title\">{}</title>\n<desc id=\"about\">{}</desc>\n{}\
             <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
            XmlEscaped(title),
            XmlEscaped(about),
            style::sheet(),
            self.out
        )
    }

    fn put(&mut self, what: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.out.write_fmt(what);
    }
}

/// A text in an element. Characters that cannot be seen are shown by their numbers: all that XML
/// forbids are among them. Those that mean something in XML are escaped (W3C, XML 1.0, sections 2.2
/// and 2.4).
struct XmlEscaped<'a>(&'a str);

impl Display for XmlEscaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in one_line(self.0).chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The width of a text in a font of fixed width, in pixels: a letter is 0.6 of its size wide, or a
/// little more.
pub(super) fn width(text: &str, size: i32) -> i32 {
    columns_width(text.width(), size)
}

/// The width of `columns` letters of a size, in pixels.
pub(super) fn columns_width(columns: usize, size: i32) -> i32 {
    let columns = i32::try_from(columns).unwrap_or(i32::MAX / 1024);
    (columns * size * 61 + 99) / 100
}

/// How many letters of a size fit into a width.
pub(super) fn columns_in(width: i32, size: i32) -> usize {
    usize::try_from(width * 100 / (size * 61)).unwrap_or_default()
}

/// Cuts a text to at most `most` letters. It leaves out the middle, because names of pods begin
/// alike and paths end alike.
pub(super) fn clipped(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(1);
    let end = fitting(text.chars().rev(), room / 2);
    let end_width: usize = end.iter().filter_map(|letter| letter.width()).sum();
    let begin = fitting(text.chars(), room - end_width);
    begin
        .into_iter()
        .chain([CUT])
        .chain(end.into_iter().rev())
        .collect()
}

/// The first letters that fit into `most` columns.
fn fitting(letters: impl Iterator<Item = char>, most: usize) -> Vec<char> {
    let mut width = 0;
    let fits = |letter: &char| {
        width += letter.width().unwrap_or_default();
        width <= most
    };
    letters.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_beginning_and_their_end() {
        for (text, most, shown) in [
            ("web", 3, "web"),
            ("webs", 3, "w…s"),
            ("worker-7d4b9c6f5d-x2x7q", 10, "worke…2x7q"),
            ("日本日本日本", 6, "日…本"),
            ("日本日本日本", 7, "日本…本"),
            ("", 0, ""),
            ("web", 0, "…"),
        ] {
            assert_eq!(clipped(text, most), shown);
        }
    }

    #[test]
    fn nothing_of_a_text_is_taken_for_xml() {
        let shown = XmlEscaped("<a b=\"&'\"/>]]>\u{1b}\n\u{202e}\u{ffff}é").to_string();
        let expected = "&lt;a b=&quot;&amp;&#39;&quot;/&gt;]]&gt;\\u{1b}\\n\\u{202e}\\u{ffff}é";
        assert_eq!(shown, expected);
    }
}
