//! Showing text that others wrote: in quotes, escaped, and bounded.

use std::fmt;
use std::path::Path;

/// The most characters that are shown of any one text.
const MOST_SHOWN: usize = 128;

/// A text of others as it may stand in a message: quoted, control characters escaped, cut after 128 characters.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        f.write_str("\"")?;
        for character in characters.by_ref().take(MOST_SHOWN) {
            match character {
                '\'' => f.write_str("'")?,
                _ => write!(f, "{}", character.escape_debug())?,
            }
        }
        let rest = characters.next().map_or("", |_| "…");
        write!(f, "{rest}\"")
    }
}

/// A path as a shell takes it for one word (POSIX, Shell Command Language, 2.2 "Quoting").
pub fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A whole message on one line: whatever control character is left in it is escaped.
pub fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for character in message.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_nothing_raw() {
        for (text, shown) in [
            ("web", "\"web\""),
            ("it's", "\"it's\""),
            ("a\x1b[31m\n\"", r#""a\u{1b}[31m\n\"""#),
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
    fn a_message_is_one_line() {
        assert_eq!(one_line("a\nb\x07 é"), "a\\nb\\u{7} é");
    }
}
