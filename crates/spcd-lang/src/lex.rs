//! Bytes to tokens. Nothing is an error here: what no token begins with is [`TokenKind::Unknown`], and
//! a quote, heredoc or comment that stays open is a token with a [`Flaw`].

use super::syntax::MAX_DEPTH;
use super::word::word_length;

/// What a token is.
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
    /// One character that begins nothing.
    Unknown,
    /// The end of the text.
    End,
}

/// What a token lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The closing quote before the end of the line.
    Quote,
    /// The line with the heredoc's marker.
    Heredoc,
    /// `*/`.
    Comment,
}

/// A token: byte offsets into the text it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// The offset of its first byte.
    pub start: usize,
    /// The offset after its last byte.
    pub end: usize,
    /// What it lacks, if anything.
    pub flaw: Option<Flaw>,
}

impl Token {
    /// Its text.
    pub fn text<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.start..self.end).unwrap_or("")
    }
}

/// The tokens of a text, in order; ends with one [`TokenKind::End`].
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    text: &'a str,
    at: usize,
    ended: bool,
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of a text.
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
                flaw,
            };
        };
        let (kind, length) = match (first, self.byte(1)) {
            (b'#', _) | (b'/', b'/') => (TokenKind::Comment, line_end(self.text, start) - start),
            (b'/', b'*') => match self.text[start + 2..].find("*/") {
                Some(length) => (TokenKind::Comment, length + 4),
                None => {
                    flaw = Some(Flaw::Comment);
                    (TokenKind::Comment, self.text.len() - start)
                }
            },
            (b'"', _) => {
                let (end, closed) = quoted_end(self.text, start);
                if !closed {
                    flaw = Some(Flaw::Quote);
                }
                (TokenKind::Quoted, end - start)
            }
            (b'0'..=b'9', _) => (TokenKind::Number, self.number_length()),
            (b'<', b'<') => match heredoc(self.text, start) {
                Some(heredoc) => {
                    if !heredoc.closed {
                        flaw = Some(Flaw::Heredoc);
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
            flaw,
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

/// A heredoc's parts, as byte offsets into the text it was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heredoc {
    /// `<<-`: the lines' common indentation is no part of the value.
    pub indented: bool,
    /// The marker's word.
    pub marker: (usize, usize),
    /// The value's lines, the last one's newline included.
    pub body: (usize, usize),
    /// The end of the closing marker.
    pub end: usize,
    /// Whether the closing marker is there.
    pub closed: bool,
}

/// The heredoc that begins with the `<<` at `start`, if one does.
pub fn heredoc(text: &str, start: usize) -> Option<Heredoc> {
    let indented = text[start + 2..].starts_with('-');
    let from = start + 2 + usize::from(indented);
    let length = word_length(&text[from..]);
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

/// Whether a character takes no ink, or looks like a space and is none.
pub fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{a0}' | '\u{ad}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}'
    )
}

/// The offset of the line's newline, or of the text's end.
pub fn line_end(text: &str, from: usize) -> usize {
    text.as_bytes()
        .get(from..)
        .and_then(|rest| rest.iter().position(|&byte| byte == b'\n'))
        .map_or(text.len(), |length| from + length)
}

/// The end of the quoted template that begins at `start`, and whether it is closed. An open one
/// ends with its line: a quoted text cannot hold a newline, except within `${…}`.
pub fn quoted_end(text: &str, start: usize) -> (usize, bool) {
    let bytes = text.as_bytes();
    // One entry for each template we are in: `None` between quotes, `Some(braces)` within `${`.
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
                // No template is nested so deep, and to look for its end would take long.
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
    match word_length(text) {
        0 => {
            let length = text.chars().next().map_or(1, char::len_utf8);
            (TokenKind::Unknown, length)
        }
        length => (TokenKind::Word, length),
    }
}

#[cfg(test)]
mod tests {
    use super::{Flaw, Lexer, TokenKind};

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
                (first.kind, first.flaw),
                (TokenKind::Quoted, Some(Flaw::Quote)),
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
            assert_eq!(tokens[0].flaw, None, "{text:?}");
        }
    }

    #[test]
    fn what_stays_open_says_so() {
        assert_eq!(Lexer::new("/* x").next().unwrap().flaw, Some(Flaw::Comment));
        assert_eq!(
            Lexer::new("<<E\nx\n").next().unwrap().flaw,
            Some(Flaw::Heredoc)
        );
        assert_eq!(
            Lexer::new("<<E x\nE\n").next().unwrap().kind,
            TokenKind::Less
        );
    }
}
