//! Circles of hubs that mirror each other.

use std::collections::BTreeSet;

/// Returns whether a hub refuses a source because one of the source's `origins` is the hub itself.
/// `own` is the hub's identity, and `source` that of the source.
///
/// A hub that does not follow the source yet refuses it. Hubs that started at the same time may all
/// follow their sources before they detect the circle. Then a hub whose identity is less than its
/// source's continues. In any circle at least one hub has a greater identity than its source; it
/// refuses, which opens the circle.
pub fn refuses(
    own: Option<&str>,
    source: Option<&str>,
    origins: &BTreeSet<String>,
    is_followed: bool,
) -> bool {
    let is_circle =
        own.is_some_and(|own| own != source.unwrap_or_default() && origins.contains(own));
    let goes_on = is_followed && own < source;
    is_circle && !goes_on
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_hub_refuses_itself_through_another_hub() {
        let refused =
            |source, origins: &[&str]| refuses(Some("b"), Some(source), &set(origins), false);
        assert!(refused("a", &["a", "b"]));
        assert!(refused("c", &["c", "a", "b"]));
        assert!(!refused("c", &["c", "a"]));
        // A service, or a hub of an earlier version, has no mark.
        assert!(!refuses(Some("b"), None, &set(&[]), false));
    }

    #[test]
    fn hubs_that_began_together_do_not_all_go_on_and_do_not_all_refuse() {
        // Each mirrors the next, the last one the first.
        for circle in [vec!["a", "b"], vec!["b", "c", "a"], vec!["c", "b", "a"]] {
            let all = set(&circle);
            let refused = (0..circle.len()).filter(|at| {
                let source = circle[(at + 1) % circle.len()];
                refuses(Some(circle[*at]), Some(source), &all, true)
            });
            let refused = refused.count();
            assert!(
                (1..circle.len()).contains(&refused),
                "{circle:?}: {refused}"
            );
        }
    }
}
