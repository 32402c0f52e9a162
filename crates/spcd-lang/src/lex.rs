//! Splits a text into tokens. The lexer reports no errors: a character that begins no token is
//! [`TokenKind::Unknown`], and an open quote, heredoc or comment is marked by [`UnclosedToken`].

use super::syntax::MAX_DEPTH;
use super::word::identifier_length;

/// Kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// The end of a line.
    Newline,
    /// A comment, without its newline.
    Comment,
    /// An identifier or keyword.
    Word,
    /// A number literal.
    Number,
    /// A quoted template, with its quotes.
    Quoted,
    /// From `<<` to the end of the line with the marker, without that line's newline.
    Heredoc,
    /// `{`
    OpenBrace,
    /// `}`
    CloseBrace,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `(`
    OpenParen,
    /// `)`
    CloseParen,
    /// `,`
    Comma,
    /// `.`
    Dot,
    /// `...`
    Ellipsis,
    /// `=`
    Equal,
    /// `:`
    Colon,
    /// `=>`
    Arrow,
    /// `?`
    Question,
    /// `+`
    Plus,
    /// `-`
    Minus,
    /// `*`
    Star,
    /// `/`
    Slash,
    /// `%`
    Percent,
    /// `!`
    Bang,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `==`
    EqualEqual,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// Character that begins no token.
    Unknown,
    /// The end of the text.
    End,
}

/// Ending that a token lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnclosedToken {
    /// The closing quote before the end of the line.
    Quote,
    /// The line with the heredoc's marker.
    Heredoc,
    /// `*/`.
    Comment,
}

/// Token, as byte offsets into its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Kind.
    pub kind: TokenKind,
    /// Offset of its first byte.
    pub start: usize,
    /// Offset after its last byte.
    pub end: usize,
    /// Ending that it lacks, if any.
    pub unclosed: Option<UnclosedToken>,
}

impl Token {
    /// Returns its text.
    pub fn text<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.start..self.end).unwrap_or("")
    }
}

/// Iterator over the tokens of a text; the last one is [`TokenKind::End`].
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    ended: bool,
}

impl<'a> Lexer<'a> {
    /// Creates a lexer at the beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            ended: false,
        }
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text
            .as_bytes()
            .get(self.at + ahead)
            .copied()
            .unwrap_or(0)
    }

    fn next_token(&mut self) -> Token {
        while matches!(self.byte(0), b' ' | b'\t' | b'\r') {
            self.at += 1;
        }
        let start = self.at;
        let mut flaw = None;
        let Some(&first) = self.text.as_bytes().get(start) else {
            return Token {
                kind: TokenKind::End,
                start,
                end: start,
                unclosed: flaw,
            };
        };
        let (kind, length) = match (first, self.byte(1)) {
            (b'#', _) | (b'/', b'/') => (TokenKind::Comment, line_end(self.text, start) - start),
            (b'/', b'*') => match self.text[start + 2..].find("*/") {
                Some(length) => (TokenKind::Comment, length + 4),
                None => {
                    flaw = Some(UnclosedToken::Comment);
                    (TokenKind::Comment, self.text.len() - start)
                }
            },
            (b'"', _) => {
                let (end, closed) = quoted_end(self.text, start);
                if !closed {
                    flaw = Some(UnclosedToken::Quote);
                }
                (TokenKind::Quoted, end - start)
            }
            (b'0'..=b'9', _) => (TokenKind::Number, self.number_length()),
            (b'<', b'<') => match heredoc(self.text, start) {
                Some(heredoc) => {
                    if !heredoc.closed {
                        flaw = Some(UnclosedToken::Heredoc);
                    }
                    (TokenKind::Heredoc, heredoc.end - start)
                }
                None => (TokenKind::Less, 1),
            },
            (first, second) => punctuation(first, second, self.byte(2))
                .unwrap_or_else(|| word_or_unknown(&self.text[start..])),
        };
        self.at = start + length;
        Token {
            kind,
            start,
            end: self.at,
            unclosed: flaw,
        }
    }

    fn number_length(&self) -> usize {
        let digits = |from: usize| {
            (from..)
                .take_while(|&ahead| self.byte(ahead).is_ascii_digit())
                .count()
        };
        let mut length = digits(0);
        if self.byte(length) == b'.' && self.byte(length + 1).is_ascii_digit() {
            length += 1 + digits(length + 1);
        }
        if matches!(self.byte(length), b'e' | b'E') {
            let sign = usize::from(matches!(self.byte(length + 1), b'+' | b'-'));
            let exponent = digits(length + 1 + sign);
            if exponent > 0 {
                length += 1 + sign + exponent;
            }
        }
        length
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.ended {
            return None;
        }
        let token = self.next_token();
        self.ended = token.kind == TokenKind::End;
        Some(token)
    }
}

