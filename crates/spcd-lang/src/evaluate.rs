//! Evaluates expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::functions::too_large;
use super::number::{Number, arithmetic, checked, fraction, number};
use super::operations::{OBJECT_SIZE, boolean, check_depth, equal, size};
use super::syntax::{
    BinaryOperator, Expression, ExpressionKind, ForExpression, MAX_DEPTH, Problem, Span,
    TemplatePart, UnaryOperator,
};
use super::value::Value;

mod call;
mod place;

/// Maximum work for one attribute: elements iterated over plus bytes of text built. It bounds
/// nested loops.
const MAX_WORK: usize = 4 << 20;

/// Maximum depth of evaluation, lists in lists included. It is larger than [`MAX_DEPTH`] because
/// `[*]` and `for` descend into values, and small enough for the stack of any thread.
const MAX_EVALUATION_DEPTH: usize = 2 * MAX_DEPTH;

/// Functions that are evaluated outside of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `env("NAME")`: an environment variable.
    Env,
    /// `file("path")`: the text of a file.
    File,
    /// `credential("name")`: the text of a file in the service manager's credentials directory.
    Credential,
}

impl Function {
    const ALL: [(&'static str, Function); 3] = [
        ("env", Function::Env),
        ("file", Function::File),
        ("credential", Function::Credential),
    ];

    /// Returns the function with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, function)| *function)
    }
}

/// Reason why an expression has no value.
#[derive(Debug)]
pub enum EvaluationError {
    /// Problem to report.
    Problem(Box<Problem>),
    /// A problem was reported before, or functions are not evaluated.
    Reported,
}

impl From<Box<Problem>> for EvaluationError {
    fn from(problem: Box<Problem>) -> Self {
        Self::Problem(problem)
    }
}

pub(super) type Result<T> = std::result::Result<T, EvaluationError>;

/// Variable from outside of the expression.
#[derive(Debug, Clone)]
pub enum Variable {
    /// Its value. `local.name` is one variable: the attribute is part of its name.
    Known(Arc<Value>),
    /// The value cannot be known here, and that is no error of the expression.
    Unknown,
    /// There is no value: the message and a hint.
    Missing(String, Option<String>),
}

/// Interface to everything outside of the text. A closure evaluates functions without a budget.
pub trait Environment {
    /// Evaluates a function; the error is the reason why it has no result.
    fn call(&mut self, function: Function, argument: &str) -> std::result::Result<String, String>;

    /// Returns a variable; `None` if there is none of that name. For `local`, `attribute` is the name
    /// of the local value, or `None` if there is none behind `local`.
    fn variable(&mut self, _name: &str, _attribute: Option<&str>) -> Option<Variable> {
        None
    }

    /// Returns whether functions are evaluated. If not, an expression that calls one has no value,
    /// and that is no error.
    fn evaluates_functions(&self) -> bool {
        true
    }

    /// Records work; returns false when all values together have cost too much.
    fn spend(&mut self, _work: usize) -> bool {
        true
    }
}

impl<F> Environment for F
where
    F: FnMut(Function, &str) -> std::result::Result<String, String>,
{
    fn call(&mut self, function: Function, argument: &str) -> std::result::Result<String, String> {
        self(function, argument)
    }
}

/// Environment as a trait object.
pub type DynEnvironment<'a> = dyn Environment + 'a;

/// Evaluates an expression.
pub fn evaluate(expression: &Expression, lookup: &mut DynEnvironment<'_>) -> Result<Value> {
    // Most values are literals.
    if let ExpressionKind::Literal(value) = &expression.kind {
        return Ok(value.clone());
    }
    let mut evaluation = Evaluation {
        lookup,
        variables: Vec::new(),
        work: 0,
        depth: 0,
        is_fatal: false,
    };
    let value = evaluation.value(expression)?;
    Ok(check_depth(value, expression.span)?)
}

struct Evaluation<'a, 'l> {
    lookup: &'a mut DynEnvironment<'l>,
    /// Variables of `for`, innermost last.
    variables: Vec<(Box<str>, Arc<Value>)>,
    work: usize,
    depth: usize,
    /// Whether the last problem is one that `try` must not hide: a word without a meaning, or too
    /// much work.
    is_fatal: bool,
}

pub(super) fn fail<T>(problem: Problem) -> Result<T> {
    Err(EvaluationError::Problem(Box::new(problem)))
}

impl Evaluation<'_, '_> {
    fn value(&mut self, expression: &Expression) -> Result<Value> {
        self.nested(expression.span, |this| this.evaluate_kind(expression))
    }

