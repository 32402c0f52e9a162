//! The values of expressions.

use std::collections::BTreeMap;

use super::number::{Number, arithmetic, checked, fraction, number};
use super::operations::{boolean, equal, indexed, shallow, size};
use super::syntax::{
    Binary, Call, Expression, ExpressionKind, For, MAX_DEPTH, Part, Problem, Span, Step, Unary,
};
use super::value::Value;
use crate::nearest::nearest;

/// How much work one attribute may make (elements gone through, bytes of text put together), so
/// that loops within loops end.
const MAX_WORK: usize = 4 << 20;

/// How deep expressions may be evaluated within each other, members of lists in lists included.
/// Above [`MAX_DEPTH`] for what `[*]` and `for` go into, and small enough for the stack of any thread.
const MAX_EVALUATION_DEPTH: usize = 2 * MAX_DEPTH;

/// What a call costs: it may read a file.
const CALL_WORK: usize = 256;

/// The functions that a value may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `env("NAME")`: a variable of the environment.
    Env,
    /// `file("path")`: a file's text.
    File,
    /// `credential("name")`: a file's text in the service manager's directory for secrets.
    Credential,
}

impl Function {
    const ALL: [(&'static str, Function); 3] = [
        ("env", Function::Env),
        ("file", Function::File),
        ("credential", Function::Credential),
    ];

    /// The function of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, function)| *function)
    }
}

/// `trimspace("text")`: the text without the white space around it.
const TRIMSPACE: &str = "trimspace";

