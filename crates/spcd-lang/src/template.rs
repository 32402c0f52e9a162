//! Templates: texts with `${…}` and `%{…}` in them, in quotes or as heredocs.

use super::lex::{self, Lexer, Token, TokenKind};
use super::parse::{Parser, Result};
use super::syntax::{Expression, ExpressionKind, ForExpression, Problem, Span, TemplatePart};
use super::value::Value;

/// Part of a template before its directives are nested.
enum FlatPart {
    /// Literal text; in a heredoc at most one line.
    Text(String),
    Value(Expression),
    If(Expression, Span),
    Else(Span),
    EndIf(Span),
    For(Box<ForExpression>, Span),
    EndFor(Span),
}

/// Syntax of literal text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LiteralStyle {
    /// Between quotes, with backslash escapes.
    Quoted,
    /// Lines without escapes.
    Heredoc,
    /// Without escapes: a JSON string whose escapes were resolved.
    Plain,
}

impl Parser<'_> {
    /// Parses a template between quotes.
    pub(super) fn quoted_template(&mut self, token: &Token) -> Result<Expression> {
        let span = self.span_of(token);
        let range = (
            token.start + 1,
            token.end.saturating_sub(1).max(token.start + 1),
        );
        let flat = self.flat(range, LiteralStyle::Quoted)?;
        self.template(flat, span)
    }

    /// Parses a whole text as a template.
    pub(super) fn text_template(&mut self, range: (usize, usize)) -> Result<Expression> {
        let span = self.span(range.0, range.1);
        let flat = self.flat(range, LiteralStyle::Plain)?;
        self.template(flat, span)
    }

    /// Parses a heredoc.
    pub(super) fn heredoc(&mut self, token: &Token) -> Result<Expression> {
        let span = self.span_of(token);
        let Some(heredoc) = lex::heredoc(self.text, token.start) else {
            return Err(self.unexpected(token, "a heredoc"));
        };
        let mut flat = self.flat(heredoc.body, LiteralStyle::Heredoc)?;
        if heredoc.indented {
            outdent(&mut flat);
        }
        self.template(flat, span)
    }

    /// Parses a block's label in quotes: text without templates.
    pub(super) fn label(&mut self, token: &Token) -> Result<String> {
        match self.quoted_template(token)?.kind {
            ExpressionKind::Literal(Value::String(text)) => Ok(text.into()),
            _ => {
                let span = self.span_of(token);
                let problem = Problem::new(span, "a block's label is plain text");
                Err(self.problem(problem.hint("write `$${` for a `${` that is no template")))
            }
        }
    }

    fn template(&mut self, mut flat: Vec<FlatPart>, span: Span) -> Result<Expression> {
        // `"${x}"` is x itself, of any type.
        if flat.len() == 1
            && let Some(FlatPart::Value(expression)) =
                flat.pop_if(|part| matches!(part, FlatPart::Value(_)))
        {
            return Ok(Expression {
                span,
                kind: expression.kind,
            });
        }
        if flat.iter().all(|part| matches!(part, FlatPart::Text(_))) {
            let mut text = String::new();
            for part in flat {
                if let FlatPart::Text(part) = part {
                    if text.is_empty() {
                        text = part
                    } else {
                        text.push_str(&part)
                    }
                }
            }
            return Ok(Expression {
                span,
                kind: ExpressionKind::Literal(Value::String(text.into())),
            });
        }
        let mut rest = flat.into_iter();
        let (parts, end) = self.nest(&mut rest)?;
        if let Some(end) = end {
            let (FlatPart::Else(span) | FlatPart::EndIf(span) | FlatPart::EndFor(span)) = end
            else {
                return Ok(Expression {
                    span,
                    kind: ExpressionKind::Template(parts),
                });
            };
            return Err(self.problem(Problem::new(span, "this directive does not end anything")));
        }
        Ok(Expression {
            span,
            kind: ExpressionKind::Template(parts),
        })
    }

    /// Nests parts up to the directive that ends them; returns that directive.
    fn nest(
        &mut self,
        rest: &mut std::vec::IntoIter<FlatPart>,
    ) -> Result<(Vec<TemplatePart>, Option<FlatPart>)> {
        let mut parts = Vec::new();
        let mut text = String::new();
        while let Some(part) = rest.next() {
            if let FlatPart::Text(more) = &part {
                text.push_str(more);
                continue;
            }
            if !text.is_empty() {
                parts.push(TemplatePart::Text(std::mem::take(&mut text).into()));
            }
            match part {
                FlatPart::Value(value) => parts.push(TemplatePart::Value(value)),
                FlatPart::If(condition, span) => {
                    let (yes, mut end) = self.nested(|parser| parser.nest(rest))?;
                    let mut no = Vec::new();
                    if let Some(FlatPart::Else(_)) = end {
                        (no, end) = self.nested(|parser| parser.nest(rest))?;
                    }
                    if !matches!(end, Some(FlatPart::EndIf(_))) {
                        let problem = Problem::new(span, "this `if` is never ended");
                        return Err(self.problem(problem.hint("type `%{ endif }` after it")));
                    }
                    parts.push(TemplatePart::If(Box::new((condition, yes, no))));
                }
                FlatPart::For(head, span) => {
                    let (body, end) = self.nested(|parser| parser.nest(rest))?;
                    if !matches!(end, Some(FlatPart::EndFor(_))) {
                        let problem = Problem::new(span, "this `for` is never ended");
                        return Err(self.problem(problem.hint("type `%{ endfor }` after it")));
                    }
                    parts.push(TemplatePart::For(Box::new((*head, body))));
                }
                end => return Ok((parts, Some(end))),
            }
        }
        if !text.is_empty() {
            parts.push(TemplatePart::Text(text.into()));
        }
        Ok((parts, None))
    }

    fn flat(
        &mut self,
        (mut at, end): (usize, usize),
        style: LiteralStyle,
    ) -> Result<Vec<FlatPart>> {
        let text = self.text;
        let mut parts: Vec<FlatPart> = Vec::new();
        let mut literal = String::new();
        // After `~}`, white space at the beginning of the next text is removed.
        let mut trim = false;
        let flush = |parts: &mut Vec<FlatPart>, literal: &mut String, trim: &mut bool| {
            if literal.is_empty() {
                return;
            }
            let mut done = std::mem::take(literal);
            if std::mem::take(trim) {
                done = done.trim_start().to_owned();
            }
            parts.push(FlatPart::Text(done));
        };
        while at < end {
            let rest = text.get(at..end).unwrap_or("");
            // Text without special characters is copied at once.
            let plain = rest
                .bytes()
                .position(|byte| matches!(byte, b'$' | b'%' | b'\\' | b'\n'))
                .unwrap_or(rest.len());
            literal.push_str(&rest[..plain]);
            at += plain;
            let rest = &rest[plain..];
            let Some(first) = rest.chars().next() else {
                break;
            };
            match first {
                '$' | '%' if rest[1..].starts_with(first) && rest[2..].starts_with('{') => {
                    literal.push(first);
                    literal.push('{');
                    at += 3;
                }
                '$' | '%' if rest[1..].starts_with('{') => {
                    let strip = rest[2..].starts_with('~');
                    if strip && !literal.is_empty() {
                        literal.truncate(literal.trim_end().len());
                    }
                    flush(&mut parts, &mut literal, &mut trim);
                    let begin = at;
                    let (part, after, strip_next) = self.sequence(first, at, end)?;
                    debug_assert!(after > begin);
                    parts.push(part);
                    at = after;
                    trim = strip_next;
                }
                '\\' if style == LiteralStyle::Quoted => {
                    let (character, length) = self.escape(at, end)?;
                    literal.push(character);
                    at += length;
                }
                '\n' if style == LiteralStyle::Heredoc => {
                    literal.push('\n');
                    at += 1;
                    flush(&mut parts, &mut literal, &mut trim);
                }
                other => {
                    literal.push(other);
                    at += 1;
                }
            }
        }
        flush(&mut parts, &mut literal, &mut trim);
        Ok(parts)
    }

    /// Parses `${…}` or `%{…}`; returns it, its end, and whether it strips the text after it.
    fn sequence(&mut self, mark: char, at: usize, end: usize) -> Result<(FlatPart, usize, bool)> {
        let mut from = at + 2;
        if self.text[from..end].starts_with('~') {
            from += 1;
        }
        let mut tokens = Vec::new();
        let mut braces = 0_usize;
        let mut close = None;
        for mut token in Lexer::new(&self.text[from..end]) {
            token.start += from;
            token.end += from;
            match token.kind {
                TokenKind::Comment => continue,
                TokenKind::OpenBrace => braces += 1,
                TokenKind::CloseBrace if braces == 0 => {
                    close = Some(token);
                    break;
                }
                TokenKind::CloseBrace => braces -= 1,
                _ => {}
            }
            tokens.push(token);
        }
        let Some(close) = close else {
            let span = self.span(at, at + 2);
            let problem = Problem::new(span, format!("this `{mark}{{` is never closed"));
            return Err(self.problem(problem.hint(format!(
                "type `}}` where it ends; write `{mark}{mark}{{` if no template is meant"
            ))));
        };
        let strip = tokens.last().is_some_and(|last| {
            last.kind == TokenKind::Unknown
                && last.end == close.start
                && last.text(self.text) == "~"
        });
        if strip {
            tokens.pop();
        }
        let stop = tokens.last().map_or(from, |token| token.end);
        tokens.push(Token {
            kind: TokenKind::End,
            start: stop,
            end: stop,
            unclosed: None,
        });
        let span = self.span(at, close.end);

        let outer = (
            std::mem::replace(&mut self.tokens, tokens),
            self.at,
            self.multiline,
        );
        (self.at, self.multiline) = (0, true);
        let result = if mark == '$' {
            self.expression().map(FlatPart::Value)
        } else {
            self.directive(span)
        };
        let result = match result {
            Ok(part) => {
                let token = self.peek();
                if token.kind == TokenKind::End {
                    Ok(part)
                } else {
                    Err(self.unexpected(&token, "`}`"))
                }
            }
            Err(noted) => Err(noted),
        };
        (self.tokens, self.at, self.multiline) = outer;
        Ok((result?, close.end, strip))
    }

    fn directive(&mut self, span: Span) -> Result<FlatPart> {
        let keyword = self.peek();
        let word = if keyword.kind == TokenKind::Word {
            keyword.text(self.text)
        } else {
            ""
        };
        match word {
            "if" => {
                self.next();
                Ok(FlatPart::If(self.expression()?, span))
            }
            "for" => Ok(FlatPart::For(Box::new(self.for_head()?), span)),
            "else" | "endif" | "endfor" => {
                self.next();
                Ok(match word {
                    "else" => FlatPart::Else(span),
                    "endif" => FlatPart::EndIf(span),
                    _ => FlatPart::EndFor(span),
                })
            }
            _ => {
                let problem =
                    Problem::new(span, "expected `if`, `else`, `endif`, `for` or `endfor`");
                Err(self.problem(problem.hint("write `%%{` if no template is meant")))
            }
        }
    }

    /// Returns the character of a backslash escape, and the escape's length.
    fn escape(&mut self, at: usize, end: usize) -> Result<(char, usize)> {
        let rest = self.text.get(at + 1..end).unwrap_or("");
        let hexadecimal = |length: usize| {
            let digits = rest.get(1..1 + length)?;
            let digits = digits
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit())
                .then_some(digits)?;
            u32::from_str_radix(digits, 16)
                .ok()
                .and_then(char::from_u32)
        };
        let found = match rest.bytes().next() {
            Some(b'n') => Some(('\n', 2)),
            Some(b'r') => Some(('\r', 2)),
            Some(b't') => Some(('\t', 2)),
            Some(b'"') => Some(('"', 2)),
            Some(b'\\') => Some(('\\', 2)),
            Some(b'u') => hexadecimal(4).map(|character| (character, 6)),
            Some(b'U') => hexadecimal(8).map(|character| (character, 10)),
            _ => None,
        };
        found.ok_or_else(|| {
            let span = self.span(at, at + 1);
            let problem = Problem::new(span, "this backslash begins no escape");
            self.problem(problem.hint("type `\\\\` for a backslash"))
        })
    }
}

/// Removes the common indentation of a heredoc's lines; blank lines neither count nor change.
fn outdent(parts: &mut [FlatPart]) {
    let indentation = |text: &str| text.chars().take_while(|c| c.is_whitespace()).count();
    let mut least = usize::MAX;
    let mut lines = Vec::new();
    let mut line_begins = true;
    for (index, part) in parts.iter().enumerate() {
        let is_text = if let FlatPart::Text(text) = part {
            Some(text)
        } else {
            None
        };
        if line_begins {
            match is_text {
                Some(text) if text.trim().is_empty() && text.ends_with('\n') => {}
                Some(text) => {
                    least = least.min(indentation(text));
                    lines.push(index);
                }
                None => least = 0,
            }
        }
        line_begins = is_text.is_some_and(|text| text.ends_with('\n'));
    }
    for index in lines {
        if let Some(FlatPart::Text(text)) = parts.get_mut(index) {
            *text = text.chars().skip(least).collect();
        }
    }
}
