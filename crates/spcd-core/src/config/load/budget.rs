//! What a whole load may cost, so that a file that asks for endless work ends as an error of its
//! own blocks.

use spcd_lang::evaluate::{Environment, Function};

use super::Given;

/// The work that all values and aggregators of a load may make together, besides what the length of
/// the files allows. A step takes about 25 ns, so this takes less than 2 s; 10,000 connections of
/// which each is a member of 100 aggregators cost a third of it.
const MAX_WORK: usize = 64 << 20;

/// What is left of the work that a load may cost.
pub(in crate::config) struct Budget {
    limit: usize,
    spent: usize,
}

impl Budget {
    /// For files of so many bytes: to repeat what they say costs nothing.
    pub(in crate::config) fn of(bytes: usize) -> Self {
        Self {
            limit: MAX_WORK.saturating_add(bytes.saturating_mul(2)),
            spent: 0,
        }
    }

    /// Takes note of work; false once there was too much.
    pub(crate) fn spend(&mut self, work: usize) -> bool {
        self.spent = self.spent.saturating_add(work);
        self.spent <= self.limit
    }

    /// All that was spent.
    pub(super) fn spent(&self) -> usize {
        self.spent
    }
}

/// What the values of one file may ask for.
pub(in crate::config) struct Asking<'a, 'g> {
    given: &'a mut Given<'g>,
    file: &'a str,
    budget: &'a mut Budget,
    /// Whether a function was called.
    pub(super) calls: bool,
}

impl<'a, 'g> Asking<'a, 'g> {
    pub(in crate::config) fn of(
        given: &'a mut Given<'g>,
        file: &'a str,
        budget: &'a mut Budget,
    ) -> Self {
        Self {
            given,
            file,
            budget,
            calls: false,
        }
    }
}

impl Environment for Asking<'_, '_> {
    fn look_up(&mut self, function: Function, argument: &str) -> Result<String, String> {
        self.calls = true;
        look_up(self.given, self.file, function, argument)
    }

    fn evaluates(&self) -> bool {
        self.given.lookup.is_some()
    }

    fn spend(&mut self, work: usize) -> bool {
        self.budget.spend(work)
    }
}

/// Calls a function, for a value in that file.
fn look_up(
    given: &mut Given<'_>,
    file: &str,
    function: Function,
    argument: &str,
) -> Result<String, String> {
    let directory = match file.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((directory, _)) => directory,
        None => "",
    };
    let Some(lookup) = &mut given.lookup else {
        return Err("functions are not evaluated".into());
    };
    lookup(function, directory, argument).map_err(|reason| {
        let what = match function {
            Function::Env => "the environment variable",
            Function::File => "the file",
            Function::Credential => "the credential",
        };
        // The place of a secret is not secret, but the argument may be the secret itself.
        let is_name = argument.len() <= 200
            && argument
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        match is_name {
            true => format!("{what} `{argument}` cannot be had: {reason}"),
            false => format!("{what} cannot be had: {reason}"),
        }
    })
}
