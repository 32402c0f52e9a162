//! Numbers: whole ones are kept exactly, and nothing is rounded to what a fraction's type holds.

use super::syntax::{Binary, Problem, Span};
use super::value::Value;

/// A number, or why there is none.
pub(super) type Result<T> = std::result::Result<T, Box<Problem>>;

pub(super) fn fail<T>(problem: Problem) -> Result<T> {
    Err(Box::new(problem))
}

/// A number of either kind.
#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    #[allow(clippy::cast_precision_loss)]
    fn float(self) -> f64 {
        match self {
            Number::Integer(integer) => integer as f64,
            Number::Float(float) => float,
        }
    }

    pub(super) fn compare(self, other: Self) -> std::cmp::Ordering {
        // A whole number is compared as such: a fraction's type would round it.
        match (self.integer(), other.integer()) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => self.float().total_cmp(&other.float()),
        }
    }

    /// The number, if it is whole and fits.
    fn integer(self) -> Option<i128> {
        match self {
            Number::Integer(integer) => Some(integer),
            #[allow(clippy::cast_possible_truncation)]
            Number::Float(float) if float.fract() == 0.0 && float.abs() < 1e38 => {
                Some(float as i128)
            }
            Number::Float(_) => None,
        }
    }
}

/// The number that a value is, or that its text says.
pub(super) fn number(value: &Value, span: Span) -> Result<Number> {
    match value {
        Value::Integer(integer) => return Ok(Number::Integer(*integer)),
        Value::Float(float) => return Ok(Number::Float(*float)),
        Value::String(text) => {
            if let Ok(integer) = text.parse() {
                return Ok(Number::Integer(integer));
            }
            let float = text.parse::<f64>().ok().filter(|float| float.is_finite());
            if let Some(float) = float.filter(|_| text.bytes().any(|byte| byte == b'.')) {
                return Ok(Number::Float(float));
            }
        }
        _ => {}
    }
    fail(Problem::new(
        span,
        format!("expected a number, found {}", value.kind()),
    ))
}

/// A whole number, if it fits.
pub(super) fn checked(result: Option<i128>, span: Span) -> Result<Value> {
    match result {
        Some(integer) => Ok(Value::Integer(integer)),
        None => fail(Problem::new(
            span,
            "the result is too large to be kept exactly",
        )),
    }
}

/// What an operator makes of two numbers.
pub(super) fn arithmetic(
    operator: Binary,
    left: Number,
    right: Number,
    span: Span,
) -> Result<Value> {
    let by_zero = matches!(right, Number::Integer(0)) || right.float() == 0.0;
    if matches!(operator, Binary::Divide | Binary::Modulo) && by_zero {
        return fail(Problem::new(span, "this divides by zero"));
    }
    if let (Number::Integer(left), Number::Integer(right)) = (left, right) {
        match operator {
            Binary::Add => return checked(left.checked_add(right), span),
            Binary::Subtract => return checked(left.checked_sub(right), span),
            Binary::Multiply => return checked(left.checked_mul(right), span),
            Binary::Modulo => return checked(left.checked_rem(right), span),
            _ if left.checked_rem(right) == Some(0) => {
                return checked(left.checked_div(right), span);
            }
            _ => {}
        }
    }
    // Beyond 2^53 a whole number is not always kept by the type that holds fractions.
    let exact = |number: f64| number.abs() < 9_007_199_254_740_992.0;
    let (left, right) = (left.float(), right.float());
    let result = match operator {
        Binary::Add => left + right,
        Binary::Subtract => left - right,
        Binary::Multiply => left * right,
        Binary::Divide => left / right,
        _ => left % right,
    };
    if !(exact(left) && exact(right) && exact(result)) {
        return fail(Problem::new(
            span,
            "the result is too large to be kept exactly",
        ));
    }
    Ok(fraction(result))
}

/// A number that may turn out to be whole; a whole one has one form only.
pub(super) fn fraction(number: f64) -> Value {
    match Number::Float(number).integer() {
        Some(integer) => Value::Integer(integer),
        None => Value::Float(number),
    }
}
