//! Parses expressions.

use super::lex::{Token, TokenKind, UnclosedToken};
use super::parse::{Parser, Result, invisible, mark_hint};
use super::syntax::{
    BinaryOperator, Call, Expression, ExpressionKind, ForExpression, MAX_DEPTH, Problem, Span,
    Step, UnaryOperator,
};
use super::value::Value;

impl Parser<'_> {
    /// Parses an expression.
    pub(super) fn expression(&mut self) -> Result<Expression> {
        self.nested(|parser| {
            let condition = parser.operation()?;
            if parser.take(TokenKind::Question).is_none() {
                return Ok(condition);
            }
            let yes = parser.expression()?;
            parser.expect(TokenKind::Colon, "`:` and the value for the other case")?;
            let no = parser.expression()?;
            let span = condition.span.to(no.span);
            Ok(Expression {
                span,
                kind: ExpressionKind::Conditional(Box::new((condition, yes, no))),
            })
        })
    }

    fn expect(&mut self, kind: TokenKind, expected: &str) -> Result<Token> {
        let token = self.peek();
        if token.kind == kind {
            Ok(self.next())
        } else {
            Err(self.unexpected(&token, expected))
        }
    }

    /// Parses operands and the operators between them.
    fn operation(&mut self) -> Result<Expression> {
        let first = self.operand()?;
        let Some((operator, level)) = operator(self.peek().kind) else {
            return Ok(first);
        };
        let mut operands = vec![first];
        let mut operators = vec![(operator, level)];
        self.next();
        loop {
            operands.push(self.operand()?);
            let Some(next) = operator_of(self) else { break };
            operators.push(next);
        }
        let mut operands = operands.into_iter();
        let mut operators = operators.into_iter().peekable();
        Ok(fold(0, &mut operands, &mut operators))
    }

    /// Parses a term with the signs before it and the steps after it.
    fn operand(&mut self) -> Result<Expression> {
        let mut signs: Vec<(UnaryOperator, Span)> = Vec::new();
        loop {
            let token = self.peek();
            let sign = match token.kind {
                TokenKind::Minus => UnaryOperator::Negate,
                TokenKind::Bang => UnaryOperator::Not,
                _ => break,
            };
            let span = self.span_of(&token);
            if signs.len() >= MAX_DEPTH {
                return Err(self.problem(Problem::new(span, "there are too many signs here")));
            }
            signs.push((sign, span));
            self.next();
        }
        let term = self.term()?;
        let mut operand = self.steps(term)?;
        while let Some((sign, span)) = signs.pop() {
            let span = span.to(operand.span);
            operand = match (sign, operand.kind) {
                (UnaryOperator::Negate, ExpressionKind::Literal(Value::Integer(number))) => {
                    Expression {
                        span,
                        kind: ExpressionKind::Literal(Value::Integer(-number)),
                    }
                }
                (_, kind) => {
                    let inner = Expression {
                        span: operand.span,
                        kind,
                    };
                    Expression {
                        span,
                        kind: ExpressionKind::Unary(sign, Box::new(inner)),
                    }
                }
            };
        }
        Ok(operand)
    }

    fn term(&mut self) -> Result<Expression> {
        let token = self.peek();
        let span = self.span_of(&token);
        match token.kind {
            TokenKind::Quoted => {
                self.next();
                self.quoted(&token)
            }
            TokenKind::Heredoc => {
                self.next();
                self.heredoc(&token)
            }
            TokenKind::Number => self.number_literal(&token),
            TokenKind::Word => {
                self.next();
                let name = token.text(self.text);
                if self.token(self.at).kind == TokenKind::OpenParen {
                    return self.call(name, span);
                }
                let kind = match name {
                    "true" => ExpressionKind::Literal(Value::Bool(true)),
                    "false" => ExpressionKind::Literal(Value::Bool(false)),
                    "null" => ExpressionKind::Literal(Value::Null),
                    _ => ExpressionKind::Variable(name.into()),
                };
                Ok(Expression { span, kind })
            }
            TokenKind::OpenParen => {
                self.next();
                let inner = self.lines(Self::expression)?;
                self.close(span, TokenKind::CloseParen, "`)`", inner.kind)
            }
            TokenKind::OpenBracket => self.list(),
            TokenKind::OpenBrace => self.object(),
            TokenKind::Slash | TokenKind::Dot | TokenKind::Star | TokenKind::Less => {
                let problem = Problem::new(span, "expected a value");
                Err(self.problem(problem.hint("put a path or pattern in quotes: `\"…\"`")))
            }
            TokenKind::Unknown => {
                let problem = unknown_mark(token.text(self.text), span);
                Err(self.problem(problem))
            }
            _ => Err(self.unexpected(&token, "a value")),
        }
    }

    fn number_literal(&mut self, token: &Token) -> Result<Expression> {
        let span = self.span_of(token);
        self.next();
        let value = self.number(token)?;
        // An address, version or duration without quotes: `10.0.0.1`, `1.2.3`, `30s`, `10.0.0.0/8`.
        let next = self.token(self.at);
        let continues = matches!(
            next.kind,
            TokenKind::Dot | TokenKind::Word | TokenKind::Number
        );
        if next.start == token.end && continues {
            let problem = Problem::new(span.to(self.span_of(&next)), "this is not a number");
            return Err(self.problem(problem.hint("put a text in quotes: `\"…\"`")));
        }
        Ok(Expression {
            span,
            kind: ExpressionKind::Literal(value),
        })
    }

    /// Parses with newlines as white space, up to the closing token.
    fn lines<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.multiline, true);
        let result = read(self);
        if result.is_ok() {
            self.skip_newlines();
        }
        self.multiline = outer;
        result
    }

    fn closed(&mut self, kind: TokenKind, expected: &str) -> Result<Token> {
        let token = self.token(self.at);
        if token.kind != kind {
            return Err(self.unexpected(&token, expected));
        }
        self.at += 1;
        Ok(token)
    }

    fn number(&mut self, token: &Token) -> Result<Value> {
        let text = token.text(self.text);
        let span = self.span_of(token);
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Value::Integer).map_err(|_| {
                let problem = Problem::new(span, "this number is too large to be kept exactly");
                self.problem(problem.hint("put it in quotes"))
            });
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() && same_digits(text, &number.to_string()) => {
                Ok(if number.fract() == 0.0 && number.abs() < 1e15 {
                    #[allow(clippy::cast_possible_truncation)]
                    Value::Integer(number as i128)
                } else {
                    Value::Float(number)
                })
            }
            _ => {
                let problem = Problem::new(span, "this number cannot be kept exactly");
                Err(self.problem(problem.hint("put it in quotes")))
            }
        }
    }

    fn call(&mut self, name: &str, span: Span) -> Result<Expression> {
        self.at += 1;
        let (arguments, spread) = self.lines(|parser| {
            let mut arguments = Vec::new();
            let mut spread = false;
            while parser.peek().kind != TokenKind::CloseParen {
                arguments.push(parser.expression()?);
                if parser.take(TokenKind::Ellipsis).is_some() {
                    spread = true;
                    break;
                }
                if parser.take(TokenKind::Comma).is_none() {
                    break;
                }
            }
            Ok((arguments, spread))
        })?;
        let call = ExpressionKind::Call(Box::new(Call {
            name: name.into(),
            span,
            arguments,
            spread,
        }));
        self.close(span, TokenKind::CloseParen, "`,` or `)`", call)
    }

    /// Takes the closing token of an expression that begins at `start`.
    fn close(
        &mut self,
        start: Span,
        token: TokenKind,
        expected: &str,
        kind: ExpressionKind,
    ) -> Result<Expression> {
        let close = self.closed(token, expected)?;
        let span = start.to(self.span_of(&close));
        Ok(Expression { span, kind })
    }

    fn list(&mut self) -> Result<Expression> {
        let open = self.next();
        let start = self.span_of(&open);
        if self.for_follows() {
            let result = self.lines(|parser| parser.for_expression(false))?;
            let kind = ExpressionKind::For(Box::new(result));
            return self.close(start, TokenKind::CloseBracket, "`]`", kind);
        }
        let elements = self.lines(|parser| {
            let mut elements = Vec::new();
            while parser.peek().kind != TokenKind::CloseBracket {
                elements.push(parser.expression()?);
                let after = parser.peek();
                match after.kind {
                    TokenKind::Comma => {
                        parser.next();
                    }
                    TokenKind::CloseBracket => break,
                    TokenKind::Quoted
                    | TokenKind::Number
                    | TokenKind::Word
                    | TokenKind::OpenBrace
                        if after.unclosed.is_none() =>
                    {
                        let span = parser.span_of(&after);
                        // `name =` on the next line: the closing bracket is missing.
                        let next = parser.token(parser.at + 1).kind;
                        let problem = Problem::new(span, "expected `,` or `]` before this");
                        return Err(parser.problem(problem.hint(
                            if after.kind == TokenKind::Word && next == TokenKind::Equal {
                                "type `]` where the list ends"
                            } else {
                                "put a comma between the elements of a list"
                            },
                        )));
                    }
                    _ => return Err(parser.unexpected(&after, "`,` or `]`")),
                }
            }
            Ok(elements)
        })?;
        self.close(
            start,
            TokenKind::CloseBracket,
            "`]`",
            ExpressionKind::List(elements),
        )
    }

    fn object(&mut self) -> Result<Expression> {
        let open = self.next();
        let start = self.span_of(&open);
        if self.for_follows() {
            let result = self.lines(|parser| parser.for_expression(true))?;
            let kind = ExpressionKind::For(Box::new(result));
            return self.close(start, TokenKind::CloseBrace, "`}`", kind);
        }
        let outer = std::mem::replace(&mut self.multiline, false);
        let items = self.object_items();
        self.multiline = outer;
        let items = items?;
        self.close(
            start,
            TokenKind::CloseBrace,
            "`}`",
            ExpressionKind::Object(items),
        )
    }

    fn object_items(&mut self) -> Result<Vec<(Expression, Expression)>> {
        let mut items = Vec::new();
        loop {
            self.skip_newlines();
            let token = self.peek();
            if token.kind == TokenKind::CloseBrace {
                return Ok(items);
            }
            let follows = self.token(self.at + 1).kind;
            let key = if token.kind == TokenKind::Word
                && matches!(follows, TokenKind::Equal | TokenKind::Colon)
            {
                self.next();
                let name = token.text(self.text);
                let kind = ExpressionKind::Literal(Value::String(name.into()));
                Expression {
                    span: self.span_of(&token),
                    kind,
                }
            } else {
                self.expression()?
            };
            let assign = self.peek();
            if !matches!(assign.kind, TokenKind::Equal | TokenKind::Colon) {
                return Err(self.unexpected(&assign, "`=` between the key and its value"));
            }
            self.next();
            let value = self.expression()?;
            items.push((key, value));
            let after = self.peek();
            match after.kind {
                TokenKind::Comma | TokenKind::Newline => {
                    self.next();
                }
                TokenKind::CloseBrace => {}
                _ => return Err(self.unexpected(&after, "`,`, a new line or `}`")),
            }
        }
    }

    fn for_follows(&mut self) -> bool {
        let mut index = self.at;
        let mut words = 0;
        while words < 2 {
            let token = self.token(index);
            match token.kind {
                TokenKind::Newline => {}
                TokenKind::Word if words == 1 || token.text(self.text) == "for" => words += 1,
                _ => return false,
            }
            index += 1;
        }
        true
    }

    /// Parses `for a, b in x : …` up to the closing token.
    fn for_expression(&mut self, object: bool) -> Result<ForExpression> {
        let mut head = self.for_head()?;
        self.expect(TokenKind::Colon, "`:` and the result")?;
        head.result = self.expression()?;
        if object {
            self.expect(TokenKind::Arrow, "`=>` and the value")?;
            head.result_key = Some(std::mem::replace(&mut head.result, self.expression()?));
            head.group = self.take(TokenKind::Ellipsis).is_some();
        }
        let token = self.peek();
        if token.kind == TokenKind::Word && token.text(self.text) == "if" {
            self.next();
            head.condition = Some(self.expression()?);
        }
        Ok(head)
    }

    /// Parses `for a, b in x`.
    pub(super) fn for_head(&mut self) -> Result<ForExpression> {
        self.next();
        let first = self.expect(TokenKind::Word, "a name for the element")?;
        let mut key = None;
        let mut element: Box<str> = first.text(self.text).into();
        if self.take(TokenKind::Comma).is_some() {
            let second = self.expect(TokenKind::Word, "a name for the element")?;
            key = Some(std::mem::replace(
                &mut element,
                second.text(self.text).into(),
            ));
        }
        let token = self.peek();
        if token.kind != TokenKind::Word || token.text(self.text) != "in" {
            return Err(self.unexpected(&token, "`in`"));
        }
        self.next();
        let collection = self.expression()?;
        let result = Expression {
            span: collection.span,
            kind: ExpressionKind::Literal(Value::Null),
        };
        Ok(ForExpression {
            key,
            element,
            collection,
            result_key: None,
            result,
            group: false,
            condition: None,
        })
    }

    /// Parses `.name`, `[index]`, `.*` and so on after a term.
    fn steps(&mut self, base: Expression) -> Result<Expression> {
        let mut steps = Vec::new();
        let mut end = base.span;
        loop {
            let token = self.peek();
            match token.kind {
                TokenKind::Dot => {
                    self.next();
                    let name = self.next();
                    end = self.span_of(&name);
                    match name.kind {
                        TokenKind::Word => steps.push(Step::Get(name.text(self.text).into(), end)),
                        // `.0.1` looks like `.` and a number with a fraction.
                        TokenKind::Number => {
                            for part in name.text(self.text).split('.') {
                                let Ok(index) = part.parse() else {
                                    return Err(self.unexpected(&name, "an index"));
                                };
                                let kind = ExpressionKind::Literal(Value::Integer(index));
                                steps.push(Step::Index(Expression { span: end, kind }));
                            }
                        }
                        TokenKind::Star => steps.push(Step::Splat {
                            full: false,
                            span: end,
                        }),
                        _ => return Err(self.unexpected(&name, "a name after `.`")),
                    }
                }
                TokenKind::OpenBracket => {
                    self.next();
                    let step = self.lines(|parser| {
                        let star = parser.peek();
                        if star.kind == TokenKind::Star {
                            parser.next();
                            return Ok(Step::Splat {
                                full: true,
                                span: parser.span_of(&star),
                            });
                        }
                        Ok(Step::Index(parser.expression()?))
                    })?;
                    let close = self.closed(TokenKind::CloseBracket, "`]`")?;
                    end = self.span_of(&close);
                    steps.push(step);
                }
                _ => break,
            }
        }
        if steps.is_empty() {
            return Ok(base);
        }
        let span = base.span.to(end);
        Ok(Expression {
            span,
            kind: ExpressionKind::Traversal(Box::new(base), steps),
        })
    }

    /// Parses a quoted text.
    fn quoted(&mut self, token: &Token) -> Result<Expression> {
        if token.unclosed == Some(UnclosedToken::Quote) {
            return Err(self.open_quote(token));
        }
        self.quoted_template(token)
    }
}

