//! Functions of lists and objects. A set is a list without equal elements, in order.

use std::collections::{BTreeMap, HashSet};

use super::super::number::number;
use super::super::operations::equal;
use super::{Arguments, Problem, Result, Value, fail};

/// `coalesce(value, …)`: the first value that is neither null nor an empty text. If one of several
/// scalars is text, the result is text.
pub(super) fn coalesce(arguments: &Arguments<'_>) -> Result<Value> {
    let values = || arguments.list.iter().map(|(value, _)| *value);
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let Some(found) = values().find(|value| !is_empty(value)) else {
        let message = "`coalesce`: every value is null or an empty text";
        return fail(Problem::new(arguments.span, message).hint("add a value that is neither"));
    };
    let is_mixed = values().any(|value| matches!(value, Value::String(_)));
    Ok(match found.as_text() {
        Some(text) if is_mixed => Value::String(text.into()),
        _ => found.clone(),
    })
}

/// `concat(list, …)`.
pub(super) fn concat(arguments: &Arguments<'_>) -> Result<Value> {
    let mut all = Vec::new();
    for index in 0..arguments.list.len() {
        all.extend_from_slice(arguments.list(index)?);
    }
    Ok(Value::List(all))
}

/// `contains(list, value)`. Values of different types are not equal.
pub(super) fn contains(arguments: &Arguments<'_>) -> Result<Value> {
    let (wanted, _) = arguments.get(1);
    let found = arguments.list(0)?.iter().any(|value| equal(value, wanted));
    Ok(Value::Bool(found))
}

/// `flatten(list)`: the elements of lists in the list, at any depth.
pub(super) fn flatten(arguments: &Arguments<'_>) -> Result<Value> {
    let mut flat = Vec::new();
    flatten_into(arguments.list(0)?, &mut flat);
    Ok(Value::List(flat))
}

fn flatten_into(values: &[Value], flat: &mut Vec<Value>) {
    for value in values {
        match value {
            Value::List(values) => flatten_into(values, flat),
            other => flat.push(other.clone()),
        }
    }
}

/// `keys(object)`, in byte order.
pub(super) fn keys(arguments: &Arguments<'_>) -> Result<Value> {
    let keys = arguments.object(0)?.keys();
    Ok(Value::List(
        keys.map(|key| Value::String(key.clone())).collect(),
    ))
}

/// `values(object)`, in the byte order of their keys.
pub(super) fn values(arguments: &Arguments<'_>) -> Result<Value> {
    Ok(Value::List(
        arguments.object(0)?.values().cloned().collect(),
    ))
}

/// `length(value)`: the number of elements, or of a text's characters.
pub(super) fn length(arguments: &Arguments<'_>) -> Result<Value> {
    let length = match arguments.get(0) {
        (Value::List(values), _) => values.len(),
        (Value::Object(values), _) => values.len(),
        (Value::String(text), _) => text.chars().count(),
        (other, span) => return arguments.expected("a list, an object or text", other, span),
    };
    Ok(Value::Integer(i128::try_from(length).unwrap_or(i128::MAX)))
}

/// `lookup(object, key, default)`.
pub(super) fn lookup(arguments: &Arguments<'_>) -> Result<Value> {
    let (object, key) = (arguments.object(0)?, arguments.text(1)?);
    match (object.get(&*key), arguments.list.get(2)) {
        (Some(value), _) => Ok(value.clone()),
        (None, Some((default, _))) => Ok((*default).clone()),
        (None, None) => {
            let (_, span) = arguments.get(1);
            let problem = Problem::new(span, "`lookup`: the object has no such key");
            fail(problem.hint("give a default as the third argument"))
        }
    }
}

/// `merge(object, …)`: the attributes of all objects, of which later ones win. Null is skipped.
pub(super) fn merge(arguments: &Arguments<'_>) -> Result<Value> {
    let mut merged = BTreeMap::new();
    for (index, (value, _)) in arguments.list.iter().enumerate() {
        if **value != Value::Null {
            let object = arguments.object(index)?.iter();
            merged.extend(object.map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    Ok(Value::Object(merged))
}

/// `toset(list)`: the elements without those that are equal to others, in order. Scalars of
/// different types become texts.
pub(super) fn toset(arguments: &Arguments<'_>) -> Result<Value> {
    if matches!(arguments.get(0), (Value::Null, _)) {
        return Ok(Value::Null);
    }
    let values = arguments.list(0)?;
    let is_number = |value: &Value| matches!(value, Value::Integer(_) | Value::Float(_));
    if values.iter().all(is_number) {
        return sorted_numbers(values, arguments);
    }
    let mut values = values.to_vec();
    let texts: Option<Vec<String>> = values.iter().map(Value::as_text).collect();
    let is_bool = |value: &Value| matches!(value, Value::Bool(_));
    if let (Some(mut texts), false) = (texts, values.iter().all(is_bool)) {
        texts.sort_unstable();
        texts.dedup();
        let texts = texts.into_iter().map(|text| Value::String(text.into()));
        return Ok(Value::List(texts.collect()));
    }
    let mut seen = HashSet::new();
    values.retain(|value| {
        let mut text = String::new();
        value.write_hcl(&mut text, 0);
        seen.insert(text)
    });
    values.sort_by_key(|value| matches!(value, Value::Bool(true)));
    Ok(Value::List(values))
}

fn sorted_numbers(values: &[Value], arguments: &Arguments<'_>) -> Result<Value> {
    let mut numbers = Vec::with_capacity(values.len());
    for value in values {
        numbers.push((number(value, arguments.span)?, value));
    }
    numbers.sort_by(|(left, _), (right, _)| left.compare(*right));
    numbers.dedup_by(|(left, _), (right, _)| left.compare(*right).is_eq());
    let values = numbers.into_iter().map(|(_, value)| value.clone());
    Ok(Value::List(values.collect()))
}
