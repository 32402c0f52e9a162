//! Any pattern (the first line) against any name (the rest), as a second matcher says
//! that is written like the one in Go.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::pattern::Pattern;

/// One character of the pattern's beginning, and what follows; `None` where there is none.
fn literal(pattern: &[char]) -> Option<(char, &[char])> {
    match pattern {
        ['\\', character, rest @ ..] => Some((*character, rest)),
        ['\\'] | [] => None,
        [character, rest @ ..] => Some((*character, rest)),
    }
}

/// What follows a class, and whether the character is in it; `None` where the class is bad.
fn class(pattern: &[char], character: Option<char>) -> Option<(&[char], bool)> {
    let (negated, mut rest) = match pattern {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (mut found, mut count) = (false, 0);
    loop {
        if let ([']', after @ ..], true) = (rest, count > 0) {
            return Some((after, found != negated));
        }
        if let ['-' | ']', ..] = rest {
            return None;
        }
        let (low, after) = literal(rest)?;
        let (high, after) = match after {
            ['-', after @ ..] if !matches!(after, ['-' | ']', ..]) => literal(after)?,
            ['-', ..] => return None,
            _ => (low, after),
        };
        found |= character.is_some_and(|c| low <= c && c <= high);
        rest = after;
        count += 1;
    }
}

fn is_valid(pattern: &[char]) -> bool {
    match pattern {
        [] => true,
        ['*' | '?', rest @ ..] => is_valid(rest),
        ['[', rest @ ..] => class(rest, None).is_some_and(|(rest, _)| is_valid(rest)),
        _ => literal(pattern).is_some_and(|(_, rest)| is_valid(rest)),
    }
}

/// What is left of the name behind a part of the pattern that has no star.
fn part<'n>(mut pattern: &[char], mut name: &'n [char]) -> Option<&'n [char]> {
    while !pattern.is_empty() {
        let (first, after) = name.split_first()?;
        pattern = match pattern {
            ['?', rest @ ..] => (*first != '/').then_some(rest)?,
            ['[', rest @ ..] => match class(rest, Some(*first))? {
                (rest, true) => rest,
                _ => return None,
            },
            _ => match literal(pattern)? {
                (character, rest) if character == *first => rest,
                _ => return None,
            },
        };
        name = after;
    }
    Some(name)
}

/// The length of the beginning that has no star.
fn part_length(pattern: &[char]) -> usize {
    let (mut at, mut in_class) = (0, false);
    while at < pattern.len() {
        match pattern[at] {
            '\\' => at += 1,
            '[' => in_class = true,
            ']' => in_class = false,
            '*' if !in_class => break,
            _ => {}
        }
        at += 1;
    }
    at.min(pattern.len())
}

/// As Go does it: each part between stars at the first place where it fits, which is final.
fn matches(mut pattern: &[char], mut name: &[char]) -> bool {
    'parts: while !pattern.is_empty() {
        let stars = pattern.iter().take_while(|c| **c == '*').count();
        pattern = &pattern[stars..];
        let (own, rest) = pattern.split_at(part_length(pattern));
        pattern = rest;
        if own.is_empty() {
            return !name.contains(&'/');
        }
        for skipped in 0..=name.len() {
            if skipped > 0 && (stars == 0 || name[skipped - 1] == '/') {
                return false;
            }
            if let Some(left) = part(own, &name[skipped..])
                && (left.is_empty() || !pattern.is_empty())
            {
                name = left;
                continue 'parts;
            }
        }
        return false;
    }
    name.is_empty()
}

fuzz_target!(|text: &str| {
    let (pattern, name) = text.split_once('\n').unwrap_or((text, ""));
    let ours = Pattern::new(pattern).map(|pattern| pattern.matches(name));
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    assert_eq!(ours.is_ok(), is_valid(&pattern));
    if let Ok(ours) = ours {
        assert_eq!(ours, matches(&pattern, &name));
    }
});
