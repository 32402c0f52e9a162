//! Calls of functions.

use super::super::functions::{FUNCTIONS, ValueFunction};
use super::super::nearest::suggestion;
use super::super::operations::{check_depth, size};
use super::super::syntax::{Call, Expression, Problem, Span};
use super::super::value::Value;
use super::place::Place;
use super::{Evaluation, EvaluationError, Function, MAX_WORK, Result, fail};

/// Work that a call of a function outside of this crate counts as: it may read a file.
const CALL_WORK: usize = 256;

/// `try(expression, …)`: the first value of an expression that has one.
const TRY: &str = "try";

/// Evaluated argument, or the part of a variable that it names.
enum Argument<'e> {
    Value(Value),
    Place(Place<'e>),
}

impl Argument<'_> {
    fn get(&self) -> Result<&Value> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Place(place) => place.get(),
        }
    }
}

impl Evaluation<'_, '_> {
    pub(super) fn call(&mut self, call: &Call) -> Result<Value> {
        if *call.name == *TRY {
            return self.call_try(call);
        }
        if let Some(function) = Function::from_name(&call.name) {
            return self.call_outside(function, call);
        }
        let Some(function) = ValueFunction::named(&call.name) else {
            self.is_fatal = true;
            return fail(unknown_function(call));
        };
        let mut arguments = Vec::with_capacity(call.arguments.len());
        for (index, argument) in call.arguments.iter().enumerate() {
            let is_spread = call.spread && index + 1 == call.arguments.len();
            match self.place(argument)? {
                Some(place) if !is_spread => {
                    let cost = function.reading_cost(place.get()?);
                    self.spend(cost, argument.span)?;
                    arguments.push((Argument::Place(place), argument.span));
                }
                _ => self.push_values(argument, is_spread, &mut arguments)?,
            }
        }
        let values = arguments
            .iter()
            .map(|(argument, span)| Ok((argument.get()?, *span)))
            .collect::<Result<Vec<_>>>()?;
        let limit = MAX_WORK.saturating_sub(self.work);
        let value = function.compute(&values, call.span, limit)?;
        self.spend(size(&value), call.span)?;
        Ok(check_depth(value, call.span)?)
    }

    /// Evaluates an argument, or the list of the last arguments.
    fn push_values<'e>(
        &mut self,
        argument: &'e Expression,
        is_spread: bool,
        arguments: &mut Vec<(Argument<'e>, Span)>,
    ) -> Result<()> {
        let span = argument.span;
        match (self.value(argument)?, is_spread) {
            (Value::List(values), true) => {
                let values = values.into_iter().map(Argument::Value);
                arguments.extend(values.map(|value| (value, span)));
                Ok(())
            }
            (other, true) => {
                let message = format!("expected a list before `...`, found {}", other.kind());
                fail(Problem::new(span, message))
            }
            (value, false) => {
                arguments.push((Argument::Value(value), span));
                Ok(())
            }
        }
    }

    fn call_try(&mut self, call: &Call) -> Result<Value> {
        let mut first = None;
        for argument in &call.arguments {
            match self.value(argument) {
                Err(EvaluationError::Problem(problem)) if !self.is_fatal => {
                    first = first.or(Some(problem));
                }
                other => return other,
            }
        }
        match first {
            Some(problem) => Err(EvaluationError::Problem(problem)),
            None => {
                let problem = Problem::new(call.span, "`try` takes at least 1 argument, found 0");
                fail(problem.hint("write `try(value, other)`"))
            }
        }
    }

    /// Calls a function outside of this crate.
    fn call_outside(&mut self, function: Function, call: &Call) -> Result<Value> {
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
        if !self.lookup.evaluates_functions() {
            return Err(EvaluationError::Reported);
        }
        self.spend(CALL_WORK, call.span)?;
        match self.lookup.call(function, argument) {
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
}

fn unknown_function(call: &Call) -> Problem {
    let problem = Problem::new(call.span, "there is no function of this name");
    let names = || {
        let outside = Function::ALL.iter().map(|(name, _)| *name);
        outside
            .chain(FUNCTIONS.iter().map(|function| function.name))
            .chain([TRY])
    };
    let hint = suggestion(&call.name, names()).unwrap_or_else(|| {
        let names: Vec<String> = names().map(|name| format!("`{name}`")).collect();
        format!("the functions are {}", names.join(", "))
    });
    problem.hint(hint)
}