fn operator_of(parser: &mut Parser<'_>) -> Option<(BinaryOperator, usize)> {
    let found = operator(parser.peek().kind)?;
    parser.next();
    Some(found)
}

/// Returns an operator and its precedence.
fn operator(kind: TokenKind) -> Option<(BinaryOperator, usize)> {
    Some(match kind {
        TokenKind::Or => (BinaryOperator::Or, 0),
        TokenKind::And => (BinaryOperator::And, 1),
        TokenKind::EqualEqual => (BinaryOperator::Equal, 2),
        TokenKind::NotEqual => (BinaryOperator::NotEqual, 2),
        TokenKind::Less => (BinaryOperator::Less, 3),
        TokenKind::LessEqual => (BinaryOperator::LessEqual, 3),
        TokenKind::Greater => (BinaryOperator::Greater, 3),
        TokenKind::GreaterEqual => (BinaryOperator::GreaterEqual, 3),
        TokenKind::Plus => (BinaryOperator::Add, 4),
        TokenKind::Minus => (BinaryOperator::Subtract, 4),
        TokenKind::Star => (BinaryOperator::Multiply, 5),
        TokenKind::Slash => (BinaryOperator::Divide, 5),
        TokenKind::Percent => (BinaryOperator::Modulo, 5),
        _ => return None,
    })
}

