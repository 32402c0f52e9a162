//! Suggestions of the form "did you mean …?".

/// Returns the candidate that differs least from a name, if the difference is small enough for a
/// typing error.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match name.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    let length = name.chars().count();
    candidates
        // Each character of difference in length is an edit.
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= limit)
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Returns the hint with the [`nearest`] candidate.
pub fn suggestion<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, candidates.into_iter()).map(|near| format!("did you mean `{near}`?"))
}

/// Returns whether two names differ by at most one edit.
pub fn is_one_edit_from(name: &str, of: &str) -> bool {
    distance(name, of) <= 1
}

/// Returns the edit distance between two names, ignoring case; a swap of two neighbours counts as
/// one edit.
fn distance(from: &str, to: &str) -> usize {
    // A name from a file may have any length; no known name has 64 characters.
    let [from, to] = [from, to]
        .map(|name| -> String { name.chars().take(64).flat_map(char::to_lowercase).collect() });
    strsim::osa_distance(&from, &to)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let names = ["host", "port", "dbname", "password"];
        let nearest = |name| nearest(name, names.into_iter());
        assert_eq!(nearest("hots"), Some("host"));
        assert_eq!(nearest("Password"), Some("password"));
        assert_eq!(nearest("db_name"), Some("dbname"));
        assert_eq!(nearest("region"), None);
        assert_eq!(nearest("x"), None);
    }
}
