//! Evaluated body of a block.

use std::collections::BTreeMap;

use super::evaluate::{DynEnvironment, EvaluationError, evaluate};
use super::nearest::suggestion;
use super::syntax::{Body, Problem, Span};
use super::value::{Value, write_quoted};

/// Values of a body's attributes, and its nested blocks.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Attributes, in the order of the text.
    pub list: Vec<Setting>,
    /// Nested blocks, in the order of the text.
    pub blocks: Vec<NestedBlock>,
    /// Names of attributes whose evaluation failed; the problem was reported.
    pub without_value: Vec<Box<str>>,
}

/// Attribute with its value.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Name.
    pub name: Box<str>,
    /// Span of the name.
    pub span: Span,
    /// Value.
    pub value: Value,
    /// Span of the expression.
    pub value_span: Span,
}

/// Nested block.
#[derive(Debug, Clone)]
pub struct NestedBlock {
    /// Block type.
    pub kind: Box<str>,
    /// Span of the type.
    pub span: Span,
    /// Labels.
    pub labels: Vec<Box<str>>,
    /// Body.
    pub settings: Settings,
}

impl Settings {
    /// Evaluates all attributes of a body except those in `without`.
    pub fn of(
        body: &Body,
        without: &[&str],
        lookup: &mut DynEnvironment<'_>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut settings = Self::default();
        for attribute in &body.attributes {
            if without.contains(&&*attribute.name) {
                continue;
            }
            let (name, value_span) = (attribute.name.clone(), attribute.value.span);
            match evaluate(&attribute.value, lookup) {
                Ok(value) if value.has_nul() => {
                    let message =
                        format!("the value of `{name}` holds a NUL, which Postgres cannot store");
                    problems.push(Problem::new(value_span, message));
                    settings.without_value.push(name);
                }
                Ok(value) => {
                    let span = attribute.span;
                    settings.list.push(Setting {
                        name,
                        span,
                        value,
                        value_span,
                    });
                }
                Err(failure) => {
                    if let EvaluationError::Problem(problem) = failure {
                        problems.push(*problem);
                    }
                    settings.without_value.push(name);
                }
            }
        }
        for block in &body.blocks {
            settings.blocks.push(NestedBlock {
                kind: block.kind.clone(),
                span: block.span,
                labels: block
                    .labels
                    .iter()
                    .map(|label| label.text.clone())
                    .collect(),
                settings: Self::of(&block.body, &[], lookup, problems),
            });
        }
        settings
    }