/// Parts of a heredoc, as byte offsets into its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heredoc {
    /// Whether it is `<<-`: the common indentation of its lines is removed.
    pub indented: bool,
    /// Range of the marker's word.
    pub marker: (usize, usize),
    /// Range of its lines, the last newline included.
    pub body: (usize, usize),
    /// End of the closing marker.
    pub end: usize,
    /// Whether the closing marker exists.
    pub closed: bool,
}

/// Returns the heredoc that begins with the `<<` at `start`, if one does.
pub fn heredoc(text: &str, start: usize) -> Option<Heredoc> {
    let indented = text[start + 2..].starts_with('-');
    let from = start + 2 + usize::from(indented);
    let length = identifier_length(&text[from..]);
    let marker = (from, from + length);
    let first_line_end = line_end(text, start);
    if length == 0 || !text[marker.1..first_line_end].trim().is_empty() {
        return None;
    }
    let word = &text[marker.0..marker.1];
    let begin = (first_line_end + 1).min(text.len());
    let mut line = begin;
    while line < text.len() {
        let end = line_end(text, line);
        let content = &text[line..end];
        if content.trim() == word {
            let end = line + content.trim_end().len();
            return Some(Heredoc {
                indented,
                marker,
                body: (begin, line),
                end,
                closed: true,
            });
        }
        line = end + 1;
    }
    Some(Heredoc {
        indented,
        marker,
        body: (begin, text.len()),
        end: text.len(),
        closed: false,
    })
}

/// Returns whether a character is invisible, or a space other than the ASCII one.
pub fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{a0}' | '\u{ad}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}'
    )
}

/// Returns the offset of the line's newline, or of the end of the text.
pub fn line_end(text: &str, from: usize) -> usize {
    text.as_bytes()
        .get(from..)
        .and_then(|rest| rest.iter().position(|&byte| byte == b'\n'))
        .map_or(text.len(), |length| from + length)
}

/// Returns the end of the quoted template that begins at `start`, and whether it is closed. An open
/// one ends with its line: quoted text contains no newline, except within `${…}`.
pub fn quoted_end(text: &str, start: usize) -> (usize, bool) {
    let bytes = text.as_bytes();
    // One entry for each open template: `None` between quotes, the number of braces within `${`.
    let mut modes: Vec<Option<usize>> = vec![None];
    let mut at = start + 1;
    loop {
        let depth = modes.len();
        let (Some(&byte), Some(mode)) = (bytes.get(at), modes.last_mut()) else {
            break;
        };
        let next = bytes.get(at + 1).copied().unwrap_or(0);
        match mode {
            None => match byte {
                b'\n' => break,
                b'\\' if next != b'\n' && next != b'\r' => at += 1,
                b'"' => {
                    modes.pop();
                    if modes.is_empty() {
                        return (at + 1, true);
                    }
                }
                b'$' | b'%' if next == byte && bytes.get(at + 2) == Some(&b'{') => at += 2,
                b'$' | b'%' if next == b'{' => {
                    modes.push(Some(1));
                    at += 1;
                }
                _ => {}
            },
            Some(braces) => match byte {
                // No template is nested this deep, and searching its end would take long.
                b'"' if depth > 2 * MAX_DEPTH => break,
                b'"' => modes.push(None),
                b'{' => *braces += 1,
                b'}' => {
                    *braces -= 1;
                    if *braces == 0 {
                        modes.pop();
                    }
                }
                b'#' => at = line_end(text, at),
                b'/' if next == b'/' => at = line_end(text, at),
                _ => {}
            },
        }
        at += 1;
    }
    let end = line_end(text, start);
    (start + text[start..end].trim_end_matches('\r').len(), false)
}

