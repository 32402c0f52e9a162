//! Escapes control characters in text that is printed to a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns whether a character controls a terminal instead of being shown: control characters (C0,
/// DEL, C1) other than tab and newline, and marks that reorder text.
pub fn is_terminal_control(c: char) -> bool {
    let reorders = matches!(
        c,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    reorders || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// Returns the text with each control character written as an escape (`\u{1b}`).
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    escape(text, is_terminal_control)
}

/// The same for a text whose escape sequences are colours of spcd's own.
pub fn escape_controls_beside_colours(text: &str) -> Cow<'_, str> {
    escape(text, |c| c != '\u{1b}' && is_terminal_control(c))
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            // Writing to a String does not fail.
            let _ = write!(plain, "{}", c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::escape_controls;

    #[test]
    fn what_acts_on_a_terminal_is_written_as_an_escape() {
        for (text, shown) in [
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("over\u{8}\rwritten", "over\\u{8}\\u{d}written"),
            ("\u{9b}31m", "\\u{9b}31m"),
            (
                "a\u{202e}b\u{2066}c\u{200f}",
                "a\\u{202e}b\\u{2066}c\\u{200f}",
            ),
            ("tab\t, line\n, ä, 漢, 😀", "tab\t, line\n, ä, 漢, 😀"),
        ] {
            assert_eq!(escape_controls(text), shown);
        }
    }
}
