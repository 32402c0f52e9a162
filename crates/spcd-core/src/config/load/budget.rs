//! Limits the work of a whole load, so that endless work becomes an error of its own blocks.

use spcd_lang::evaluate::{Environment, Function};

use super::LoadContext;

/// Maximum work of all values and aggregators of a load, besides what the length of the files
/// allows. A step takes about 25 ns, so this takes less than 2 s. 10,000 connections that are each
/// a member of 100 aggregators use a third of it.
const MAX_WORK: usize = 64 << 20;

/// Remaining work of a load.
pub(in crate::config) struct Budget {
    limit: usize,
    spent: usize,
}

impl Budget {
    /// Creates the budget for files of this size: copying their text costs nothing.
    pub(in crate::config) fn of(bytes: usize) -> Self {
        Self {
            limit: MAX_WORK.saturating_add(bytes.saturating_mul(2)),
            spent: 0,
        }
    }

    /// Records work; returns false once the limit is exceeded.
    pub(crate) fn spend(&mut self, work: usize) -> bool {
        self.spent = self.spent.saturating_add(work);
        self.spent <= self.limit
    }

    /// Returns the work spent so far.
    pub(super) fn spent(&self) -> usize {
        self.spent
    }
}

/// Environment of the values of one file.
pub(in crate::config) struct FileEnvironment<'a, 'g> {
    given: &'a mut LoadContext<'g>,
    file: &'a str,
    budget: &'a mut Budget,
    /// Whether a function was called.
    pub(super) calls: bool,
}

impl<'a, 'g> FileEnvironment<'a, 'g> {
    pub(in crate::config) fn of(
        given: &'a mut LoadContext<'g>,
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

impl Environment for FileEnvironment<'_, '_> {
    fn call(&mut self, function: Function, argument: &str) -> Result<String, String> {
        self.calls = true;
        look_up(self.given, self.file, function, argument)
    }

    fn evaluates_functions(&self) -> bool {
        self.given.lookup.is_some()
    }

    fn spend(&mut self, work: usize) -> bool {
        self.budget.spend(work)
    }
}

/// Calls a function for a value of a file.
fn look_up(
    given: &mut LoadContext<'_>,
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
        // The name of a secret is not secret, but the argument may be the secret itself.
        let is_name = argument.len() <= 200
            && argument
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        match is_name {
            true => format!("{what} `{argument}` is not available: {reason}"),
            false => format!("{what} is not available: {reason}"),
        }
    })
}
