//! Variables, and accesses to parts of values. A part of a variable is read where it is: copying the
//! variable would make a list of many cost its square.

use std::sync::Arc;

use super::super::operations::{attribute, check_depth, index_value, size};
use super::super::syntax::{Expression, ExpressionKind, Problem, Span, Step};
use super::super::value::Value;
use super::{Evaluation, EvaluationError, Result, Variable, fail};

/// Access to a part, with its index evaluated.
pub(super) enum Access<'e> {
    Attribute(&'e str, Span),
    Index(Value, Span),
}

/// Part of a variable.
pub(super) struct Place<'e> {
    root: Arc<Value>,
    path: Vec<Access<'e>>,
}

impl Place<'_> {
    pub(super) fn get(&self) -> Result<&Value> {
        follow(&self.root, &self.path)
    }
}

fn follow<'v>(mut value: &'v Value, path: &[Access<'_>]) -> Result<&'v Value> {
    for access in path {
        value = match access {
            Access::Attribute(name, span) => attribute(value, name, *span)?,
            Access::Index(index, span) => index_value(value, index, *span)?,
        };
    }
    Ok(value)
}

/// Returns whether a name looks like an environment variable's.
fn is_environment_variable_name(name: &str) -> bool {
    let belongs = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().all(belongs) && name.bytes().any(|byte| byte.is_ascii_uppercase())
}

impl Evaluation<'_, '_> {
    /// Evaluates a value and the steps behind it.
    pub(super) fn traversal(
        &mut self,
        base: &Expression,
        steps: &[Step],
        span: Span,
    ) -> Result<Value> {
        let ExpressionKind::Variable(name) = &base.kind else {
            let value = self.value(base)?;
            return Ok(check_depth(self.steps(&value, steps)?, span)?);
        };
        let (root, steps) = self.variable(name, base.span, steps)?;
        if steps.is_empty() {
            self.spend(size(&root), span)?;
            return Ok((*root).clone());
        }
        let value = self.steps(&root, steps)?;
        self.spend(size(&value), span)?;
        Ok(check_depth(value, span)?)
    }

    /// Returns the part of a variable that an expression names; `None` if it is no such expression.
    pub(super) fn place<'e>(&mut self, expression: &'e Expression) -> Result<Option<Place<'e>>> {
        let (base, steps) = match &expression.kind {
            ExpressionKind::Variable(_) => (expression, [].as_slice()),
            ExpressionKind::Traversal(base, steps) => (&**base, steps.as_slice()),
            _ => return Ok(None),
        };
        let ExpressionKind::Variable(name) = &base.kind else {
            return Ok(None);
        };
        if steps.iter().any(|step| matches!(step, Step::Splat { .. })) {
            return Ok(None);
        }
        let (root, steps) = self.variable(name, base.span, steps)?;
        let path = self.path(steps)?;
        Ok(Some(Place { root, path }))
    }

    /// Returns a variable, and the steps that are not part of its name.
    fn variable<'s>(
        &mut self,
        name: &str,
        span: Span,
        steps: &'s [Step],
    ) -> Result<(Arc<Value>, &'s [Step])> {
        let found = self
            .variables
            .iter()
            .rev()
            .find(|(known, _)| **known == *name);
        if let Some((_, value)) = found {
            return Ok((value.clone(), steps));
        }
        let attribute = steps.first().and_then(Step::literal_name);
        match self.lookup.variable(name, attribute) {
            Some(Variable::Known(value)) if name == "local" => {
                Ok((value, steps.get(1..).unwrap_or_default()))
            }
            Some(Variable::Known(value)) => Ok((value, steps)),
            Some(Variable::Unknown) => Err(EvaluationError::Reported),
            Some(Variable::Missing(message, hint)) => {
                self.is_fatal = true;
                fail(Problem::new(span, message).hint_if(hint))
            }
            None => {
                self.is_fatal = true;
                fail(bare_word(name, span))
            }
        }
    }

    fn path<'e>(&mut self, steps: &'e [Step]) -> Result<Vec<Access<'e>>> {
        let mut path = Vec::with_capacity(steps.len());
        for step in steps {
            match step {
                Step::Get(name, span) => path.push(Access::Attribute(name, *span)),
                Step::Index(index) => path.push(Access::Index(self.value(index)?, index.span)),
                Step::Splat { .. } => break,
            }
        }
        Ok(path)
    }

    fn steps(&mut self, value: &Value, steps: &[Step]) -> Result<Value> {
        let plain = steps
            .iter()
            .take_while(|step| !matches!(step, Step::Splat { .. }))
            .count();
        let (before, rest) = steps.split_at(plain);
        let path = self.path(before)?;
        let value = follow(value, &path)?;
        let Some((Step::Splat { full, span }, rest)) = rest.split_first() else {
            return Ok(value.clone());
        };
        let values = match value {
            Value::Null => &[],
            Value::List(values) => values.as_slice(),
            other => std::slice::from_ref(other),
        };
        let taken = match full {
            true => rest.len(),
            false => rest
                .iter()
                .take_while(|step| matches!(step, Step::Get(..)))
                .count(),
        };
        let (inner, after) = rest.split_at(taken);
        self.spend(values.len(), *span)?;
        let each = |this: &mut Self| {
            let taken = values.iter().map(|value| this.steps(value, inner));
            taken.collect::<Result<_>>()
        };
        let list = Value::List(self.nested(*span, each)?);
        match after.is_empty() {
            true => Ok(list),
            false => self.nested(*span, |this| this.steps(&list, after)),
        }
    }
}

/// Returns the problem of a name that is no variable.
fn bare_word(name: &str, span: Span) -> Problem {
    let problem = Problem::new(span, "a bare word is not a value");
    match name.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" => problem.hint("write `true`, or a text in quotes: `\"…\"`"),
        "no" | "off" | "false" => problem.hint("write `false`, or a text in quotes: `\"…\"`"),
        "nil" | "none" | "null" => problem.hint("write `null`, or leave the attribute out"),
        _ if is_environment_variable_name(name) => problem.hint(
            "write `env(\"NAME\")` for a variable of the environment, or put a text in quotes",
        ),
        _ => problem.hint("put a text in quotes: `\"…\"`"),
    }
}
