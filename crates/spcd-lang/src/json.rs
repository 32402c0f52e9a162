//! HCL's JSON syntax.

use super::objects::{File, Name, Node, NodeKind, Texts};
use super::syntax::{MAX_DEPTH, Problem, Span};
use super::value::Value;
use super::word::identifier_length;

/// Parses a `.spc.json` file, whose texts are templates.
pub fn parse(text: &str) -> File {
    parse_as(text, Texts::Templates)
}

/// Parses a `.json` file as Steampipe reads it: its texts are literal, except that of `plugin`.
pub fn parse_literal(text: &str) -> File {
    parse_as(text, Texts::Literal)
}

/// Returns the value of a JSON text. The span of a problem counts from its start.
pub(super) fn decode(text: &str) -> Result<Value> {
    Reader::new(text).document()?.into_value()
}

fn parse_as(text: &str, texts: Texts) -> File {
    match Reader::new(text).document() {
        Ok(root) => File::of_root(&root, texts),
        Err(problem) => File::broken(*problem),
    }
}

type Result<T> = std::result::Result<T, Box<Problem>>;

/// Parses JSON and keeps the span of every value.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    fn document(&mut self) -> Result<Node> {
        let node = self.node()?;
        match self.byte() {
            None => Ok(node),
            Some(_) => self.fail("expected nothing after the value"),
        }
    }

    /// Returns the next byte that is not white space.
    fn byte(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn fail<T>(&self, message: &str) -> Result<T> {
        let length = self.text[self.at..]
            .chars()
            .next()
            .map_or(0, char::len_utf8);
        Err(Box::new(Problem::new(
            Span::new(self.at, self.at + length),
            message,
        )))
    }

    fn node(&mut self) -> Result<Node> {
        if self.depth > MAX_DEPTH {
            return self.fail(&format!("this is nested more than {MAX_DEPTH} levels deep"));
        }
        let first = self.byte();
        let start = self.at;
        self.depth += 1;
        let kind = match first {
            Some(b'{') => NodeKind::Object(self.object()?),
            Some(b'[') => NodeKind::Array(self.array()?),
            Some(b'"') => NodeKind::Scalar(Value::String(self.string()?.into())),
            Some(b'-' | b'0'..=b'9') => NodeKind::Scalar(self.number()?),
            Some(_) => {
                let rest = &self.text[self.at..];
                let words = [
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                    ("null", Value::Null),
                ];
                let Some((word, value)) = words.into_iter().find(|(word, _)| {
                    rest.starts_with(word) && identifier_length(rest) == word.len()
                }) else {
                    return self
                        .fail("expected a value: a text in double quotes, a number, `{`, `[` …");
                };
                self.at += word.len();
                NodeKind::Scalar(value)
            }
            None => return self.fail("expected a value, found the end of the file"),
        };
        self.depth -= 1;
        Ok(Node {
            span: Span::new(start, self.at),
            kind,
        })
    }

    fn object(&mut self) -> Result<Vec<(Name, Node)>> {
        self.at += 1;
        let mut items = Vec::new();
        if self.byte() == Some(b'}') {
            self.at += 1;
            return Ok(items);
        }
        loop {
            if self.byte() != Some(b'"') {
                return self.fail("expected a name in double quotes (no comma stands before `}`)");
            }
            let start = self.at;
            let text = self.string()?.into();
            let name = Name {
                text,
                span: Span::new(start, self.at),
            };
            if self.byte() != Some(b':') {
                return self.fail("expected `:` after the name");
            }
            self.at += 1;
            items.push((name, self.node()?));
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return self.fail("expected `,` or `}`"),
            }
        }
        self.at += 1;
        Ok(items)
    }

    fn array(&mut self) -> Result<Vec<Node>> {
        self.at += 1;
        let mut nodes = Vec::new();
        if self.byte() == Some(b']') {
            self.at += 1;
            return Ok(nodes);
        }
        loop {
            nodes.push(self.node()?);
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return self.fail("expected `,` or `]`"),
            }
        }
        self.at += 1;
        Ok(nodes)
    }

    fn string(&mut self) -> Result<String> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(byte) if *byte >= 0x20 => end += 1,
                _ => return self.fail("this quote is never closed"),
            }
        }
        let text = self.text.get(start..=end).unwrap_or("");
        let Ok(text) = serde_json::from_str(text) else {
            return self.fail("this text has an escape that JSON does not know");
        };
        self.at = end + 1;
        Ok(text)
    }

    fn number(&mut self) -> Result<Value> {
        let rest = &self.text[self.at..];
        let length = rest
            .bytes()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .unwrap_or(rest.len());
        let text = &rest[..length];
        let digits = text.trim_start_matches('-').as_bytes();
        if matches!(digits, [b'0', b'0'..=b'9', ..]) {
            return self.fail("JSON has no number with a leading zero: put it in quotes");
        }
        let value = match text.parse::<i128>() {
            Ok(integer) => Some(Value::Integer(integer)),
            // A double represents any 15 digits exactly.
            Err(_) if text.bytes().filter(u8::is_ascii_digit).count() <= 15 => {
                serde_json::from_str::<f64>(text)
                    .ok()
                    .filter(|n| n.is_finite())
                    .map(Value::Float)
            }
            Err(_) => None,
        };
        let Some(value) = value else {
            return self.fail("this number cannot be kept exactly: put it in quotes");
        };
        self.at += length;
        Ok(value)
    }
}
