//! Escapes text that others wrote, so that it cannot change how a terminal or a log shows the rest.
//!
//! Only visible characters that take a column are shown as they are. The others are shown by their
//! number: controls, format characters (U+202E reverses the rest of a line), line and paragraph
//! separators, spaces other than U+0020, unassigned and private characters, and characters without
//! width.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use unicode_width::UnicodeWidthChar;

/// Most characters of one text that are shown.
const MOST_SHOWN: usize = 128;

/// Characters that Unicode counts as letters and that look like nothing
/// (`Default_Ignorable_Code_Point`), and the empty Braille pattern.
const BLANK: [char; 5] = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}', '\u{2800}'];

/// Shows a text that others wrote in a message: quoted, escaped, cut after 128 characters.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        f.write_str("\"")?;
        for character in characters.by_ref().take(MOST_SHOWN) {
            match character {
                '\'' => f.write_str("'")?,
                '"' | '\\' => write!(f, "\\{character}")?,
                _ if is_visible(character) => write!(f, "{character}")?,
                _ => write!(f, "{}", Escaped(character))?,
            }
        }
        let rest = characters.next().map_or("", |_| "…");
        write!(f, "{rest}\"")
    }
}

/// A path quoted as one word of a shell (POSIX, Shell Command Language, 2.2 "Quoting").
pub fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A message or a table's cell on one line: every character that cannot be seen is escaped.
pub fn one_line(message: &str) -> String {
    escape(message, is_visible)
}

/// A text of several lines: every character that cannot be seen is escaped, except newlines and
/// tabs.
pub fn lines(text: &str) -> String {
    escape(text, |character| {
        is_visible(character) || matches!(character, '\n' | '\t')
    })
}

/// A JSON document, indented by two. Characters that cannot be seen are written as `\uXXXX` (RFC
/// 8259, section 7): a parser reads the same text, and a terminal does not act on it.
pub fn json(document: &impl Serialize) -> String {
    // As below.
    escape_json(serde_json::to_string_pretty(document).unwrap_or_default())
}

/// A JSON document on one line; characters that cannot be seen are written as `\uXXXX`.
pub fn json_line(document: &impl Serialize) -> String {
    // Callers give plain values with strings for keys, which serde_json always takes.
    escape_json(serde_json::to_string(document).unwrap_or_default())
}

fn escape_json(text: String) -> String {
    // The usual document is long and has only these characters.
    let is_plain = |byte: u8| byte == b'\n' || byte == b' ' || byte.is_ascii_graphic();
    if text.bytes().all(is_plain) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    let mut units = [0; 2];
    for character in text.chars() {
        // Outside strings, newline is the only control character of a document.
        if is_visible(character) || character == '\n' {
            shown.push(character);
        } else {
            for unit in character.encode_utf16(&mut units) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    shown
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> String {
    // Most texts have only these characters.
    if text
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic())
    {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if stays(character) {
            shown.push(character);
        } else {
            shown.push_str(&Escaped(character).to_string());
        }
    }
    shown
}

/// Is the character visible, with columns of its own? The standard library decides by general
/// category ([`char::escape_debug`]: escapes Cc, Cf, Cn, Co, Cs, Zl, Zp, and Zs but for the space).
fn is_visible(character: char) -> bool {
    let is_quote = matches!(character, '\'' | '"' | '\\');
    let is_printable = is_quote || character.escape_debug().len() == 1;
    let takes_width = character.width().is_some_and(|width| width > 0);
    is_printable && takes_width && !BLANK.contains(&character)
}

/// Shows a character by its number, or by its usual escape, such as `\n`.
struct Escaped(char);

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            '\n' => f.write_str("\\n"),
            '\r' => f.write_str("\\r"),
            '\t' => f.write_str("\\t"),
            other => write!(f, "{}", other.escape_unicode()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Characters that a terminal acts on, hides, or draws over their neighbours: some of each
    /// kind.
    const UNSEEN: &str = concat!(
        "\0\x07\x08\x1b\x7f",                                            // Cc, C0
        "\u{80}\u{9b}\u{9d}", // Cc, C1: 0x9b is CSI where a terminal takes eight bits
        "\u{ad}\u{61c}\u{180e}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}", // Cf
        "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}", // Cf
        "\u{fff9}\u{e0001}\u{e0041}", // Cf: annotations, tags
        "\u{2028}\u{2029}",   // Zl, Zp
        "\u{a0}\u{2003}\u{3000}", // Zs
        "\u{e000}\u{f8ff}\u{10fffd}", // Co
        "\u{378}\u{ffff}",    // Cn
        "\u{301}\u{34f}\u{20dd}\u{fe0f}\u{e0100}", // Mn, Me: no width
        "\u{115f}\u{1160}\u{3164}\u{ffa0}\u{2800}", // letters and a pattern without ink
    );

    #[test]
    fn shows_nothing_raw() {
        for (text, shown) in [
            ("web", "\"web\""),
            ("it's", "\"it's\""),
            ("a\x1b[31m\n\"\\", r#""a\u{1b}[31m\n\"\\""#),
            ("\u{202e}x", r#""\u{202e}x""#),
        ] {
            assert_eq!(Shown(text).to_string(), shown);
        }
        assert_eq!(Shown(&"x".repeat(200)).to_string().chars().count(), 131);
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        for (path, word) in [
            ("/etc/kcm/0,4", "/etc/kcm/0,4"),
            ("/a b", "'/a b'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }

    #[test]
    fn what_cannot_be_seen_is_shown_by_its_number_everywhere() {
        for character in UNSEEN.chars() {
            let number = format!("\\u{{{:x}}}", character as u32);
            assert_eq!(one_line(&character.to_string()), number);
            assert_eq!(
                lines(&format!("a\t{character}\n")),
                format!("a\t{number}\n")
            );
            assert_eq!(
                Shown(&character.to_string()).to_string().len(),
                number.len() + 2
            );
            let document = json(&Value::from(format!("a{character}b")));
            assert!(
                document.is_ascii() && !document.contains(char::is_control),
                "{document}"
            );
            let back: Value = serde_json::from_str(&document).unwrap();
            assert_eq!(back, format!("a{character}b"));
        }
    }

    #[test]
    fn what_can_be_seen_stays() {
        for text in ["a b", "é", "日本", "דג", "\\\"'", "🐟", "€—…"] {
            assert_eq!(one_line(text), text);
            assert_eq!(json(&Value::from(text)), Value::from(text).to_string());
        }
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line("a\nb\r\t\x07 é"), "a\\nb\\r\\t\\u{7} é");
    }
}
