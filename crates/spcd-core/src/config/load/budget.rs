//! Limits the work of a whole load, so that endless work becomes an error of its own blocks.

use std::sync::Arc;

use spcd_lang::evaluate::{Environment, Function, Variable};
use spcd_lang::value::Value;

use super::LoadContext;
use super::local_values::Locals;

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
    locals: Option<&'a Locals>,
    /// Meaning of `each`.
    pub(super) each: Each,
    /// Whether a function was called.
    pub(super) calls: bool,
    /// Whether a local value was read.
    pub(super) uses_locals: bool,
    /// Whether `each` was read where it has no meaning.
    pub(super) lacks_each: bool,
}

/// Meaning of `each`.
pub(in crate::config) enum Each {
    /// The block has no `for_each`.
    Absent,
    /// The elements are not known.
    Unknown,
    /// Key and value of an element.
    Element(Arc<Value>),
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
            locals: None,
            each: Each::Absent,
            calls: false,
            uses_locals: false,
            lacks_each: false,
        }
    }

    /// Sets the local values, of which the file sees those of its directory.
    pub(super) fn with_locals(mut self, locals: &'a Locals) -> Self {
        self.locals = Some(locals);
        self
    }
}

impl Environment for FileEnvironment<'_, '_> {
    fn call(&mut self, function: Function, argument: &str) -> Result<String, String> {
        self.calls = true;
        look_up(self.given, self.file, function, argument)
    }

    fn variable(&mut self, name: &str, attribute: Option<&str>) -> Option<Variable> {
        match (name, &self.each, self.locals) {
            ("local", _, Some(locals)) => {
                self.uses_locals = true;
                Some(locals.variable(directory_of(self.file), attribute))
            }
            ("each", Each::Element(each), _) => Some(Variable::Known(each.clone())),
            ("each", Each::Unknown, _) => Some(Variable::Unknown),
            ("each", Each::Absent, _) => {
                self.lacks_each = true;
                Some(Variable::Missing(
                    "`each` has no value here".to_owned(),
                    Some("it has one in the attributes of a connection with `for_each`".to_owned()),
                ))
            }
            _ => None,
        }
    }

    fn evaluates_functions(&self) -> bool {
        self.given.lookup.is_some()
    }

    fn spend(&mut self, work: usize) -> bool {
        self.budget.spend(work)
    }
}

/// Returns the directory of a file.
pub(super) fn directory_of(file: &str) -> &str {
    match file.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((directory, _)) => directory,
        None => "",
    }
}

/// Calls a function for a value of a file.
fn look_up(
    given: &mut LoadContext<'_>,
    file: &str,
    function: Function,
    argument: &str,
) -> Result<String, String> {
    let directory = directory_of(file);
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
