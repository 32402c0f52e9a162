//! Splits a file's text into top-level blocks by counting braces.

use super::lex::{Lexer, Token, TokenKind, UnclosedToken, line_end};
use super::syntax::{Problem, Span};

/// Block types at the top level of a file.
pub const TOP_LEVEL: [&str; 7] = [
    "connection",
    "plugin",
    "mirror",
    "locals",
    "options",
    "workspace",
    "partition",
];

/// Text of a block, or other text between two blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Offset of its first byte.
    pub start: usize,
    /// Offset after its last byte.
    pub end: usize,
    /// Line of its first byte, from 1.
    pub line: u32,
    /// Whether it is a closing brace without an opening one, or attributes before such a brace. The
    /// block before it has probably ended too early.
    pub is_stray: bool,
}

/// Fragments of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitText {
    /// Fragments in the order of the file.
    pub fragments: Vec<Fragment>,
    /// Problem because of which the borders after some place are unknown. Its span counts from the
    /// start of the text.
    pub unclosed: Option<Problem>,
}

/// Splits a file's text at the borders of its top-level blocks.
pub fn split_blocks(text: &str) -> SplitText {
    let mut splitter = Splitter::new(text);
    for token in Lexer::new(text) {
        if let Some(problem) = never_closed(&token) {
            let from = splitter.start.unwrap_or(token.start);
            let mut pieces = splitter.fragments;
            pieces.retain(|piece| piece.end <= from);
            return SplitText {
                fragments: pieces,
                unclosed: Some(problem),
            };
        }
        match token.kind {
            TokenKind::Comment => {}
            TokenKind::Newline | TokenKind::End => splitter.end_line(&token),
            _ => splitter.take(&token),
        }
    }
    let open = splitter.open_brace();
    SplitText {
        fragments: splitter.fragments,
        unclosed: open,
    }
}

/// State of the splitter: the finished fragments and the current one.
struct Splitter<'a> {
    text: &'a str,
    fragments: Vec<Fragment>,
    /// Offset up to which lines were counted, and the line there.
    counted: (usize, u32),
    /// Start and end of the current fragment, and its first token.
    start: Option<usize>,
    end: usize,
    first: TokenKind,
    /// Offsets of its open braces.
    braces: Vec<usize>,
    /// Start of the current line, and whether it contains a `=`.
    line_start: usize,
    equal_in_line: bool,
}

impl<'a> Splitter<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            fragments: Vec::new(),
            counted: (0, 1),
            start: None,
            end: 0,
            first: TokenKind::End,
            braces: Vec::new(),
            line_start: 0,
            equal_in_line: false,
        }
    }

    fn line_of(&mut self, offset: usize) -> u32 {
        let (at, line) = self.counted;
        self.counted = (offset, line + newlines(&self.text[at..offset]));
        self.counted.1
    }

    /// Ends the current fragment if no brace is open.
    fn end_line(&mut self, token: &Token) {
        if let (Some(from), true) = (self.start, self.braces.is_empty()) {
            let (text, end) = (self.text, self.end);
            let line = self.line_of(from);
            // A brace on the line after a header belongs to it.
            let headless = self.first == TokenKind::OpenBrace;
            match self.fragments.last_mut() {
                Some(header) if headless && is_header(&text[header.start..header.end]) => {
                    header.end = end;
                }
                _ => {
                    let stray = self.first == TokenKind::CloseBrace;
                    if stray {
                        mark_stray_attributes(&mut self.fragments, text);
                    }
                    self.fragments.push(Fragment {
                        start: from,
                        end,
                        line,
                        is_stray: stray,
                    });
                }
            }
            self.start = None;
        }
        self.line_start = token.end;
        self.equal_in_line = false;
    }

    fn take(&mut self, token: &Token) {
        if self.start.is_none() {
            self.start = Some(token.start);
            self.first = token.kind;
        }
        self.end = token.end;
        match token.kind {
            TokenKind::OpenBrace => self.braces.push(token.start),
            TokenKind::CloseBrace => drop(self.braces.pop()),
            TokenKind::Equal => self.equal_in_line = true,
            // An open quote extends to the end of its line. The swallowed text nearly always
            // includes the brace of a header (`connection "a {`) or of a one-line block (`{ plugin
            // = "aws }`).
            TokenKind::Quoted if token.unclosed == Some(UnclosedToken::Quote) => {
                let swallowed = token.text(self.text).trim_end();
                let is_of_line = |brace: &usize| *brace >= self.line_start;
                if swallowed.ends_with('{') && !self.equal_in_line {
                    self.braces.push(token.start + swallowed.len() - 1);
                } else if swallowed.ends_with('}') && self.braces.last().is_some_and(is_of_line) {
                    self.braces.pop();
                }
            }
            _ => {}
        }
    }

    /// Returns the problem of a brace that is open at the end of the text.
    fn open_brace(&mut self) -> Option<Problem> {
        let outer = *self.braces.first()?;
        let from = self.start.unwrap_or(outer);
        let brace = self.braces.last().copied().unwrap_or(outer);
        let problem = Problem::new(Span::new(brace, brace + 1), "this brace is never closed");
        let Some(offset) = next_header(self.text, from) else {
            return Some(problem.hint("type `}` where the block ends"));
        };
        let line = self.line_of(from) + newlines(&self.text[from..offset]);
        Some(problem.hint(format!(
            "type `}}` before line {line}, where the next block begins"
        )))
    }
}

