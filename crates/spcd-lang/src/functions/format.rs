//! `format`: `%s` and the like, as in Terraform.

use super::super::number::{Number, number};
use super::super::operations::{boolean, size};
use super::super::syntax::Span;
use super::{Arguments, Problem, Result, Value, fail};

/// Maximum width and precision. Rust's own formatting accepts no more than 65,535.
const MAX_WIDTH: usize = 1000;

/// `format("…%s…", value, …)`.
pub(super) fn format(arguments: &Arguments<'_>) -> Result<Value> {
    let pattern = arguments.text(0)?;
    let (_, span) = arguments.get(0);
    let mut out = String::new();
    let mut rest = &*pattern;
    // Index of the last argument used, and the highest one.
    let (mut last, mut highest) = (0_usize, 0_usize);
    // Size of all values that are read: `%.1s` writes little of a long text.
    let mut read = 0_usize;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (verb, after) = Verb::read(rest, span)?;
        rest = after;
        last = verb.index.unwrap_or(last.saturating_add(1));
        highest = highest.max(last);
        let Some((value, at)) = arguments.list.get(last).filter(|_| last > 0) else {
            let message = format!("`format`: there is no value {last} for `%{}`", verb.letter);
            return fail(Problem::new(span, message));
        };
        read = read.saturating_add(size(value));
        arguments.check_size(read)?;
        let text = verb.text(value, *at)?;
        verb.pad(&text, &mut out);
        arguments.check_size(out.len())?;
    }
    out.push_str(rest);
    arguments.check_size(out.len())?;
    let given = arguments.list.len() - 1;
    if highest < given {
        let message = format!("`format`: the text uses {highest} of {given} values");
        return fail(Problem::new(span, message));
    }
    Ok(Value::String(out.into()))
}

/// `%`, flags, width, precision, index and letter.
#[derive(Default)]
struct Verb {
    letter: char,
    index: Option<usize>,
    zero: bool,
    sharp: bool,
    plus: bool,
    minus: bool,
    space: bool,
    width: usize,
    precision: Option<usize>,
}