    /// Evaluates one level deeper, up to the maximum depth.
    fn nested<T>(
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

    fn evaluate_kind(&mut self, expression: &Expression) -> Result<Value> {
        let span = expression.span;
        match &expression.kind {
            ExpressionKind::Broken => Err(EvaluationError::Reported),
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
                self.spend(OBJECT_SIZE, span)?;
                let mut object = BTreeMap::new();
                for (key, value) in items {
                    object.insert(self.key(key)?, self.value(value)?);
                }
                Ok(Value::Object(object))
            }
            ExpressionKind::Variable(_) => self.traversal(expression, &[], span),
            ExpressionKind::Call(call) => self.call(call),
            ExpressionKind::Unary(operator, operand) => {
                let value = self.value(operand)?;
                match operator {
                    UnaryOperator::Not => Ok(Value::Bool(!boolean(&value, operand.span)?)),
                    UnaryOperator::Negate => match number(&value, operand.span)? {
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
            ExpressionKind::Traversal(base, steps) => self.traversal(base, steps, span),
        }
    }

    fn spend(&mut self, work: usize, span: Span) -> Result<()> {
        self.work = self.work.saturating_add(work);
        if self.work > MAX_WORK {
            self.is_fatal = true;
            return fail(too_large(span));
        }
        if !self.lookup.spend(work) {
            self.is_fatal = true;
            let problem = Problem::new(span, "the values of all files together take too much work");
            return fail(problem.hint("compute less here or in the blocks before"));
        }
        Ok(())
    }

    fn key(&mut self, key: &Expression) -> Result<Box<str>> {
        // `{ name = … }` needs no quotes around the name.
        match self.value(key)?.as_text() {
            Some(text) => Ok(text.into()),
            None => fail(Problem::new(key.span, "a key is text")),
        }
    }

    fn parts(&mut self, parts: &[TemplatePart], text: &mut String, span: Span) -> Result<()> {
        for part in parts {
            match part {
                TemplatePart::Text(part) => {
                    self.spend(part.len(), span)?;
                    text.push_str(part);
                }
                TemplatePart::Value(expression) => {
                    let value = self.value(expression)?;
                    let Some(part) = value.as_text() else {
                        let message =
                            format!("expected text within a template, found {}", value.kind());
                        return fail(Problem::new(expression.span, message));
                    };
                    self.spend(part.len(), span)?;
                    text.push_str(&part);
                }
                TemplatePart::If(parts) => {
                    let (condition, yes, no) = &**parts;
                    let value = self.value(condition)?;
                    let chosen = if boolean(&value, condition.span)? {
                        yes
                    } else {
                        no
                    };
                    self.parts(chosen, text, span)?;
                }
                TemplatePart::For(parts) => {
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

    /// Returns the elements that a `for` iterates over, with keys or indexes.
    fn elements(&mut self, head: &ForExpression) -> Result<Vec<(Value, Value)>> {
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

    /// Adds the variables of a `for`; returns how many there were before.
    fn bind(&mut self, head: &ForExpression, key: Value, element: Value) -> Result<usize> {
        let element = check_depth(element, head.collection.span)?;
        let before = self.variables.len();
        if let Some(name) = &head.key {
            self.variables.push((name.clone(), Arc::new(key)));
        }
        self.variables
            .push((head.element.clone(), Arc::new(element)));
        Ok(before)
    }

    fn for_expression(&mut self, head: &ForExpression) -> Result<Value> {
        let mut list = Vec::new();
        let mut object: BTreeMap<Box<str>, Value> = BTreeMap::new();
        if let Some(key) = &head.result_key {
            self.spend(OBJECT_SIZE, key.span)?;
        }
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

    fn for_element(&mut self, head: &ForExpression) -> Result<Option<(Option<Box<str>>, Value)>> {
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

    fn binary(
        &mut self,
        operator: BinaryOperator,
        left: Value,
        left_span: Span,
        operand: &Expression,
    ) -> Result<Value> {
        let span = left_span.to(operand.span);
        // These operators do not evaluate the right side if the left side decides.
        match operator {
            BinaryOperator::Or if boolean(&left, left_span)? => return Ok(Value::Bool(true)),
            BinaryOperator::And if !boolean(&left, left_span)? => return Ok(Value::Bool(false)),
            _ => {}
        }
        let right = self.value(operand)?;
        match operator {
            BinaryOperator::Or | BinaryOperator::And => {
                return Ok(Value::Bool(boolean(&right, operand.span)?));
            }
            BinaryOperator::Equal => return Ok(Value::Bool(equal(&left, &right))),
            BinaryOperator::NotEqual => return Ok(Value::Bool(!equal(&left, &right))),
            _ => {}
        }
        let left = number(&left, left_span)?;
        let right = number(&right, operand.span)?;
        let order = left.compare(right);
        Ok(match operator {
            BinaryOperator::Less => Value::Bool(order.is_lt()),
            BinaryOperator::LessEqual => Value::Bool(order.is_le()),
            BinaryOperator::Greater => Value::Bool(order.is_gt()),
            BinaryOperator::GreaterEqual => Value::Bool(order.is_ge()),
            _ => arithmetic(operator, left, right, span)?,
        })
    }
}
