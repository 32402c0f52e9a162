//! Durations in settings.

/// Parses `500ms`, `30s`, `2m` or `2min`, `1h`, `1d`; a bare number is in seconds. Returns milliseconds;
/// `None` for any other text.
pub fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn numbers_with_a_unit_or_seconds() {
        for (text, expected) in [
            ("5", Some(5000)),
            ("5 s", Some(5000)),
            ("20ms", Some(20)),
            ("2min", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("", None),
            ("-1s", None),
            ("1d", Some(86_400_000)),
            ("1.5s", None),
            ("s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text:?}");
        }
    }
}
