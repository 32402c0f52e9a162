//! Elements of `for_each`: many connections from one block.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::budget::Each;
use super::{FileEnvironment, LoadedBlock, Loader};
use crate::config::connection::{self, FOR_EACH};
use crate::config::key::{Key, key};
use spcd_lang::evaluate::{EvaluationError, evaluate};
use spcd_lang::references::references;
use spcd_lang::syntax::{Attribute, Block, Expression, ExpressionKind, Problem, Span};
use spcd_lang::value::Value;

/// Maximum number of connections of one block: twice as many as spcd is measured with.
const MAX_ELEMENTS: usize = 20_000;

/// Work that a connection counts as, besides the length of its block's body. It bounds the memory of many
/// connections from little text.
const ELEMENT_WORK: usize = 1024;

/// Maximum number of names or indexes in a message.
const MAX_SHOWN: usize = 3;

/// Connection of a block.
pub(super) struct Element {
    pub(super) name: String,
    /// Span of the name.
    pub(super) span: Span,
    /// Object with `key` and `value`.
    pub(super) each: Arc<Value>,
    /// What messages call the element.
    pub(super) place: String,
    /// Key of everything that the connection is computed from, except local values and functions.
    pub(super) key: Key,
}

fn attribute<'b>(block: &'b Block, name: &str) -> Option<&'b Attribute> {
    let mut attributes = block.body.attributes.iter();
    attributes.find(|attribute| *attribute.name == *name)
}

impl Loader<'_, '_> {
    /// Returns the connections of a block with `for_each`, and `None` for another. Elements without a
    /// name are reported.
    pub(super) fn elements(&mut self, item: &LoadedBlock) -> Option<Vec<Element>> {
        let block = item.block()?;
        let for_each = attribute(block, FOR_EACH)?;
        let mut problems = Vec::new();
        let found = self.named_elements(item, block, for_each, &mut problems);
        let elements = found.unwrap_or_default();
        // Connections that an element without a name gave before keep what they have. So do those of a
        // block that could not be parsed in full: what is wrong may be in `for_each` or `name`.
        let doubts: Vec<Problem> = problems
            .iter()
            .cloned()
            .chain(item.own_problems())
            .collect();
        if let Some(error) = self.error_of(item, &doubts) {
            self.mark_unknown_with(item.file, error);
        }
        if elements.is_empty() {
            self.check_body(item, block, &mut problems);
        }
        self.report_errors(item, &problems, None);
        Some(elements)
    }

    /// Reads a block of which no element is known, for its problems.
    fn check_body(&mut self, item: &LoadedBlock, block: &Block, problems: &mut Vec<Problem>) {
        problems.extend(item.own_problems());
        let label = block.labels.first().map_or("", |label| &*label.text);
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup =
            FileEnvironment::of(self.given, path, &mut self.budget).with_locals(&self.locals);
        lookup.each = Each::Unknown;
        let whole = item.own_problems().next().is_none();
        let read = connection::read(block, label, path, &self.instances, &mut lookup, whole);
        problems.extend(read.problems);
    }

    /// Evaluates `for_each`, and `name` for each element. Returns `None` if no element is known.
    fn named_elements(
        &mut self,
        item: &LoadedBlock,
        block: &Block,
        for_each: &Attribute,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<Element>> {
        let name = name_of(block, problems);
        let value = self.evaluate_for(item, &for_each.value, Each::Absent);
        let elements = match value {
            Ok(value) => each_values(value, for_each.value.span, problems)?,
            Err(EvaluationError::Problem(problem)) => {
                problems.push(*problem);
                return None;
            }
            Err(EvaluationError::Reported) => return None,
        };
        let name = name?;
        // Every element has the values of the block, but not those of `for_each`.
        let length = |span: Span| span.end.saturating_sub(span.start);
        let body = length(Span {
            start: block.open,
            end: block.close,
        });
        let own = body.saturating_sub(length(for_each.value.span));
        let work = ELEMENT_WORK + own as usize;
        let mut named = Vec::with_capacity(elements.len());
        let mut nameless = Nameless::default();
        for each in elements {
            if !self.budget.spend(work) {
                let message = "the connections of all files together take too much work";
                let problem = Problem::new(for_each.value.span, message);
                problems.push(problem.hint("give fewer elements here or in the blocks before"));
                break;
            }
            let value = Arc::new(each.value);
            match self.evaluate_for(item, &name.value, Each::Element(value.clone())) {
                Ok(text) => match text.as_text() {
                    Some(text) => named.push(Element {
                        key: element_key(item, &text, &value),
                        name: text,
                        span: name.value.span,
                        each: value,
                        place: each.place,
                    }),
                    None => {
                        let message = format!("expected text for `name`, found {}", text.kind());
                        nameless.add(Problem::new(name.value.span, message), &each.place);
                    }
                },
                Err(EvaluationError::Problem(problem)) => nameless.add(*problem, &each.place),
                Err(EvaluationError::Reported) => return None,
            }
        }
        problems.extend(nameless.problems());
        Some(named)
    }

    fn evaluate_for(
        &mut self,
        item: &LoadedBlock,
        expression: &Expression,
        each: Each,
    ) -> Result<Value, EvaluationError> {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup =
            FileEnvironment::of(self.given, path, &mut self.budget).with_locals(&self.locals);
        lookup.each = each;
        evaluate(expression, &mut lookup)
    }
}

/// Returns the attribute `name`, if it is one that differs between elements.
fn name_of<'b>(block: &'b Block, problems: &mut Vec<Problem>) -> Option<&'b Attribute> {
    let label = block.labels.first().map_or("", |label| &*label.text);
    let label: String = label.chars().filter(|c| !c.is_control()).take(63).collect();
    let hint = format!("write `name = \"{label}_${{each.key}}\"`");
    let Some(name) = attribute(block, "name") else {
        let message = "a connection with `for_each` needs the attribute `name`";
        problems.push(Problem::new(block.span, message).hint(hint));
        return None;
    };
    let mut uses_each = false;
    references(&name.value, &mut |root, _| uses_each |= root == "each");
    // What could not be parsed was reported.
    let is_broken = matches!(name.value.kind, ExpressionKind::Broken);
    if !uses_each && !is_broken {
        let message = "`name` does not use `each`, so all elements would have one name";
        problems.push(Problem::new(name.value.span, message).hint(hint));
    }
    uses_each.then_some(name)
}

