//! Kinds of CSV values.

/// Type that accepts every value of a column and prints each one as it was written. Texts whose
/// form carries meaning stay text: `007` and `+49`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// No value was read.
    Nothing,
    Boolean,
    Integer,
    Numeric,
    Date,
    Timestamp,
    TimestampWithZone,
    Text,
}

impl ValueKind {
    /// Returns the kind of one value.
    pub(super) fn of(value: &str) -> Self {
        let Some(first) = value.bytes().next() else {
            return ValueKind::Text;
        };
        match first {
            b't' | b'T' | b'f' | b'F' => {
                let boolean =
                    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false");
                if boolean {
                    ValueKind::Boolean
                } else {
                    ValueKind::Text
                }
            }
            b'0'..=b'9' | b'-' => number(value)
                .or_else(|| timestamp(value))
                .unwrap_or(ValueKind::Text),
            _ => ValueKind::Text,
        }
    }

    /// Returns the kind that accepts the values of both.
    pub(super) fn combine(self, other: Self) -> Self {
        match (self, other) {
            (one, other) if one == other => one,
            (ValueKind::Nothing, kind) | (kind, ValueKind::Nothing) => kind,
            (ValueKind::Integer, ValueKind::Numeric) | (ValueKind::Numeric, ValueKind::Integer) => {
                ValueKind::Numeric
            }
            (ValueKind::Date, ValueKind::Timestamp) | (ValueKind::Timestamp, ValueKind::Date) => {
                ValueKind::Timestamp
            }
            _ => ValueKind::Text,
        }
    }

    /// Returns the types that accept all its values.
    pub(super) fn accepted_by(self) -> &'static [&'static str] {
        match self {
            ValueKind::Nothing => &[
                "boolean",
                "bigint",
                "numeric",
                "date",
                "timestamp without time zone",
                "timestamp with time zone",
                "text",
            ],
            ValueKind::Boolean => &["boolean", "text"],
            ValueKind::Integer => &["bigint", "numeric", "text"],
            ValueKind::Numeric => &["numeric", "text"],
            ValueKind::Date => &["date", "timestamp without time zone", "text"],
            ValueKind::Timestamp => &["timestamp without time zone", "text"],
            ValueKind::TimestampWithZone => &["timestamp with time zone", "text"],
            ValueKind::Text => &["text"],
        }
    }

    /// Returns the type's name in Postgres.
    pub(super) fn data_type(self) -> &'static str {
        match self {
            ValueKind::Nothing | ValueKind::Text => "text",
            ValueKind::Boolean => "boolean",
            ValueKind::Integer => "bigint",
            ValueKind::Numeric => "numeric",
            ValueKind::Date => "date",
            ValueKind::Timestamp => "timestamp without time zone",
            ValueKind::TimestampWithZone => "timestamp with time zone",
        }
    }
}

/// Maximum number of digits: far below the limit of `numeric`.
const MAX_DIGITS: usize = 1000;
const MAX_EXPONENT: u32 = 1000;

/// Recognizes `-12`, `0.50`, `1.5e-7`; not `007`, `+1`, `.5`, `1.`, `-0`, nor `1e5`, which may be a
/// name.
fn number(value: &str) -> Option<ValueKind> {
    let unsigned = value.strip_prefix('-').unwrap_or(value);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || (whole.len() > 1 && whole.starts_with('0')) || value.len() > MAX_DIGITS {
        return None;
    }
    match (fraction, exponent) {
        (None, None) if value == "-0" => None,
        (None, None) => Some(match value.parse::<i64>() {
            Ok(_) => ValueKind::Integer,
            Err(_) => ValueKind::Numeric,
        }),
        (Some(fraction), None) => digits(fraction).then_some(ValueKind::Numeric),
        (fraction, Some(exponent)) => {
            let signed = exponent.strip_prefix(['+', '-']);
            let plain = signed.unwrap_or(exponent);
            let sure = fraction.is_some_and(digits) || (fraction.is_none() && signed.is_some());
            let small = digits(plain) && plain.parse().is_ok_and(|n: u32| n <= MAX_EXPONENT);
            (sure && small).then_some(ValueKind::Numeric)
        }
    }
}

/// Recognizes `2024-02-29`, with a time after a space or `T`, and a time zone after that.
fn timestamp(value: &str) -> Option<ValueKind> {
    let (date, time) = match value.split_once([' ', 'T']) {
        Some((date, time)) => (date, Some(time)),
        None => (value, None),
    };
    let [year, month, day] = parts(date, '-', [4, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        1..=12 => 31,
        _ => return None,
    };
    if year == 0 || !(1..=days).contains(&day) {
        return None;
    }
    let Some(time) = time else {
        return Some(ValueKind::Date);
    };
    let (time, zone) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], Some(&time[at..])),
        None => (time, None),
    };
    let (time, fraction) = match time.split_once('.') {
        Some((time, fraction)) => (time, Some(fraction)),
        None => (time, None),
    };
    // Fractions finer than a microsecond would be rounded.
    let fine = |text: &str| matches!(text.len(), 1..=6) && text.bytes().all(|b| b.is_ascii_digit());
    let [hour, minute, second] = match time.len() {
        5 if fraction.is_none() => {
            let [hour, minute] = parts(time, ':', [2, 2])?;
            [hour, minute, 0]
        }
        _ => parts(time, ':', [2, 2, 2])?,
    };
    if hour > 23 || minute > 59 || second > 59 || !fraction.is_none_or(fine) {
        return None;
    }
    match zone {
        None => Some(ValueKind::Timestamp),
        Some("Z") => Some(ValueKind::TimestampWithZone),
        Some(offset) => {
            let offset = offset.get(1..)?;
            let [hours, minutes] = match offset.len() {
                2 => [parts(offset, ':', [2])?[0], 0],
                4 if offset.is_ascii() => {
                    let (hours, minutes) = offset.split_at(2);
                    [parts(hours, ':', [2])?[0], parts(minutes, ':', [2])?[0]]
                }
                _ => parts(offset, ':', [2, 2])?,
            };
            (hours < 15 && minutes < 60).then_some(ValueKind::TimestampWithZone)
        }
    }
}

/// Parses numbers with the given numbers of digits and a separator between them.
fn parts<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u32; N]> {
    let mut found = [0; N];
    let mut pieces = text.split(between);
    for (number, digits) in found.iter_mut().zip(digits) {
        let piece = pieces.next()?;
        if piece.len() != digits || !piece.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = piece.parse().ok()?;
    }
    pieces.next().is_none().then_some(found)
}