fn newlines(text: &str) -> u32 {
    u32::try_from(text.bytes().filter(|&byte| byte == b'\n').count()).unwrap_or(u32::MAX)
}

fn never_closed(token: &Token) -> Option<Problem> {
    let span = Span::new(token.start, token.start + 2);
    match token.unclosed? {
        UnclosedToken::Comment => Some(
            Problem::new(span, "this comment is never closed")
                .hint("type `*/` where it ends, or begin each of its lines with `#`"),
        ),
        UnclosedToken::Heredoc => Some(
            Problem::new(span, "this heredoc is never closed")
                .hint("write its marker alone on the line after its last one"),
        ),
        // The token ends with its line, so the borders of blocks are known.
        UnclosedToken::Quote => None,
    }
}

/// Returns whether a fragment looks like a block's header without its brace.
fn is_header(text: &str) -> bool {
    let mut tokens = Lexer::new(text).filter(|token| token.kind != TokenKind::Comment);
    tokens
        .next()
        .is_some_and(|token| token.kind == TokenKind::Word)
        && tokens.all(|token| {
            matches!(
                token.kind,
                TokenKind::Word | TokenKind::Quoted | TokenKind::End
            )
        })
}

/// Marks the attributes between the last block and a stray brace.
fn mark_stray_attributes(pieces: &mut [Fragment], text: &str) {
    for piece in pieces.iter_mut().rev() {
        let mut tokens = Lexer::new(&text[piece.start..piece.end]);
        let loose = tokens
            .next()
            .is_some_and(|token| token.kind == TokenKind::Word)
            && tokens
                .next()
                .is_some_and(|token| token.kind == TokenKind::Equal);
        if !loose || piece.is_stray {
            break;
        }
        piece.is_stray = true;
    }
}

/// Returns the first line after `from` that begins, without indentation, like a top-level block.
fn next_header(text: &str, from: usize) -> Option<usize> {
    let mut line = line_end(text, from) + 1;
    while let Some(rest) = text.get(line..).filter(|rest| !rest.is_empty()) {
        let word = rest.split([' ', '\t', '"', '{', '\n']).next().unwrap_or("");
        let end = line_end(text, line);
        if TOP_LEVEL.contains(&word) && text[line..end].trim_end().ends_with('{') {
            return Some(line);
        }
        line = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::split_blocks;

    fn pieces(text: &str) -> Vec<(u32, &str)> {
        split_blocks(text)
            .fragments
            .iter()
            .map(|piece| (piece.line, &text[piece.start..piece.end]))
            .collect()
    }

    #[test]
    fn blocks_are_told_apart_whatever_they_hold() {
        let text = "# {\nconnection \"a\" {\n  x = \"}\" // {\n  y = <<E\n}{\nE\n}\n\n/* { */ plugin \"b\" { z = \"${\"}\"}\" }\nconnection \"c\" {}";
        assert_eq!(
            pieces(text),
            [
                (
                    2,
                    "connection \"a\" {\n  x = \"}\" // {\n  y = <<E\n}{\nE\n}"
                ),
                (9, "plugin \"b\" { z = \"${\"}\"}\" }"),
                (10, "connection \"c\" {}"),
            ]
        );
        assert_eq!(split_blocks(text).unclosed, None);
    }

    #[test]
    fn an_open_quote_costs_no_other_block() {
        for first in [
            "connection \"a\" {\n  password = \"x\n}",
            "connection \"a {\n  plugin = \"x\"\n}",
            "connection \"a\" { plugin = \"x }",
            "connection \"a\" {\n  limiter \"x {\n  }\n}",
        ] {
            let text = format!("{first}\nconnection \"b\" {{\n}}\n");
            assert_eq!(pieces(&text).len(), 2, "{text}");
            assert_eq!(pieces(&text)[0].1, first);
            assert_eq!(split_blocks(&text).unclosed, None);
        }
    }

    #[test]
    fn an_open_brace_puts_the_rest_in_doubt_and_says_where_it_is_missing() {
        let text = "connection \"a\" {\n}\nconnection \"b\" {\n  x = 1\n\nconnection \"c\" {\n}\n";
        let cut = split_blocks(text);
        assert_eq!(cut.fragments.len(), 1);
        let problem = cut.unclosed.unwrap();
        assert_eq!(
            problem.span.start as usize,
            text.find("\"b\" {").unwrap() + 4
        );
        assert_eq!(
            problem.hint.unwrap(),
            "type `}` before line 6, where the next block begins"
        );
    }

    #[test]
    fn a_brace_on_the_next_line_belongs_to_its_header() {
        assert_eq!(pieces("connection \"a\"\n\n{\n x = 1\n}\n{\n}\n").len(), 2);
    }

    #[test]
    fn a_stray_brace_marks_the_loose_attributes_before_it() {
        let text = "connection \"a\" {\n}\n}\nx = 1\n}\nconnection \"b\" {\n}\n";
        let strays: Vec<_> = split_blocks(text)
            .fragments
            .iter()
            .map(|piece| piece.is_stray)
            .collect();
        assert_eq!(strays, [false, true, true, true, false]);
    }
}