/// The token that one to three bytes make, with its length; `None`: they are no punctuation.
fn punctuation(first: u8, second: u8, third: u8) -> Option<(TokenKind, usize)> {
    Some(match (first, second) {
        (b'\n', _) => (TokenKind::Newline, 1),
        (b'{', _) => (TokenKind::OpenBrace, 1),
        (b'}', _) => (TokenKind::CloseBrace, 1),
        (b'[', _) => (TokenKind::OpenBracket, 1),
        (b']', _) => (TokenKind::CloseBracket, 1),
        (b'(', _) => (TokenKind::OpenParen, 1),
        (b')', _) => (TokenKind::CloseParen, 1),
        (b',', _) => (TokenKind::Comma, 1),
        (b'.', b'.') if third == b'.' => (TokenKind::Ellipsis, 3),
        (b'.', _) => (TokenKind::Dot, 1),
        (b'=', b'=') => (TokenKind::EqualEqual, 2),
        (b'=', b'>') => (TokenKind::Arrow, 2),
        (b'=', _) => (TokenKind::Equal, 1),
        (b':', _) => (TokenKind::Colon, 1),
        (b'?', _) => (TokenKind::Question, 1),
        (b'+', _) => (TokenKind::Plus, 1),
        (b'-', _) => (TokenKind::Minus, 1),
        (b'*', _) => (TokenKind::Star, 1),
        (b'/', _) => (TokenKind::Slash, 1),
        (b'%', _) => (TokenKind::Percent, 1),
        (b'!', b'=') => (TokenKind::NotEqual, 2),
        (b'!', _) => (TokenKind::Bang, 1),
        (b'&', b'&') => (TokenKind::And, 2),
        (b'|', b'|') => (TokenKind::Or, 2),
        (b'<', b'=') => (TokenKind::LessEqual, 2),
        (b'<', _) => (TokenKind::Less, 1),
        (b'>', b'=') => (TokenKind::GreaterEqual, 2),
        (b'>', _) => (TokenKind::Greater, 1),
        _ => return None,
    })
}

/// The token at the start of a text that is no punctuation, with its length.
fn word_or_unknown(text: &str) -> (TokenKind, usize) {
    match identifier_length(text) {
        0 => {
            let length = text.chars().next().map_or(1, char::len_utf8);
            (TokenKind::Unknown, length)
        }
        length => (TokenKind::Word, length),
    }
}

#[cfg(test)]
mod tests {
    use super::{Lexer, TokenKind, UnclosedToken};

    fn kinds(text: &str) -> Vec<(TokenKind, &str)> {
        Lexer::new(text)
            .map(|token| (token.kind, token.text(text)))
            .collect()
    }

    #[test]
    fn every_byte_is_in_a_token_or_white_space() {
        let text = "a-b = \"x${ {y = \"}\"} }\" # c\r\n[1.5e3, 2...] → <<-E\n  }\"{\n  E\n}";
        assert_eq!(
            kinds(text),
            [
                (TokenKind::Word, "a-b"),
                (TokenKind::Equal, "="),
                (TokenKind::Quoted, "\"x${ {y = \"}\"} }\""),
                (TokenKind::Comment, "# c\r"),
                (TokenKind::Newline, "\n"),
                (TokenKind::OpenBracket, "["),
                (TokenKind::Number, "1.5e3"),
                (TokenKind::Comma, ","),
                (TokenKind::Number, "2"),
                (TokenKind::Ellipsis, "..."),
                (TokenKind::CloseBracket, "]"),
                (TokenKind::Unknown, "→"),
                (TokenKind::Heredoc, "<<-E\n  }\"{\n  E"),
                (TokenKind::Newline, "\n"),
                (TokenKind::CloseBrace, "}"),
                (TokenKind::End, ""),
            ]
        );
    }

    #[test]
    fn an_open_quote_ends_with_its_line() {
        for text in [
            "\"abc\nx = \"y\"",
            "\"abc\r\nx",
            "\"a ${b\nx = \"y\"",
            "\"a\\\nx",
            "\"a ${\"b}\nc\"",
        ] {
            let first = Lexer::new(text).next().unwrap();
            assert_eq!(
                (first.kind, first.unclosed),
                (TokenKind::Quoted, Some(UnclosedToken::Quote)),
                "{text:?}"
            );
            assert_eq!(first.text(text), text.lines().next().unwrap(), "{text:?}");
        }
    }

    #[test]
    fn escapes_and_templates_do_not_close_a_quote() {
        for text in [
            r#""a\"b""#,
            r#""$${""#,
            r#""%%{ x""#,
            "\"${\n{a = \"}\"}\n}\"",
            r#""a\\""#,
            "\"$\"",
        ] {
            let tokens: Vec<_> = Lexer::new(text).collect();
            assert_eq!(tokens.len(), 2, "{text:?}");
            assert_eq!(tokens[0].unclosed, None, "{text:?}");
        }
    }

    #[test]
    fn what_stays_open_says_so() {
        assert_eq!(
            Lexer::new("/* x").next().unwrap().unclosed,
            Some(UnclosedToken::Comment)
        );
        assert_eq!(
            Lexer::new("<<E\nx\n").next().unwrap().unclosed,
            Some(UnclosedToken::Heredoc)
        );
        assert_eq!(
            Lexer::new("<<E x\nE\n").next().unwrap().kind,
            TokenKind::Less
        );
    }
}
