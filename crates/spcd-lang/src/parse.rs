//! Parses one top-level block and continues after each error.

use std::collections::HashSet;

use super::lex::{Lexer, Token, TokenKind, UnclosedToken, is_invisible};
use super::syntax::{
    Attribute, Block, Body, Expression, ExpressionKind, Label, MAX_DEPTH, Problem, Span,
};

/// Maximum number of problems kept per block; further ones are counted.
pub const MAX_PROBLEMS: usize = 100;

/// Result of parsing a fragment of a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// Block, if its type could be read. An attribute at the top of a file is none.
    pub block: Option<Block>,
    /// Problems in it.
    pub problems: Vec<Problem>,
    /// Number of problems beyond those kept.
    pub suppressed: usize,
}

/// Marks an error whose problem was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ErrorReported;

pub(super) type Result<T> = std::result::Result<T, ErrorReported>;

/// Parses a fragment as [`super::block_splitter::split_blocks`] returns them.
pub fn parse(text: &str) -> Parsed {
    let mut parser = Parser::new(text);
    let mut body = Body::default();
    parser.skip_newlines();
    let first = parser.peek();
    match first.kind {
        TokenKind::Word => parser.item(&mut body, &mut HashSet::new()),
        TokenKind::CloseBrace => {
            parser.problem(
                Problem::new(parser.span_of(&first), "this brace does not close anything")
                    .hint("remove it, or the `}` before it that ended its block too early"),
            );
            parser.at = parser.tokens.len();
        }
        _ => {
            parser.unexpected(&first, "a block such as `connection \"name\" {`");
            parser.at = parser.tokens.len();
        }
    }
    parser.skip_newlines();
    let rest = parser.peek();
    if rest.kind != TokenKind::End && parser.problems.is_empty() {
        let mut problem =
            Problem::new(parser.span_of(&rest), "expected a new line after the block");
        if rest.kind == TokenKind::CloseBrace {
            problem = Problem::new(parser.span_of(&rest), "this brace does not close anything")
                .hint("remove it");
        }
        parser.problem(problem);
    }
    for attribute in &body.attributes {
        let message = format!("`{}` stands outside of any block", attribute.name);
        parser.problem(
            Problem::new(attribute.span, message)
                .hint("move it between the braces of the block it belongs to"),
        );
    }
    let block = body.blocks.into_iter().next();
    Parsed {
        block,
        problems: parser.problems,
        suppressed: parser.further,
    }
}

/// Parses a whole text as a block's body: attributes and blocks.
pub fn parse_body(text: &str) -> (Body, Vec<Problem>) {
    let mut parser = Parser::new(text);
    let mut body = Body::default();
    loop {
        // `body` reports its problems itself.
        if let Ok(more) = parser.body() {
            body.attributes.extend(more.attributes);
            body.blocks.extend(more.blocks);
        }
        let token = parser.peek();
        if token.kind == TokenKind::End {
            return (body, parser.problems);
        }
        let span = parser.span_of(&token);
        parser.problem(Problem::new(span, "this brace does not close anything").hint("remove it"));
        parser.next();
    }
}

/// Parses a template that is the text of a JSON string; every span in the result is `span`.
pub(super) fn parse_text(text: &str, span: Span) -> (Expression, Vec<Problem>) {
    let mut parser = Parser {
        fixed_span: Some(span),
        ..Parser::new("")
    };
    parser.text = text;
    let expression = parser.text_template((0, text.len())).unwrap_or(Expression {
        span,
        kind: ExpressionKind::Broken,
    });
    (expression, parser.problems)
}

pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: Vec<Token>,
    pub(super) at: usize,
    /// Whether newlines are white space: between parentheses and brackets.
    pub(super) multiline: bool,
    pub(super) depth: usize,
    /// Span for all problems, for texts that do not stand in the file literally.
    fixed_span: Option<Span>,
    problems: Vec<Problem>,
    further: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            tokens: Lexer::new(text)
                .filter(|token| token.kind != TokenKind::Comment)
                .collect(),
            at: 0,
            multiline: false,
            depth: 0,
            fixed_span: None,
            problems: Vec::new(),
            further: 0,
        }
    }

    /// Returns the next token without consuming it.
    pub(super) fn peek(&mut self) -> Token {
        if self.multiline {
            self.skip_newlines();
        }
        self.token(self.at)
    }

    /// Consumes the next token.
    pub(super) fn next(&mut self) -> Token {
        let token = self.peek();
        self.at = (self.at + 1).min(self.tokens.len());
        token
    }

    /// Consumes the next token if it is of that kind.
    pub(super) fn take(&mut self, kind: TokenKind) -> Option<Token> {
        (self.peek().kind == kind).then(|| self.next())
    }

    /// Returns the token at an index; past the last one, the end.
    pub(super) fn token(&self, index: usize) -> Token {
        let end = self
            .tokens
            .last()
            .map_or(self.text.len(), |token| token.end);
        let past = Token {
            kind: TokenKind::End,
            start: end,
            end,
            unclosed: None,
        };
        self.tokens.get(index).copied().unwrap_or(past)
    }

    pub(super) fn skip_newlines(&mut self) {
        while self
            .tokens
            .get(self.at)
            .is_some_and(|token| token.kind == TokenKind::Newline)
        {
            self.at += 1;
        }
    }

    pub(super) fn span(&self, start: usize, end: usize) -> Span {
        self.fixed_span.unwrap_or_else(|| Span::new(start, end))
    }

    pub(super) fn span_of(&self, token: &Token) -> Span {
        // A newline and the end are shown as the place just after the text before them.
        match token.kind {
            TokenKind::Newline | TokenKind::End => self.span(token.start, token.start + 1),
            _ => self.span(token.start, token.end),
        }
    }

    pub(super) fn problem(&mut self, problem: Problem) -> ErrorReported {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.further += 1;
        }
        ErrorReported
    }

    /// Reports that something else was expected.
    pub(super) fn unexpected(&mut self, token: &Token, expected: &str) -> ErrorReported {
        let span = self.span_of(token);
        if token.unclosed == Some(UnclosedToken::Quote) {
            return self.open_quote(token);
        }
        let text = token.text(self.text);
        let found = match token.kind {
            TokenKind::Newline => "the end of the line".to_owned(),
            TokenKind::End => "the end".to_owned(),
            // The content of a word, number or text may be a secret.
            TokenKind::Word => "a word".to_owned(),
            TokenKind::Number => "a number".to_owned(),
            TokenKind::Quoted | TokenKind::Heredoc => "a text".to_owned(),
            TokenKind::Unknown if invisible(text).is_some() => invisible(text).unwrap_or_default(),
            TokenKind::Unknown if !is_mark(text) => {
                "a character that has no meaning here".to_owned()
            }
            _ => format!("`{text}`"),
        };
        let problem = Problem::new(span, format!("expected {expected}, found {found}"));
        self.problem(match mark_hint(text) {
            Some(hint) if token.kind == TokenKind::Unknown => problem.hint(hint),
            _ => problem,
        })
    }

    pub(super) fn open_quote(&mut self, token: &Token) -> ErrorReported {
        let span = self.span_of(token);
        if let Some(at) = open_template(token.text(self.text)) {
            let start = token.start + at;
            let mark = &self.text[start..=start];
            let span = self.span(start, start + 2);
            let problem = Problem::new(span, format!("this `{mark}{{` is never closed"));
            return self.problem(problem.hint(format!(
                "type `}}` where it ends; write `{mark}{mark}{{` if no template is meant"
            )));
        }
        self.problem(
            Problem::new(
                span,
                "this quote is never closed; a text ends on the line it begins on",
            )
            .hint("type `\"` where the text ends; for several lines use a heredoc (`<<EOT`)"),
        )
    }

    /// Parses one level deeper, up to the maximum depth.
    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            let token = self.peek();
            let span = self.span_of(&token);
            let message = format!("this is nested more than {MAX_DEPTH} levels deep");
            return Err(self.problem(Problem::new(span, message)));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Parses an attribute or a block; the next token is a word.
    fn item(&mut self, body: &mut Body, seen: &mut HashSet<&'a str>) {
        let begin = self.at;
        if self.read_item(body, seen).is_err() {
            self.recover(begin);
        }
    }

    fn read_item(&mut self, body: &mut Body, seen: &mut HashSet<&'a str>) -> Result<()> {
        let begin = self.at;
        let name = self.next();
        let text = name.text(self.text);
        let span = self.span_of(&name);
        let next = self.peek();
        match next.kind {
            TokenKind::Equal | TokenKind::Colon | TokenKind::EqualEqual => {
                self.next();
                if !seen.insert(text) {
                    let problem =
                        Problem::new(span, format!("`{text}` is written twice in this block"));
                    self.problem(problem.hint("keep one of the two"));
                }
                if next.kind != TokenKind::Equal {
                    let span = self.span_of(&next);
                    let found = next.text(self.text);
                    let message = format!("expected `=` after `{text}`, found `{found}`");
                    let problem = Problem::new(span, message);
                    self.problem(problem.hint(format!("write `{text} = …`")));
                }
                let value = self.value();
                let failed = value.is_err();
                let value = value.unwrap_or(Expression {
                    span,
                    kind: ExpressionKind::Broken,
                });
                body.attributes.push(Attribute {
                    name: text.into(),
                    span,
                    value,
                });
                if failed {
                    self.recover(begin);
                }
                Ok(())
            }
            TokenKind::Word | TokenKind::Quoted | TokenKind::OpenBrace => {
                let block = self.block(text, span)?;
                if seen.contains(text) {
                    let message = format!("`{text}` is both an attribute and a block");
                    self.problem(Problem::new(span, message).hint("keep one of the two"));
                }
                body.blocks.push(block);
                Ok(())
            }
            _ => {
                let expected = "expected `=` and a value after this name, or `{` for a block";
                let message = match invisible(next.text(self.text)) {
                    Some(invisible) => format!("{expected}, found {invisible}"),
                    None => expected.to_owned(),
                };
                let problem = Problem::new(self.span_of(&next), message);
                let hint =
                    mark_hint(next.text(self.text)).filter(|_| next.kind == TokenKind::Unknown);
                Err(self.problem(problem.hint(hint.unwrap_or("write `name = value`"))))
            }
        }
    }

    /// Parses an attribute's value and the end of its line.
    fn value(&mut self) -> Result<Expression> {
        let first = self.peek();
        if matches!(
            first.kind,
            TokenKind::Newline | TokenKind::End | TokenKind::CloseBrace
        ) {
            let span = self.span_of(&first);
            let problem = Problem::new(span, "expected a value after `=`");
            return Err(self.problem(problem.hint("write a text in quotes, a number, a list …")));
        }
        let value = self.expression()?;
        let after = self.peek();
        if matches!(
            after.kind,
            TokenKind::Newline | TokenKind::End | TokenKind::CloseBrace
        ) {
            return Ok(value);
        }
        if after.unclosed == Some(UnclosedToken::Quote) {
            let span = self.span_of(&after);
            let problem = Problem::new(span, "this quote opens a text that is never closed");
            return Err(self.problem(problem.hint("type the missing `\"` before the text")));
        }
        let span = self.span_of(&after);
        let problem = Problem::new(span, "expected a new line after the value");
        let hint = match after.kind {
            TokenKind::Comma => "attributes are ended by a new line: remove the comma",
            TokenKind::Quoted => "several texts are a list: `[\"…\", \"…\"]`",
            TokenKind::Word if self.token(self.at + 1).kind == TokenKind::Equal => {
                "write each attribute on its own line"
            }
            TokenKind::Unknown if after.text(self.text) == ";" => {
                "attributes are ended by a new line: remove the `;`"
            }
            TokenKind::Unknown => {
                mark_hint(after.text(self.text)).unwrap_or("put a text in quotes: `\"…\"`")
            }
            _ => "put a text in quotes: `\"…\"`",
        };
        Err(self.problem(problem.hint(hint)))
    }

    /// Reads a block's labels and its opening brace.
    fn header(&mut self, kind: &str) -> Result<(Vec<Label>, Token)> {
        let mut labels = Vec::new();
        loop {
            let token = self.peek();
            match token.kind {
                TokenKind::Word => {
                    let text = token.text(self.text);
                    labels.push(Label {
                        text: text.into(),
                        span: self.span_of(&token),
                    });
                    self.next();
                }
                TokenKind::Quoted if token.unclosed.is_none() => {
                    self.next();
                    let text = self.label(&token)?;
                    labels.push(Label {
                        text: text.into(),
                        span: self.span_of(&token),
                    });
                }
                TokenKind::OpenBrace => return Ok((labels, self.next())),
                TokenKind::Newline => return Ok((labels, self.brace_below(kind, &token)?)),
                // Syntax of other languages: `connection "name": {`, `connection "name" = {`.
                TokenKind::Equal | TokenKind::Colon
                    if self.token(self.at + 1).kind == TokenKind::OpenBrace =>
                {
                    let span = self.span_of(&token);
                    let mark = token.text(self.text);
                    let message = format!("expected `{{` after a block's labels, found `{mark}`");
                    let problem = Problem::new(span, message);
                    self.problem(problem.hint(format!("remove the `{mark}`")));
                    self.next();
                }
                TokenKind::Equal if labels.len() == 1 => {
                    let message = "a name before `=` is one word without spaces";
                    let span = self.span_of(&token);
                    return Err(self.problem(Problem::new(span, message)));
                }
                _ => return Err(self.unexpected(&token, "a block's label in quotes, or `{`")),
            }
        }
    }

    /// Consumes an opening brace on a line below its block's name.
    fn brace_below(&mut self, kind: &str, newline: &Token) -> Result<Token> {
        let mut next = self.at;
        while self.token(next).kind == TokenKind::Newline {
            next += 1;
        }
        let brace = self.token(next);
        if brace.kind == TokenKind::OpenBrace {
            let message = "the opening brace stands on another line than its block's name";
            let problem = Problem::new(self.span_of(&brace), message);
            self.problem(problem.hint(format!("write `{kind} … {{` on one line")));
            self.at = next + 1;
            return Ok(brace);
        }
        let message = "expected `=` after the name, or `{` at the end of the line";
        let problem = Problem::new(self.span_of(newline), message);
        let hint = "write `name = …` for an attribute, `type \"label\" {` for a block";
        Err(self.problem(problem.hint(hint)))
    }

    fn block(&mut self, kind: &str, span: Span) -> Result<Block> {
        let (labels, open) = self.header(kind)?;
        let outer = std::mem::replace(&mut self.multiline, false);
        let body = self.nested(Self::body);
        self.multiline = outer;
        let body = body?;
        let Some(close) = self.take(TokenKind::CloseBrace) else {
            let token = self.peek();
            return Err(self.unexpected(&token, "`}`"));
        };
        // A second item on the block's last line would be hard to read.
        let after = self.token(self.at);
        if !matches!(
            after.kind,
            TokenKind::Newline | TokenKind::End | TokenKind::CloseBrace
        ) {
            let span = self.span_of(&after);
            self.problem(Problem::new(span, "expected a new line after the block"));
        }
        let [open, close] = [open, close].map(|token| self.span_of(&token).start);
        Ok(Block {
            kind: kind.into(),
            span,
            labels,
            body,
            open,
            close,
        })
    }

    fn body(&mut self) -> Result<Body> {
        let mut body = Body::default();
        let mut seen = HashSet::new();
        loop {
            self.skip_newlines();
            let token = self.peek();
            match token.kind {
                TokenKind::CloseBrace | TokenKind::End => break,
                TokenKind::Word => self.item(&mut body, &mut seen),
                TokenKind::Quoted if self.token(self.at + 1).kind == TokenKind::Equal => {
                    let span = self.span_of(&token);
                    let problem =
                        Problem::new(span, "an attribute's name is written without quotes");
                    self.problem(problem.hint("remove the quotes around the name"));
                    self.recover(self.at);
                }
                _ => {
                    let begin = self.at;
                    self.unexpected(&token, "an attribute (`name = value`), a block or `}`");
                    self.next();
                    self.recover(begin);
                }
            }
        }
        body.attributes.shrink_to_fit();
        Ok(body)
    }

    /// Skips to the end of the broken item that begins at `begin`.
    fn recover(&mut self, begin: usize) {
        let mut braces = 0_usize;
        for index in begin..self.at {
            match self.token(index).kind {
                TokenKind::OpenBrace => braces += 1,
                TokenKind::CloseBrace => braces = braces.saturating_sub(1),
                _ => {}
            }
        }
        loop {
            match self.token(self.at).kind {
                TokenKind::End => return,
                TokenKind::OpenBrace => braces += 1,
                TokenKind::CloseBrace if braces == 0 => return,
                TokenKind::CloseBrace => braces -= 1,
                TokenKind::Newline if braces == 0 && self.item_follows() => return,
                // All newlines at once: each one would look as far ahead as the first.
                TokenKind::Newline => {
                    self.skip_newlines();
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Returns whether the text after the newlines looks like the beginning of an item.
    fn item_follows(&self) -> bool {
        let mut index = self.at;
        while self.token(index).kind == TokenKind::Newline {
            index += 1;
        }
        match self.token(index).kind {
            TokenKind::CloseBrace | TokenKind::End => return true,
            TokenKind::Word => {}
            _ => return false,
        }
        loop {
            index += 1;
            match self.token(index).kind {
                TokenKind::Word | TokenKind::Quoted => {}
                kind => {
                    return matches!(
                        kind,
                        TokenKind::Equal | TokenKind::Colon | TokenKind::OpenBrace
                    );
                }
            }
        }
    }
}

/// Returns the offset of the unclosed `${` because of which a quote is open, although its line has
/// another quote.
fn open_template(text: &str) -> Option<usize> {
    let at = ["${", "%{"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min()?;
    let escaped = at > 0 && text[..at].ends_with(&text[at..=at]);
    (!escaped && text[at..].contains('"') && !text[at..].contains('}')).then_some(at)
}

/// Returns whether a character that begins no token may be shown: users type it by habit.
fn is_mark(text: &str) -> bool {
    mark_hint(text).is_some()
}

/// Returns what to type instead of a character that users type by habit.
pub(super) fn mark_hint(text: &str) -> Option<&'static str> {
    match text {
        "“" | "”" | "„" | "«" | "»" | "‘" | "’" | "‚" => {
            Some("use straight double quotes: `\"…\"`")
        }
        "'" | "`" => Some("use double quotes: `\"…\"`"),
        ";" => Some("remove it: a new line ends an attribute"),
        _ if invisible(text).is_some() => Some("remove it, or type a space instead"),
        _ => None,
    }
}

/// Returns the name of an invisible character.
pub(super) fn invisible(text: &str) -> Option<String> {
    let mut characters = text.chars();
    let character = characters.next().filter(|first| is_invisible(*first))?;
    let what = match character {
        '\u{a0}' => "a no-break space",
        '\u{200b}' => "a zero-width space",
        _ => "an invisible character",
    };
    Some(format!("{what} (U+{:04X})", u32::from(character)))
}
