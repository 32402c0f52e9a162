//! A block's body with its values computed.

use std::collections::BTreeMap;

use super::evaluate::{Failure, Lookup, evaluate};
use super::syntax::{Body, Problem, Span};
use super::value::{Value, write_quoted};

/// The values of a body's attributes, and its nested blocks.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Attributes, in the order of the text.
    pub list: Vec<Setting>,
    /// Nested blocks, in the order of the text.
    pub sections: Vec<Section>,
    /// Attributes that are there but have no value, which has been said.
    pub broken: Vec<Box<str>>,
}

/// An attribute with its value.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The attribute's name.
    pub name: Box<str>,
    /// Where the name stands.
    pub span: Span,
    /// What it evaluates to.
    pub value: Value,
    /// Where the expression stands.
    pub value_span: Span,
}

/// A nested block.
#[derive(Debug, Clone)]
pub struct Section {
    /// The block's type.
    pub kind: Box<str>,
    /// Where the type stands.
    pub span: Span,
    /// Its labels.
    pub labels: Vec<Box<str>>,
    /// Its body.
    pub settings: Settings,
}

impl Settings {
    /// Computes all values of a body but those of the attributes left out.
    pub fn of(
        body: &Body,
        without: &[&str],
        lookup: &mut Lookup<'_>,
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
                    settings.broken.push(name);
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
                    if let Failure::Problem(problem) = failure {
                        problems.push(*problem);
                    }
                    settings.broken.push(name);
                }
            }
        }
        for block in &body.blocks {
            settings.sections.push(Section {
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
        self.get(name).is_some() || self.broken.iter().any(|broken| **broken == *name)
    }

    /// The attribute's text; numbers and bools are converted.
    pub fn text(&self, name: &str, problems: &mut Vec<Problem>) -> Option<String> {
        self.get(name)?.text(problems)
    }

    /// The attribute's bool.
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

    /// The attribute's texts: a list of them, or a single one.
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

    /// Attributes and blocks as one object, in the shape of HCL's JSON syntax.
    pub fn object(&self) -> BTreeMap<Box<str>, Value> {
        let mut object: BTreeMap<Box<str>, Value> = BTreeMap::new();
        for setting in &self.list {
            object.insert(setting.name.clone(), setting.value.clone());
        }
        for section in &self.sections {
            let body = Value::Object(section.settings.object());
            place(&mut object, &section.kind, &section.labels, body);
        }
        object
    }

    /// The body as HCL in one canonical form: attributes in byte order, then blocks as written.
    /// `without` tells by name, and whether it is a block's, what is left out.
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
            .sections
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

impl Setting {
    /// Its text; numbers and bools are converted.
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

/// Puts a nested block's body where its type and labels say.
fn place(object: &mut BTreeMap<Box<str>, Value>, key: &str, labels: &[Box<str>], body: Value) {
    if let Some((label, labels)) = labels.split_first() {
        let inner = object
            .entry(key.into())
            .or_insert_with(|| Value::Object(BTreeMap::new()));
        if let Value::Object(inner) = inner {
            place(inner, label, labels, body);
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