impl Verb {
    /// Reads what follows `%`; returns the rest of the text.
    fn read(text: &str, span: Span) -> Result<(Self, &str)> {
        let mut verb = Verb::default();
        let mut rest = text;
        loop {
            let mut after = rest.chars();
            match after.next() {
                Some('0') => verb.zero = true,
                Some('#') => verb.sharp = true,
                Some('+') => verb.plus = true,
                Some('-') => verb.minus = true,
                Some(' ') => verb.space = true,
                _ => break,
            }
            rest = after.as_str();
        }
        let problem = |message: &str| fail(Problem::new(span, format!("`format`: {message}")));
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            let Some((width, after)) = digits(rest).filter(|(width, _)| *width <= MAX_WIDTH) else {
                return problem(&format!("the width is at most {MAX_WIDTH}"));
            };
            (verb.width, rest) = (width, after);
        }
        if let Some(after) = rest.strip_prefix('.') {
            let found = digits(after).filter(|(precision, _)| *precision <= MAX_WIDTH);
            let Some((precision, after)) = found else {
                return problem(&format!(
                    "expected a number of at most {MAX_WIDTH} after `.`"
                ));
            };
            (verb.precision, rest) = (Some(precision), after);
        }
        if let Some(after) = rest.strip_prefix('[') {
            let index = digits(after);
            let Some((index, after)) =
                index.and_then(|(index, after)| Some((index, after.strip_prefix(']')?)))
            else {
                return problem("expected a number and `]` after `[`");
            };
            (verb.index, rest) = (Some(index), after);
        }
        let mut after = rest.chars();
        match after.next() {
            Some(letter) if "vtbdoxXeEfgGsq".contains(letter) => verb.letter = letter,
            _ => return problem("expected one of v t b d o x X e E f g G s q after `%`"),
        }
        Ok((verb, after.as_str()))
    }

    /// Appends a text with its padding, by Unicode code points.
    fn pad(&self, text: &str, out: &mut String) {
        let missing = self.width.saturating_sub(text.chars().count());
        let filler = if self.zero { '0' } else { ' ' };
        let is_number = "bdoxXeEfgG".contains(self.letter);
        match (self.minus, is_number && self.zero) {
            (true, is_number) => {
                out.push_str(text);
                let filler = if is_number { ' ' } else { filler };
                out.extend(std::iter::repeat_n(filler, missing));
            }
            (false, true) if self.precision.is_none() || "eEfgG".contains(self.letter) => {
                // The sign comes before the zeros.
                let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+', ' '])));
                out.push_str(sign);
                out.extend(std::iter::repeat_n('0', missing));
                out.push_str(digits);
            }
            (false, is_number) => {
                let filler = if is_number { ' ' } else { filler };
                out.extend(std::iter::repeat_n(filler, missing));
                out.push_str(text);
            }
        }
    }

    /// Returns a value's text without padding.
    fn text(&self, value: &Value, span: Span) -> Result<String> {
        match self.letter {
            'v' => match value.as_text() {
                Some(text) if !self.sharp => Ok(text),
                _ => Ok(json(value)),
            },
            _ if *value == Value::Null => self.unsupported(value, span),
            't' => Ok(boolean(value, span)?.to_string()),
            's' | 'q' => {
                let Some(text) = value.as_text() else {
                    return self.unsupported(value, span);
                };
                let text = match self.precision {
                    Some(precision) if precision > 0 => text.chars().take(precision).collect(),
                    _ => text,
                };
                Ok(match self.letter {
                    'q' => json(&Value::String(text.into())),
                    _ => text,
                })
            }
            'b' | 'd' | 'o' | 'x' | 'X' => match number(value, span)? {
                Number::Integer(integer) => Ok(self.integer(integer)),
                Number::Float(_) => fail(Problem::new(
                    span,
                    format!("`format`: `%{}` takes a whole number", self.letter),
                )),
            },
            _ => self.float(number(value, span)?, span),
        }
    }

    fn unsupported<T>(&self, value: &Value, span: Span) -> Result<T> {
        let message = format!(
            "`format`: `%{}` does not take {}",
            self.letter,
            value.kind()
        );
        fail(Problem::new(span, message).hint("write `%v` for a value of any type"))
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn integer(&self, integer: i128) -> String {
        let absolute = integer.unsigned_abs();
        let (prefix, digits) = match self.letter {
            'b' => ("0b", format!("{absolute:b}")),
            'o' => ("0", format!("{absolute:o}")),
            'x' => ("0x", format!("{absolute:x}")),
            'X' => ("0X", format!("{absolute:X}")),
            _ => ("", absolute.to_string()),
        };
        let prefix = if self.sharp { prefix } else { "" };
        let zeros = self.precision.unwrap_or(0).saturating_sub(digits.len());
        let (sign, zeros) = (self.sign(integer < 0), "0".repeat(zeros));
        format!("{sign}{prefix}{zeros}{digits}")
    }

    #[allow(clippy::cast_precision_loss)]
    fn float(&self, number: Number, span: Span) -> Result<String> {
        if let (Number::Integer(integer), 'f') = (number, self.letter) {
            let places = self.precision.unwrap_or(6);
            let point = if places > 0 { "." } else { "" };
            let (sign, zeros) = (self.sign(integer < 0), "0".repeat(places));
            return Ok(format!("{sign}{}{point}{zeros}", integer.unsigned_abs()));
        }
        let float = match number {
            Number::Float(float) => float,
            // A float represents whole numbers exactly up to 2^53.
            Number::Integer(integer) if integer.unsigned_abs() <= 1 << 53 => integer as f64,
            Number::Integer(_) => {
                let message = "`format`: this number is too large to be kept exactly";
                return fail(Problem::new(span, message).hint("write `%d` or `%f`"));
            }
        };
        let sign = self.sign(float.is_sign_negative());
        let absolute = float.abs();
        let text = match self.letter {
            'f' => format!("{absolute:.*}", self.precision.unwrap_or(6)),
            'e' | 'E' => scientific(absolute, Some(self.precision.unwrap_or(6))),
            _ => shortest(absolute, self.precision),
        };
        let text = match self.letter {
            'E' | 'G' => text.to_uppercase(),
            _ => text,
        };
        Ok(format!("{sign}{text}"))
    }
}

/// Returns the number at the start of a text, and the rest.
fn digits(text: &str) -> Option<(usize, &str)> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..length].parse().ok()?, &text[length..]))
}

fn json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Returns a number with an exponent of at least two digits: `1.5e+03`.
fn scientific(number: f64, places: Option<usize>) -> String {
    let text = match places {
        Some(places) => format!("{number:.places$e}"),
        None => format!("{number:e}"),
    };
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// Returns a number with an exponent if it is very large or small. `precision` is the number of
/// significant digits; by default as many as needed.
fn shortest(number: f64, precision: Option<usize>) -> String {
    let precision = precision.map(|digits| digits.max(1));
    let text = scientific(number, precision.map(|digits| digits - 1));
    let exponent = text.split_once('e').map_or("0", |(_, exponent)| exponent);
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let most = i64::try_from(precision.unwrap_or(6)).unwrap_or(i64::MAX);
    if exponent < -4 || exponent >= most {
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{exponent}", without_zeros(mantissa));
    }
    match precision {
        Some(digits) => {
            let places = i64::try_from(digits).unwrap_or(i64::MAX) - 1 - exponent;
            let places = usize::try_from(places).unwrap_or(0);
            without_zeros(&format!("{number:.places$}")).to_owned()
        }
        None => number.to_string(),
    }
}

/// Removes zeros at the end of a fraction.
fn without_zeros(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}