    /// The attribute of that name, unless it is null.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.list
            .iter()
            .find(|setting| *setting.name == *name && setting.value != Value::Null)
    }

    /// Whether it was written, even if it has no value.
    pub fn was_written(&self, name: &str) -> bool {
        self.get(name).is_some() || self.without_value.iter().any(|broken| **broken == *name)
    }

    /// Returns the attribute as text; numbers and bools are converted.
    pub fn text(&self, name: &str, problems: &mut Vec<Problem>) -> Option<String> {
        self.get(name)?.text(problems)
    }

    /// Returns the attribute as a bool.
    pub fn boolean(&self, name: &str, problems: &mut Vec<Problem>) -> Option<bool> {
        let setting = self.get(name)?;
        match &setting.value {
            Value::Bool(value) => Some(*value),
            Value::String(text) if **text == *"true" => Some(true),
            Value::String(text) if **text == *"false" => Some(false),
            other => {
                let message = format!(
                    "expected true or false for `{name}`, found {}",
                    other.kind()
                );
                problems.push(Problem::new(setting.value_span, message));
                None
            }
        }
    }

    /// Returns the attribute as texts: a list of them, or a single one.
    pub fn texts(&self, name: &str, problems: &mut Vec<Problem>) -> Option<Vec<String>> {
        let setting = self.get(name)?;
        let values = match &setting.value {
            Value::List(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        let texts: Option<Vec<String>> = values.iter().map(Value::as_text).collect();
        if texts.is_none() {
            let message = format!("expected a list of texts for `{name}`");
            problems.push(
                Problem::new(setting.value_span, message)
                    .hint(format!("write `{name} = [\"…\", \"…\"]`")),
            );
        }
        texts
    }

    /// Returns attributes and blocks as one object, in the shape of HCL's JSON syntax.
    pub fn object(&self) -> BTreeMap<Box<str>, Value> {
        let mut object: BTreeMap<Box<str>, Value> = BTreeMap::new();
        for setting in &self.list {
            object.insert(setting.name.clone(), setting.value.clone());
        }
        for section in &self.blocks {
            let body = Value::Object(section.settings.object());
            insert_block(&mut object, &section.kind, &section.labels, body);
        }
        object
    }

    /// Writes the body as HCL in a canonical form: attributes in byte order, then blocks in the
    /// order of the text. `without` receives a name and whether it is a block's, and says what to
    /// leave out.
    pub fn write_hcl(&self, out: &mut String, indent: usize, without: &dyn Fn(&str, bool) -> bool) {
        let mut list: Vec<&Setting> = self
            .list
            .iter()
            .filter(|setting| setting.value != Value::Null && !without(&setting.name, false))
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        for setting in list {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(&setting.name);
            out.push_str(" = ");
            setting.value.write_hcl(out, indent);
            out.push('\n');
        }
        for section in self
            .blocks
            .iter()
            .filter(|section| !without(&section.kind, true))
        {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str(&section.kind);
            for label in &section.labels {
                out.push(' ');
                write_quoted(out, label);
            }
            out.push_str(" {\n");
            section.settings.write_hcl(out, indent + 2, &|_, _| false);
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str("}\n");
        }
    }
}

impl NestedBlock {
    /// Returns the span of an attribute's value, or the block's if it is not written.
    pub fn value_span(&self, name: &str) -> Span {
        (self.settings.get(name)).map_or(self.span, |setting| setting.value_span)
    }

    /// Reports attributes with other names than these, and nested blocks. `noun` is what the block calls
    /// an attribute.
    pub fn report_unknown(&self, noun: &str, names: &[&str], problems: &mut Vec<Problem>) {
        let kind = &self.kind;
        let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let list = match quoted.split_last() {
            Some((last, [])) => format!("it has {last}"),
            Some((last, others)) => format!("it has {} and {last}", others.join(", ")),
            None => return,
        };
        for setting in &self.settings.list {
            if !names.contains(&&*setting.name) {
                let message = format!("`{kind}` has no {noun} `{}`", setting.name);
                let hint = suggestion(&setting.name, names.iter().copied());
                let hint = hint.unwrap_or_else(|| list.clone());
                problems.push(Problem::new(setting.span, message).hint(hint));
            }
        }
        for block in &self.settings.blocks {
            let message = format!("`{kind}` has no block `{}`", block.kind);
            problems.push(Problem::new(block.span, message).hint(list.clone()));
        }
    }
}

impl Setting {
    /// Returns the value as text; numbers and bools are converted.
    pub fn text(&self, problems: &mut Vec<Problem>) -> Option<String> {
        let text = self.value.as_text();
        if text.is_none() {
            let message = format!(
                "expected text for `{}`, found {}",
                self.name,
                self.value.kind()
            );
            problems.push(Problem::new(self.value_span, message));
        }
        text
    }
}

/// Inserts a nested block's body under its type and labels.
fn insert_block(
    object: &mut BTreeMap<Box<str>, Value>,
    key: &str,
    labels: &[Box<str>],
    body: Value,
) {
    if let Some((label, labels)) = labels.split_first() {
        let inner = object
            .entry(key.into())
            .or_insert_with(|| Value::Object(BTreeMap::new()));
        if let Value::Object(inner) = inner {
            insert_block(inner, label, labels, body);
        }
        return;
    }
    match object.get_mut(key) {
        None => {
            object.insert(key.into(), body);
        }
        Some(Value::List(bodies)) => bodies.push(body),
        Some(other) => {
            let first = std::mem::replace(other, Value::Null);
            *other = Value::List(vec![first, body]);
        }
    }
}
