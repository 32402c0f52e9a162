//! Functions that compute a value from values. Names and meaning are those of Terraform.
//!
//! A function must not build more than the limit that it is given: a text that grows checks its
//! length before it is built.

mod collections;
mod csv;
mod format;
mod strings;

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::number::{Result, fail};
use super::operations::size;
use super::syntax::{Problem, Span};
use super::value::Value;
use super::{json, yaml};

/// Function of values.
pub(super) struct ValueFunction {
    pub(super) name: &'static str,
    /// How a call is written.
    usage: &'static str,
    /// Minimum and maximum number of arguments.
    arity: (usize, usize),
    compute: fn(&Arguments<'_>) -> Result<Value>,
}

/// Maximum number of arguments of a function that takes any number of them.
const ANY: usize = usize::MAX;

const fn function(
    name: &'static str,
    usage: &'static str,
    arity: (usize, usize),
    compute: fn(&Arguments<'_>) -> Result<Value>,
) -> ValueFunction {
    ValueFunction {
        name,
        usage,
        arity,
        compute,
    }
}

/// All functions of values. `try`, which does not evaluate all of its arguments, is none of them.
pub(super) static FUNCTIONS: [ValueFunction; 21] = [
    function("base64decode", "(text)", (1, 1), strings::base64decode),
    function("coalesce", "(value, …)", (1, ANY), collections::coalesce),
    function("concat", "(list, …)", (1, ANY), collections::concat),
    function("contains", "(list, value)", (2, 2), collections::contains),
    function("csvdecode", "(text)", (1, 1), csv::csvdecode),
    function("flatten", "(list)", (1, 1), collections::flatten),
    function("format", "(\"…%s…\", value, …)", (1, ANY), format::format),
    function("join", "(separator, list, …)", (2, ANY), strings::join),
    function("jsondecode", "(text)", (1, 1), jsondecode),
    function("keys", "(object)", (1, 1), collections::keys),
    function("length", "(value)", (1, 1), collections::length),
    function(
        "lookup",
        "(object, key, default)",
        (2, 3),
        collections::lookup,
    ),
    function("lower", "(text)", (1, 1), strings::lower),
    function("merge", "(object, …)", (0, ANY), collections::merge),
    function("replace", "(text, part, new)", (3, 3), strings::replace),
    function("split", "(separator, text)", (2, 2), strings::split),
    function("toset", "(list)", (1, 1), collections::toset),
    function("trimspace", "(text)", (1, 1), strings::trimspace),
    function("upper", "(text)", (1, 1), strings::upper),
    function("values", "(object)", (1, 1), collections::values),
    function("yamldecode", "(text)", (1, 1), yamldecode),
];

impl ValueFunction {
    /// Returns the function with that name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        FUNCTIONS.iter().find(|function| function.name == name)
    }

    /// Returns the work that reading an argument costs. An argument that the call itself computed has
    /// cost its size before.
    pub(super) fn reading_cost(&self, argument: &Value) -> usize {
        match (self.name, argument) {
            ("lookup", Value::List(_) | Value::Object(_)) => 1,
            ("length" | "keys", Value::List(values)) => values.len(),
            ("length" | "keys", Value::Object(values)) => values.len(),
            _ => size(argument),
        }
    }

    /// Computes the value. `limit` is the maximum size of a result, in bytes and elements.
    pub(super) fn compute(
        &'static self,
        arguments: &[(&Value, Span)],
        span: Span,
        limit: usize,
    ) -> Result<Value> {
        let (least, most) = self.arity;
        if !(least..=most).contains(&arguments.len()) {
            let expected = match (least, most) {
                (1, 1) => "1 argument".to_owned(),
                (least, most) if least == most => format!("{least} arguments"),
                (least, ANY) => format!("at least {least} arguments"),
                (least, most) => format!("{least} or {most} arguments"),
            };
            let message = format!(
                "`{}` takes {expected}, found {}",
                self.name,
                arguments.len()
            );
            return fail(Problem::new(span, message).hint(self.usage()));
        }
        (self.compute)(&Arguments {
            function: self,
            span,
            list: arguments,
            limit,
        })
    }

    fn usage(&self) -> String {
        format!("write `{}{}`", self.name, self.usage)
    }
}

/// Arguments of a call. Their number is one that the function takes.
struct Arguments<'a> {
    function: &'static ValueFunction,
    /// Span of the function's name.
    span: Span,
    list: &'a [(&'a Value, Span)],
    /// Maximum size of the result.
    limit: usize,
}

impl<'a> Arguments<'a> {
    fn get(&self, index: usize) -> (&'a Value, Span) {
        let none = (&Value::Null, self.span);
        self.list.get(index).copied().unwrap_or(none)
    }

    /// Returns an argument as text; numbers and bools are converted.
    fn text(&self, index: usize) -> Result<Cow<'a, str>> {
        let (value, span) = self.get(index);
        match value {
            Value::String(text) => Ok(Cow::Borrowed(text)),
            other => match other.as_text() {
                Some(text) => Ok(Cow::Owned(text)),
                None => self.expected("text", other, span),
            },
        }
    }

    fn list(&self, index: usize) -> Result<&'a [Value]> {
        match self.get(index) {
            (Value::List(values), _) => Ok(values),
            (other, span) => self.expected("a list", other, span),
        }
    }

    fn object(&self, index: usize) -> Result<&'a BTreeMap<Box<str>, Value>> {
        match self.get(index) {
            (Value::Object(values), _) => Ok(values),
            (other, span) => self.expected("an object", other, span),
        }
    }

    fn expected<T>(&self, expected: &str, found: &Value, span: Span) -> Result<T> {
        let message = format!(
            "`{}` takes {expected} here, found {}",
            self.function.name,
            found.kind()
        );
        fail(Problem::new(span, message).hint(self.function.usage()))
    }

    /// Refuses a result of that size if it exceeds the limit.
    fn check_size(&self, size: usize) -> Result<()> {
        match size > self.limit {
            true => fail(too_large(self.span)),
            false => Ok(()),
        }
    }

    /// Converts a problem of a decoded text, whose span counts from the start of that text.
    fn in_text<T>(&self, text: &str, problem: Problem) -> Result<T> {
        let before = text.get(..problem.span.start as usize).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let message = format!(
            "`{}`: {}, in line {line}, column {column} of the text",
            self.function.name, problem.message
        );
        let (_, span) = self.get(0);
        fail(Problem::new(span, message).hint_if(problem.hint))
    }
}

/// Returns the problem of a value that is too large.
pub(super) fn too_large(span: Span) -> Problem {
    Problem::new(span, "this value grows too large")
}

/// Removes the byte order mark that some programs write at the start of a file.
fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn jsondecode(arguments: &Arguments<'_>) -> Result<Value> {
    let text = arguments.text(0)?;
    let text = without_byte_order_mark(&text);
    json::decode(text).or_else(|problem| arguments.in_text(text, *problem))
}

fn yamldecode(arguments: &Arguments<'_>) -> Result<Value> {
    let text = arguments.text(0)?;
    let text = without_byte_order_mark(&text);
    yaml::decode(text).or_else(|problem| arguments.in_text(text, *problem))
}

#[cfg(test)]
mod tests;
