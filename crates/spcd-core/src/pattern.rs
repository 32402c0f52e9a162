//! Patterns with the meaning of Go's `path.Match`: `*` `?` `[a-z]` `[^a]` `\`.
//!
//! `*` and `?` match any characters but `/`. Matching is case-sensitive.

/// Parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<PatternItem>);

/// Error for a pattern with an unfinished `[` or `\`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this pattern has a `[` without its `]`, an empty or broken range, or ends with a `\\`")]
pub struct BadPattern;

#[derive(Debug, Clone, PartialEq, Eq)]
enum PatternItem {
    Exactly(char),
    Any,
    Run,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// Parses a pattern.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        let mut items = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(character) = rest.next() {
            items.push(match character {
                '*' => PatternItem::Run,
                '?' => PatternItem::Any,
                '\\' => PatternItem::Exactly(rest.next().ok_or(BadPattern)?),
                '[' => {
                    let negated = rest.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                        let low = class_character(&mut rest)?;
                        let high = match rest.next_if_eq(&'-') {
                            Some(_) => class_character(&mut rest)?,
                            None => low,
                        };
                        ranges.push((low, high));
                    }
                    PatternItem::Class { negated, ranges }
                }
                other => PatternItem::Exactly(other),
            });
        }
        Ok(Self(items))
    }

    /// Returns the literal prefix of every matching name.
    pub fn prefix(&self) -> String {
        let exactly = |item: &PatternItem| match item {
            PatternItem::Exactly(character) => Some(*character),
            _ => None,
        };
        self.0.iter().map_while(exactly).collect()
    }

    /// Returns the only matching name; `None` if several may match.
    pub fn exact(&self) -> Option<String> {
        let prefix = self.prefix();
        (prefix.chars().count() == self.0.len()).then_some(prefix)
    }

    /// Returns whether the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut item, mut at) = (0, 0);
        // The last `*`, and the end of the text that it matches.
        let mut run: Option<(usize, usize)> = None;
        while at < name.len() || item < self.0.len() {
            if let Some(PatternItem::Run) = self.0.get(item) {
                run = Some((item, at));
                item += 1;
                continue;
            }
            if let (Some(found), Some(&character)) = (self.0.get(item), name.get(at))
                && found.takes(character)
            {
                item += 1;
                at += 1;
                continue;
            }
            match run {
                Some((start, taken)) if name.get(taken).is_some_and(|&taken| taken != '/') => {
                    run = Some((start, taken + 1));
                    item = start + 1;
                    at = taken + 1;
                }
                _ => return false,
            }
        }
        true
    }
}

impl PatternItem {
    fn takes(&self, character: char) -> bool {
        match self {
            PatternItem::Exactly(own) => *own == character,
            PatternItem::Any => character != '/',
            PatternItem::Run => false,
            PatternItem::Class { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&character))
                    != *negated
            }
        }
    }
}

fn class_character(
    rest: &mut std::iter::Peekable<std::str::Chars<'_>>,
) -> Result<char, BadPattern> {
    let character = match rest.next() {
        None | Some('-' | ']') => return Err(BadPattern),
        Some('\\') => rest.next().ok_or(BadPattern)?,
        Some(other) => other,
    };
    // An unclosed class is an error even where nothing is compared with it.
    if rest.peek().is_none() {
        Err(BadPattern)
    } else {
        Ok(character)
    }
}

#[cfg(test)]
mod tests {
    use super::{BadPattern, Pattern};

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        // From the documentation and the tests of Go's package path.
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("*x", "xxx", true),
            ("A*", "abc", false),
            ("", "", true),
            ("", "a", false),
            ("**", "", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                Pattern::new(pattern).unwrap().matches(name),
                expected,
                "{pattern} {name}"
            );
        }
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "\\", "[a", "[a-", "[]",
        ] {
            assert_eq!(Pattern::new(pattern), Err(BadPattern), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_without_wildcards_is_a_name() {
        let exact = |text: &str| Pattern::new(text).unwrap().exact();
        assert_eq!(exact("a\\*b").as_deref(), Some("a*b"));
        assert_eq!(exact("ä").as_deref(), Some("ä"));
        assert_eq!(exact("a*"), None);
        assert_eq!(exact("[a]"), None);
    }

    #[test]
    fn many_stars_take_no_longer() {
        let pattern = "a*".repeat(2000) + "b";
        assert!(!Pattern::new(&pattern).unwrap().matches(&"a".repeat(4000)));
    }
}
