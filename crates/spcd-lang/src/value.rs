//! Values, and how they are written as HCL.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// Value of an expression. `Debug` shows its kind and never its content, which may be secret.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// `null`, which counts as not written.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// Whole number, exact.
    Integer(i128),
    /// Any other number, finite.
    Float(f64),
    /// Text.
    String(Box<str>),
    /// List of values.
    List(Vec<Value>),
    /// Values by name.
    Object(BTreeMap<Box<str>, Value>),
}

impl Value {
    /// Returns the kind for messages: `text`, `a number`, …
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::String(_) => "text",
            Value::List(_) => "a list",
            Value::Object(_) => "an object",
        }
    }

    /// Returns text, numbers and bools as text, as templates convert them; `None` for other kinds.
    pub fn as_text(&self) -> Option<String> {
        match self {
            Value::String(text) => Some(text.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Null | Value::List(_) | Value::Object(_) => None,
        }
    }

    /// Returns whether the value contains a NUL, which Postgres cannot store.
    pub fn has_nul(&self) -> bool {
        match self {
            Value::String(text) => text.contains('\0'),
            Value::List(values) => values.iter().any(Value::has_nul),
            Value::Object(values) => values
                .iter()
                .any(|(key, value)| key.contains('\0') || value.has_nul()),
            _ => false,
        }
    }

    /// Writes the value as HCL in a canonical form. `indent` is the number of spaces before each
    /// further line.
    pub fn write_hcl(&self, out: &mut String, indent: usize) {
        match self {
            Value::Null => out.push_str("null"),
            Value::String(text) => write_quoted(out, text),
            Value::List(values) => {
                out.push('[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    value.write_hcl(out, indent);
                }
                out.push(']');
            }
            Value::Object(values) if values.is_empty() => out.push_str("{}"),
            Value::Object(values) => {
                out.push_str("{\n");
                for (key, value) in values {
                    out.extend(std::iter::repeat_n(' ', indent + 2));
                    if super::word::identifier_length(key) == key.len() && !key.is_empty() {
                        out.push_str(key);
                    } else {
                        write_quoted(out, key);
                    }
                    out.push_str(" = ");
                    value.write_hcl(out, indent + 2);
                    out.push('\n');
                }
                out.extend(std::iter::repeat_n(' ', indent));
                out.push('}');
            }
            scalar => out.push_str(&scalar.as_text().unwrap_or_default()),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.kind())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            // Wider integer types are used only where needed: not every serializer supports them.
            Value::Integer(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => serializer.serialize_i64(number),
                (_, Ok(number)) => serializer.serialize_u64(number),
                _ => serializer.serialize_i128(*number),
            },
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::String(text) => serializer.serialize_str(text),
            Value::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(value)?;
                }
                list.end()
            }
            Value::Object(values) => {
                let mut object = serializer.serialize_map(Some(values.len()))?;
                for (key, value) in values {
                    object.serialize_entry(key, value)?;
                }
                object.end()
            }
        }
    }
}

/// Writes text between quotes so that HCL reads the same text back.
pub fn write_quoted(out: &mut String, text: &str) {
    out.push('"');
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '$' | '%' if characters.peek() == Some(&'{') => {
                out.push(character);
                out.push(character);
            }
            control if control.is_control() => {
                out.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}
