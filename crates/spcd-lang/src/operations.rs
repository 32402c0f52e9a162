//! Operators and accesses on values.

use super::number::{Number, Result, fail, number};
use super::syntax::{MAX_DEPTH, Problem, Span};
use super::value::Value;

/// Refuses a value that is nested too deep for the stack.
pub(super) fn check_depth(value: Value, span: Span) -> Result<Value> {
    match is_deeper(&value, MAX_DEPTH) {
        true => fail(Problem::new(
            span,
            format!("this value is nested more than {MAX_DEPTH} levels deep"),
        )),
        false => Ok(value),
    }
}

/// Returns whether a value is nested deeper than `levels`.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let inner = |value: &Value| is_deeper(value, levels - 1);
    match value {
        Value::List(_) | Value::Object(_) if levels == 0 => true,
        Value::List(values) => values.iter().any(inner),
        Value::Object(values) => values.values().any(inner),
        _ => false,
    }
}

/// Size of an object besides its attributes: it takes that much more memory than a list.
pub(super) const OBJECT_SIZE: usize = 16;

pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => 1 + text.len(),
        Value::List(values) => values.iter().map(size).sum::<usize>() + 1,
        Value::Object(values) => {
            values
                .iter()
                .map(|(key, value)| key.len() + size(value))
                .sum::<usize>()
                + OBJECT_SIZE
        }
        _ => 1,
    }
}

pub(super) fn boolean(value: &Value, span: Span) -> Result<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::String(text) if **text == *"true" => Ok(true),
        Value::String(text) if **text == *"false" => Ok(false),
        other => fail(Problem::new(
            span,
            format!("expected true or false, found {}", other.kind()),
        )),
    }
}

pub(super) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Integer(integer), Value::Float(float))
        | (Value::Float(float), Value::Integer(integer)) => Number::Integer(*integer)
            .compare(Number::Float(*float))
            .is_eq(),
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(a, b)| equal(a, b))
        }
        _ => left == right,
    }
}

/// Returns an element of a list or an object.
pub(super) fn index_value<'v>(value: &'v Value, index: &Value, span: Span) -> Result<&'v Value> {
    match value {
        Value::List(values) => {
            let position = match number(index, span)? {
                Number::Integer(integer) => usize::try_from(integer).ok(),
                Number::Float(_) => None,
            };
            match position.and_then(|position| values.get(position)) {
                Some(value) => Ok(value),
                None => fail(Problem::new(
                    span,
                    format!("the list has {} elements, counted from 0", values.len()),
                )),
            }
        }
        Value::Object(values) => match index.as_text().and_then(|key| values.get(key.as_str())) {
            Some(value) => Ok(value),
            None => fail(Problem::new(span, "the object has no such key")),
        },
        other => fail(Problem::new(
            span,
            format!("{} has no elements", other.kind()),
        )),
    }
}

/// Returns an attribute of an object.
pub(super) fn attribute<'v>(value: &'v Value, name: &str, span: Span) -> Result<&'v Value> {
    let Value::Object(object) = value else {
        let message = format!("{} has no attributes", value.kind());
        return fail(Problem::new(span, message));
    };
    match object.get(name) {
        Some(value) => Ok(value),
        None => fail(Problem::new(span, "there is no attribute of this name")),
    }
}