/// Element of a collection.
struct EachValue {
    /// Object with `key` and `value`.
    value: Value,
    /// What messages call the element.
    place: String,
}

/// Returns the elements of a collection, each as `each` has it. Returns `None` if it is not one, or
/// too large.
fn each_values(value: Value, span: Span, problems: &mut Vec<Problem>) -> Option<Vec<EachValue>> {
    let count = match &value {
        Value::List(values) => values.len(),
        Value::Object(values) => values.len(),
        other => {
            let message = format!(
                "expected a list of names or an object for `for_each`, found {}",
                other.kind()
            );
            let hint = "write `[\"…\", \"…\"]`, or `jsondecode(file(\"….json\"))`";
            problems.push(Problem::new(span, message).hint(hint));
            return None;
        }
    };
    if count > MAX_ELEMENTS {
        let message =
            format!("`for_each` has {count} elements, and at most {MAX_ELEMENTS} are possible");
        let problem = Problem::new(span, message);
        problems.push(problem.hint("divide them among several blocks"));
        return None;
    }
    let each = |key: Value, value: Value| {
        Value::Object(BTreeMap::from([
            ("key".into(), key),
            ("value".into(), value),
        ]))
    };
    Some(match value {
        Value::Object(values) => values
            .into_iter()
            .map(|(key, value)| EachValue {
                place: shown_key(&key),
                value: each(Value::String(key), value),
            })
            .collect(),
        Value::List(values) => names(values, span, problems)
            .into_iter()
            .map(|(index, name)| EachValue {
                place: index.to_string(),
                value: each(name.clone(), name),
            })
            .collect(),
        _ => Vec::new(),
    })
}

/// Returns the elements of a list that are names, with their indexes; reports the others.
fn names(values: Vec<Value>, span: Span, problems: &mut Vec<Problem>) -> Vec<(usize, Value)> {
    let (mut names, mut others) = (Vec::with_capacity(values.len()), Vec::new());
    for (index, value) in values.into_iter().enumerate() {
        match value.as_text() {
            Some(text) => names.push((index, Value::String(text.into()))),
            None => others.push((index, value.kind())),
        }
    }
    if let Some((_, kind)) = others.first() {
        let indexes: Vec<String> = others.iter().map(|(index, _)| index.to_string()).collect();
        let message = format!(
            "expected a name for each element of `for_each`, found {kind}, at {}",
            listed(&indexes)
        );
        let hint = "for a list of objects write `{for x in … : x.name => x}`";
        problems.push(Problem::new(span, message).hint(hint));
    }
    names
}

/// Returns a key as messages show it.
fn shown_key(key: &str) -> String {
    let shown: String = key.chars().filter(|c| !c.is_control()).take(63).collect();
    format!("`{shown}`")
}

/// Returns the first names, and the number of the others.
pub(super) fn listed(names: &[String]) -> String {
    let (shown, more) = names.split_at(names.len().min(MAX_SHOWN));
    match (shown, more.len()) {
        ([], _) => String::new(),
        ([single], 0) => single.clone(),
        ([first @ .., last], 0) => format!("{} and {last}", first.join(", ")),
        (shown, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Problems of elements whose name is not known. Equal ones are reported once.
#[derive(Default)]
struct Nameless(HashMap<(u32, u32, String), (Problem, Vec<String>)>);

impl Nameless {
    fn add(&mut self, problem: Problem, place: &str) {
        let key = (
            problem.span.start,
            problem.span.end,
            problem.message.clone(),
        );
        let (_, places) = self.0.entry(key).or_insert_with(|| (problem, Vec::new()));
        places.push(place.to_owned());
    }

    fn problems(self) -> impl Iterator<Item = Problem> {
        let mut all: Vec<_> = self.0.into_values().collect();
        all.sort_by(|(a, _), (b, _)| (a.span.start, &a.message).cmp(&(b.span.start, &b.message)));
        all.into_iter().map(|(mut problem, places)| {
            problem.message = format!("{}, at {}", problem.message, listed(&places));
            problem
        })
    }
}

fn element_key(item: &LoadedBlock, name: &str, each: &Value) -> Key {
    let block: String = item.key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut text = String::new();
    each.write_hcl(&mut text, 0);
    // A file in JSON has one key for all its blocks.
    let index = item.index.to_string();
    key([FOR_EACH, &block, &index, name, &text])
}