/// Whether a name looks like that of a variable of the environment.
fn is_of_environment(name: &str) -> bool {
    let belongs = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().all(belongs) && name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Why an expression has no value.
#[derive(Debug)]
pub enum Failure {
    /// A problem that is to be shown.
    Problem(Box<Problem>),
    /// Its parts could not be read, which has been said already, or functions are not evaluated.
    Silent,
}

impl From<Box<Problem>> for Failure {
    fn from(problem: Box<Problem>) -> Self {
        Self::Problem(problem)
    }
}

pub(super) type Result<T> = std::result::Result<T, Failure>;

/// What evaluation asks for outside of the text. A closure looks up without limit.
pub trait Environment {
    /// A function's result; an error is the reason why there is none.
    fn look_up(
        &mut self,
        function: Function,
        argument: &str,
    ) -> std::result::Result<String, String>;

    /// Returns whether functions are evaluated. If not, an expression that calls one has no value, and
    /// that is no mistake.
    fn evaluates(&self) -> bool {
        true
    }

    /// Takes note of work; false once all values together have cost too much.
    fn spend(&mut self, _work: usize) -> bool {
        true
    }
}

impl<F> Environment for F
where
    F: FnMut(Function, &str) -> std::result::Result<String, String>,
{
    fn look_up(
        &mut self,
        function: Function,
        argument: &str,
    ) -> std::result::Result<String, String> {
        self(function, argument)
    }
}

/// Where functions get their results from.
pub type Lookup<'a> = dyn Environment + 'a;

/// The value of an expression.
pub fn evaluate(expression: &Expression, lookup: &mut Lookup<'_>) -> Result<Value> {
    // Nearly every value is a literal.
    if let ExpressionKind::Literal(value) = &expression.kind {
        return Ok(value.clone());
    }
    let mut evaluation = Evaluation {
        lookup,
        variables: Vec::new(),
        work: 0,
        depth: 0,
    };
    let value = evaluation.value(expression)?;
    Ok(shallow(value, expression.span)?)
}

struct Evaluation<'a, 'l> {
    lookup: &'a mut Lookup<'l>,
    /// Names that `for` has brought in, innermost last.
    variables: Vec<(Box<str>, Value)>,
    work: usize,
    depth: usize,
}

pub(super) fn fail<T>(problem: Problem) -> Result<T> {
    Err(Failure::Problem(Box::new(problem)))
}

impl Evaluation<'_, '_> {
    fn value(&mut self, expression: &Expression) -> Result<Value> {
        self.deeper(expression.span, |this| this.value_here(expression))
    }

    /// Goes one level deeper, if that is allowed.
    fn deeper<T>(
        &mut self,
        span: Span,
        evaluate: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if self.depth >= MAX_EVALUATION_DEPTH {
            return fail(Problem::new(span, "this expression goes too deep"));
        }
        self.depth += 1;
        let result = evaluate(self);
        self.depth -= 1;
        result
    }

    fn value_here(&mut self, expression: &Expression) -> Result<Value> {
        let span = expression.span;
        match &expression.kind {
            ExpressionKind::Broken => Err(Failure::Silent),
            ExpressionKind::Literal(value) => {
                self.spend(size(value), span)?;
                Ok(value.clone())
            }
            ExpressionKind::Template(parts) => {
                let mut text = String::new();
                self.parts(parts, &mut text, span)?;
                Ok(Value::String(text.into()))
            }
            ExpressionKind::List(elements) => elements
                .iter()
                .map(|element| self.value(element))
                .collect::<Result<_>>()
                .map(Value::List),
            ExpressionKind::Object(items) => {
                let mut object = BTreeMap::new();
                for (key, value) in items {
                    object.insert(self.key(key)?, self.value(value)?);
                }
                Ok(Value::Object(object))
            }
            ExpressionKind::Variable(name) => self.variable(name, span),
            ExpressionKind::Call(call) => self.call(call),
            ExpressionKind::Unary(operator, operand) => {
                let value = self.value(operand)?;
                match operator {
                    Unary::Not => Ok(Value::Bool(!boolean(&value, operand.span)?)),
                    Unary::Negate => match number(&value, operand.span)? {
                        Number::Integer(integer) => Ok(checked(integer.checked_neg(), span)?),
                        Number::Float(float) => Ok(fraction(-float)),
                    },
                }
            }
            ExpressionKind::Binary(first, rest) => {
                let mut left = self.value(first)?;
                let mut left_span = first.span;
                for (operator, operand) in rest {
                    left = self.binary(*operator, left, left_span, operand)?;
                    left_span = left_span.to(operand.span);
                }
                Ok(left)
            }
            ExpressionKind::Conditional(parts) => {
                let (condition, yes, no) = &**parts;
                let value = self.value(condition)?;
                self.value(if boolean(&value, condition.span)? {
                    yes
                } else {
                    no
                })
            }
            ExpressionKind::For(expression) => self.for_expression(expression),
            ExpressionKind::Traversal(base, steps) => {
                let value = self.value(base)?;
                Ok(shallow(self.steps(value, steps)?, span)?)
            }
        }
    }

    fn spend(&mut self, work: usize, span: Span) -> Result<()> {
        self.work = self.work.saturating_add(work);
        if self.work > MAX_WORK {
            return fail(Problem::new(span, "this value grows too large"));
        }
        if !self.lookup.spend(work) {
            let problem = Problem::new(span, "the values of all files together take too much work");
            return fail(problem.hint("shorten what is computed here and in the blocks before"));
        }
        Ok(())
    }

    fn variable(&mut self, name: &str, span: Span) -> Result<Value> {
        let found = self
            .variables
            .iter()
            .rev()
            .find(|(known, _)| **known == *name);
        if let Some((_, value)) = found {
            let value = value.clone();
            self.spend(size(&value), span)?;
            return Ok(value);
        }
        let problem = Problem::new(span, "a bare word is no value");
        fail(match name.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" => problem.hint("write `true`, or a text in quotes: `\"…\"`"),
            "no" | "off" | "false" => problem.hint("write `false`, or a text in quotes: `\"…\"`"),
            "nil" | "none" | "null" => problem.hint("write `null`, or leave the attribute out"),
            _ if is_of_environment(name) => problem.hint(
                "write `env(\"NAME\")` for a variable of the environment, or put a text in quotes",
            ),
            _ => problem.hint("put a text in quotes: `\"…\"`"),
        })
    }

    fn key(&mut self, key: &Expression) -> Result<Box<str>> {
        // `{ name = … }` needs no quotes around the name, whatever stands before its `=`.
        match self.value(key)?.as_text() {
            Some(text) => Ok(text.into()),
            None => fail(Problem::new(key.span, "a key is text")),
        }
    }

    fn parts(&mut self, parts: &[Part], text: &mut String, span: Span) -> Result<()> {
        for part in parts {
            match part {
                Part::Text(part) => {
                    self.spend(part.len(), span)?;
                    text.push_str(part);
                }
                Part::Value(expression) => {
                    let value = self.value(expression)?;
                    let Some(part) = value.as_text() else {
                        let message =
                            format!("expected text within a template, found {}", value.kind());
                        return fail(Problem::new(expression.span, message));
                    };
                    self.spend(part.len(), span)?;
                    text.push_str(&part);
                }
                Part::If(parts) => {
                    let (condition, yes, no) = &**parts;
                    let value = self.value(condition)?;
                    let chosen = if boolean(&value, condition.span)? {
                        yes
                    } else {
                        no
                    };
                    self.parts(chosen, text, span)?;
                }
                Part::For(parts) => {
                    let (head, body) = &**parts;
                    for (key, element) in self.elements(head)? {
                        let before = self.bind(head, key, element)?;
                        let result = self.parts(body, text, span);
                        self.variables.truncate(before);
                        result?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What a `for` goes through, with keys or indexes.
    fn elements(&mut self, head: &For) -> Result<Vec<(Value, Value)>> {
        let span = head.collection.span;
        let elements: Vec<_> = match self.value(&head.collection)? {
            Value::List(values) => values
                .into_iter()
                .zip(0..)
                .map(|(value, index)| (Value::Integer(index), value))
                .collect(),
            Value::Object(values) => values
                .into_iter()
                .map(|(key, value)| (Value::String(key), value))
                .collect(),
            other => {
                let message = format!(
                    "expected a list or an object to go through, found {}",
                    other.kind()
                );
                return fail(Problem::new(span, message));
            }
        };
        self.spend(elements.len(), span)?;
        Ok(elements)
    }

    /// Brings the names of a `for` in; returns how many there were before.
    fn bind(&mut self, head: &For, key: Value, element: Value) -> Result<usize> {
        let element = shallow(element, head.collection.span)?;
        let before = self.variables.len();
        if let Some(name) = &head.key {
            self.variables.push((name.clone(), key));
        }
        self.variables.push((head.element.clone(), element));
        Ok(before)
    }

    fn for_expression(&mut self, head: &For) -> Result<Value> {
        let mut list = Vec::new();
        let mut object: BTreeMap<Box<str>, Value> = BTreeMap::new();
        for (key, element) in self.elements(head)? {
            let before = self.bind(head, key, element)?;
            let result = self.for_element(head);
            self.variables.truncate(before);
            match result? {
                None => {}
                Some((None, value)) => list.push(value),
                Some((Some(key), value)) if head.group => {
                    if let Value::List(group) =
                        object.entry(key).or_insert_with(|| Value::List(Vec::new()))
                    {
                        group.push(value);
                    }
                }
                Some((Some(key), value)) => {
                    let twice = object.insert(key, value).is_some();
                    let key = head.result_key.as_ref().unwrap_or(&head.result);
                    let problem = Problem::new(key.span, "two elements have the same key");
                    if twice {
                        return fail(problem.hint("type `...` after the value to group them"));
                    }
                }
            }
        }
        Ok(if head.result_key.is_some() {
            Value::Object(object)
        } else {
            Value::List(list)
        })
    }

    fn for_element(&mut self, head: &For) -> Result<Option<(Option<Box<str>>, Value)>> {
        if let Some(condition) = &head.condition {
            let value = self.value(condition)?;
            if !boolean(&value, condition.span)? {
                return Ok(None);
            }
        }
        let key = head
            .result_key
            .as_ref()
            .map(|key| self.key(key))
            .transpose()?;
        Ok(Some((key, self.value(&head.result)?)))
    }

    fn call(&mut self, call: &Call) -> Result<Value> {
        let function = Function::named(&call.name);
        if function.is_none() && *call.name != *TRIMSPACE {
            let problem = Problem::new(call.span, "there is no function of this name");
            let names = Function::ALL.iter().map(|(name, _)| *name);
            return fail(match nearest(&call.name, names.chain([TRIMSPACE])) {
                Some(name) => problem.hint(format!("did you mean `{name}`?")),
                None => {
                    problem.hint("the functions are `env`, `file`, `credential` and `trimspace`")
                }
            });
        }
        let mut arguments = Vec::new();
        for argument in &call.arguments {
            arguments.push((self.value(argument)?, argument.span));
        }
        if call.spread
            && let Some((Value::List(values), span)) = arguments.pop()
        {
            arguments.extend(values.into_iter().map(|value| (value, span)));
        }
        let [(Value::String(argument), span)] = arguments.as_slice() else {
            let message = format!("`{}` takes one text", call.name);
            return fail(
                Problem::new(call.span, message).hint(format!("write `{}(\"…\")`", call.name)),
            );
        };
        let Some(function) = function else {
            return Ok(Value::String(argument.trim().into()));
        };
        if !self.lookup.evaluates() {
            return Err(Failure::Silent);
        }
        self.spend(CALL_WORK, call.span)?;
        let outcome = self.lookup.look_up(function, argument);
        match outcome {
            Ok(text) => {
                self.spend(text.len(), call.span)?;
                Ok(Value::String(text.into()))
            }
            Err(reason) => fail(Problem::new(*span, reason).hint(match function {
                Function::Env => "set the variable where spcd runs, or give the value here",
                Function::File => "a relative path begins at the directory of this file",
                Function::Credential => {
                    "name a file in $CREDENTIALS_DIRECTORY (LoadCredential= in the service's unit)"
                }
            })),
        }
    }

    fn binary(
        &mut self,
        operator: Binary,
        left: Value,
        left_span: Span,
        operand: &Expression,
    ) -> Result<Value> {
        let span = left_span.to(operand.span);
        // These two leave the right side alone where the left one decides.
        match operator {
            Binary::Or if boolean(&left, left_span)? => return Ok(Value::Bool(true)),
            Binary::And if !boolean(&left, left_span)? => return Ok(Value::Bool(false)),
            _ => {}
        }
        let right = self.value(operand)?;
        match operator {
            Binary::Or | Binary::And => return Ok(Value::Bool(boolean(&right, operand.span)?)),
            Binary::Equal => return Ok(Value::Bool(equal(&left, &right))),
            Binary::NotEqual => return Ok(Value::Bool(!equal(&left, &right))),
            _ => {}
        }
        let left = number(&left, left_span)?;
        let right = number(&right, operand.span)?;
        let order = left.compare(right);
        Ok(match operator {
            Binary::Less => Value::Bool(order.is_lt()),
            Binary::LessEqual => Value::Bool(order.is_le()),
            Binary::Greater => Value::Bool(order.is_gt()),
            Binary::GreaterEqual => Value::Bool(order.is_ge()),
            _ => arithmetic(operator, left, right, span)?,
        })
    }

    fn steps(&mut self, mut value: Value, steps: &[Step]) -> Result<Value> {
        let mut rest = steps;
        while let Some((step, after)) = rest.split_first() {
            rest = after;
            match step {
                Step::Get(name, at) => {
                    let span = *at;
                    let Value::Object(mut object) = value else {
                        let message = format!("{} has no attributes", value.kind());
                        return fail(Problem::new(span, message));
                    };
                    let Some(found) = object.remove(name) else {
                        return fail(Problem::new(span, "there is no attribute of this name"));
                    };
                    value = found;
                }
                Step::Index(expression) => {
                    let span = expression.span;
                    let index = self.value(expression)?;
                    value = indexed(value, &index, span)?;
                }
                Step::Splat { full, span: at } => {
                    let values = match value {
                        Value::Null => Vec::new(),
                        Value::List(values) => values,
                        other => vec![other],
                    };
                    let taken = if *full {
                        rest.len()
                    } else {
                        rest.iter()
                            .take_while(|step| matches!(step, Step::Get(..)))
                            .count()
                    };
                    let (inner, after) = rest.split_at(taken);
                    rest = after;
                    self.spend(values.len(), *at)?;
                    let each = |this: &mut Self| {
                        let taken = values.into_iter().map(|value| this.steps(value, inner));
                        taken.collect::<Result<_>>()
                    };
                    value = Value::List(self.deeper(*at, each)?);
                }
            }
        }
        Ok(value)
    }
}