type Operands = std::vec::IntoIter<Expression>;
type Operators = std::iter::Peekable<std::vec::IntoIter<(BinaryOperator, usize)>>;

/// Builds a tree of operands and operators; its depth does not grow with their number.
fn fold(level: usize, operands: &mut Operands, operators: &mut Operators) -> Expression {
    if level > 5 {
        let none = Expression {
            span: Span::default(),
            kind: ExpressionKind::Broken,
        };
        return operands.next().unwrap_or(none);
    }
    let first = fold(level + 1, operands, operators);
    let mut rest = Vec::new();
    while let Some((operator, _)) = operators.next_if(|(_, found)| *found == level) {
        rest.push((operator, fold(level + 1, operands, operators)));
    }
    match rest.last() {
        None => first,
        Some((_, last)) => {
            let span = first.span.to(last.span);
            Expression {
                span,
                kind: ExpressionKind::Binary(Box::new(first), rest),
            }
        }
    }
}

/// Returns whether two decimal numbers have the same digits; the first may have an exponent.
fn same_digits(written: &str, kept: &str) -> bool {
    let digits = |text: &str| -> String {
        let mantissa = text.split(['e', 'E']).next().unwrap_or("");
        let mut digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        if mantissa.contains('.') || text.len() != mantissa.len() {
            digits.truncate(digits.trim_end_matches('0').len());
        }
        digits
            .trim_start_matches('0')
            .trim_end_matches('0')
            .to_owned()
    };
    digits(written) == digits(kept)
}

/// Returns the problem of a character that begins no token.
fn unknown_mark(mark: &str, span: Span) -> Problem {
    let Some(hint) = mark_hint(mark) else {
        let problem = Problem::new(span, "expected a value");
        return problem.hint("put a text in quotes: `\"…\"`");
    };
    let message = match mark {
        "'" => "single quotes do not make a text",
        "`" => "backticks do not make a text",
        "“" | "”" | "„" | "«" | "»" | "‘" | "’" | "‚" => {
            "curly quotes do not make a text"
        }
        _ => "expected a value",
    };
    let message = match invisible(mark) {
        Some(invisible) => format!("expected a value, found {invisible}"),
        None => message.to_owned(),
    };
    Problem::new(span, message).hint(hint)
}
