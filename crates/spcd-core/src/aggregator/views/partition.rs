//! Division of a view with many members into hidden parts.

use crate::aggregator::{ExistingView, hash};

/// Maximum number of members of a view without hidden parts.
const MAX_FLAT_MEMBERS: usize = 80;
/// Average number of members of a part. Planning a query over 1,000 members with 20 columns takes
/// 57 ms of processor time with parts of 50 and 96 ms with parts of 100; smaller parts mean more
/// views.
const MEMBERS_PER_PART: usize = 50;
/// Minimum number of members of a part. Parts are divided again only outside of these limits, so
/// that adding or removing a member moves no other.
const MIN_MEMBERS_PER_PART: usize = 15;

/// Returns the number of parts for this many members; `was` is the current number.
pub(super) fn part_count(members: usize, was: Option<usize>) -> usize {
    let fits = |parts: usize| match parts {
        0 | 1 => members <= MAX_FLAT_MEMBERS,
        parts => members / parts >= MIN_MEMBERS_PER_PART && members / parts <= MAX_FLAT_MEMBERS,
    };
    match was {
        Some(was) if fits(was) => was,
        _ if fits(1) => 1,
        _ => members.div_ceil(MEMBERS_PER_PART).next_power_of_two(),
    }
}

/// Returns the part that a member belongs to, which does not depend on other members.
pub(super) fn part_of(member: &str, parts: usize) -> usize {
    let digits = hash([member]);
    let number = digits
        .get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    number.unwrap_or_default() as usize % parts
}

/// Returns the number of parts that an existing view's name contains.
pub(super) fn part_count_of(view: &ExistingView) -> Option<usize> {
    let mut parts = view.name.rsplitn(3, '_').skip(1);
    let parts = view.hidden.then(|| parts.next()).flatten()?;
    parts.parse().ok().filter(|parts| *parts > 1)
}
