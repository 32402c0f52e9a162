//! Arithmetic. Whole numbers are exact, and a result that a fraction's type would round is refused.

use super::syntax::{BinaryOperator, Problem, Span};
use super::value::Value;

/// Number, or the problem because of which there is none.
pub(super) type Result<T> = std::result::Result<T, Box<Problem>>;

pub(super) fn fail<T>(problem: Problem) -> Result<T> {
    Err(Box::new(problem))
}

/// Whole number or fraction.
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
        // Whole numbers are compared as integers: a float would round them.
        match (self.integer(), other.integer()) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => self.float().total_cmp(&other.float()),
        }
    }

    /// Returns the number as an integer, if it is whole and fits.
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

/// Returns a value as a number; texts are converted.
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

/// Applies an operator to two numbers.
pub(super) fn arithmetic(
    operator: BinaryOperator,
    left: Number,
    right: Number,
    span: Span,
) -> Result<Value> {
    let by_zero = matches!(right, Number::Integer(0)) || right.float() == 0.0;
    if matches!(operator, BinaryOperator::Divide | BinaryOperator::Modulo) && by_zero {
        return fail(Problem::new(span, "this divides by zero"));
    }
    if let (Number::Integer(left), Number::Integer(right)) = (left, right) {
        match operator {
            BinaryOperator::Add => return checked(left.checked_add(right), span),
            BinaryOperator::Subtract => return checked(left.checked_sub(right), span),
            BinaryOperator::Multiply => return checked(left.checked_mul(right), span),
            BinaryOperator::Modulo => return checked(left.checked_rem(right), span),
            _ if left.checked_rem(right) == Some(0) => {
                return checked(left.checked_div(right), span);
            }
            _ => {}
        }
    }
    // Beyond 2^53 a float does not represent every whole number.
    let exact = |number: f64| number.abs() < 9_007_199_254_740_992.0;
    let (left, right) = (left.float(), right.float());
    let result = match operator {
        BinaryOperator::Add => left + right,
        BinaryOperator::Subtract => left - right,
        BinaryOperator::Multiply => left * right,
        BinaryOperator::Divide => left / right,
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

/// Returns a result as a value; a whole one becomes an integer.
pub(super) fn fraction(number: f64) -> Value {
    match Number::Float(number).integer() {
        Some(integer) => Value::Integer(integer),
        None => Value::Float(number),
    }
}
