//! HCL's JSON syntax: block types, then labels, then bodies, as nested objects.

use super::parse::{MAX_PROBLEMS, Parsed, parse_text};
use super::syntax::{
    Attribute, Block, Body, Expression, ExpressionKind, Label, MAX_DEPTH, Problem, Span,
};
use super::value::Value;
use super::word::word_length;

/// What is read as a nested block rather than an attribute, and how many labels it has.
const NESTED: [(&str, usize); 6] = [
    ("import", 0),
    ("labels", 0),
    ("health", 0),
    ("ssh", 0),
    ("options", 1),
    ("limiter", 1),
];

/// What a JSON file consists of.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct File {
    /// Its blocks; spans count from the file's start.
    pub blocks: Vec<Parsed>,
    /// Why the text is no JSON: nothing can be said of any block then.
    pub broken: Option<Problem>,
}

/// Reads a file.
pub fn parse(text: &str) -> File {
    let mut reader = Reader {
        text,
        at: 0,
        depth: 0,
    };
    let root = match reader.document() {
        Ok(root) => root,
        Err(problem) => {
            return File {
                blocks: Vec::new(),
                broken: Some(*problem),
            };
        }
    };
    let mut blocks = Vec::new();
    for object in root.objects(&mut blocks) {
        for (kind, node) in object {
            top_level(kind, node, &mut blocks);
        }
    }
    File {
        blocks,
        broken: None,
    }
}

struct Name {
    text: Box<str>,
    span: Span,
}

struct Node {
    span: Span,
    kind: NodeKind,
}

enum NodeKind {
    Scalar(Value),
    Array(Vec<Node>),
    Object(Vec<(Name, Node)>),
}

fn problem_only(problem: Problem) -> Parsed {
    Parsed {
        block: None,
        problems: vec![problem],
        further: 0,
    }
}

impl Node {
    /// The objects that this is, or that the array consists of; anything else is a problem.
    fn objects<'n>(&'n self, out: &mut Vec<Parsed>) -> Vec<&'n [(Name, Node)]> {
        match &self.kind {
            NodeKind::Object(items) => vec![items],
            NodeKind::Array(nodes) => nodes.iter().flat_map(|node| node.objects(out)).collect(),
            NodeKind::Scalar(_) => {
                out.push(problem_only(Problem::new(self.span, "expected an object")));
                Vec::new()
            }
        }
    }
}

fn top_level(kind: &Name, node: &Node, out: &mut Vec<Parsed>) {
    if &*kind.text == "//" {
        return;
    }
    let labels = match &*kind.text {
        "partition" => 2,
        _ => 1,
    };
    labelled(kind, &mut Vec::new(), labels, node, out);
}

fn labelled(
    kind: &Name,
    labels: &mut Vec<Label>,
    depth: usize,
    node: &Node,
    out: &mut Vec<Parsed>,
) {
    if depth == 0 {
        let bodies: Vec<&Node> = match &node.kind {
            NodeKind::Array(nodes) => nodes.iter().collect(),
            _ => vec![node],
        };
        for node in bodies {
            let mut problems = Vec::new();
            let block = block(kind, labels.clone(), node, &mut problems);
            let further = problems.len().saturating_sub(MAX_PROBLEMS);
            problems.truncate(MAX_PROBLEMS);
            out.push(Parsed {
                block: Some(block),
                problems,
                further,
            });
        }
        return;
    }
    for object in node.objects(out) {
        for (label, node) in object {
            if &*label.text != "//" {
                labels.push(Label {
                    text: label.text.clone(),
                    span: label.span,
                });
                labelled(kind, labels, depth - 1, node, out);
                labels.pop();
            }
        }
    }
}

fn block(kind: &Name, labels: Vec<Label>, node: &Node, problems: &mut Vec<Problem>) -> Block {
    let mut body = Body::default();
    match &node.kind {
        NodeKind::Object(items) => {
            let mut seen = std::collections::HashSet::new();
            for (name, node) in items {
                if &*name.text == "//" {
                    continue;
                }
                if !seen.insert(&*name.text) {
                    let message = format!("`{}` is written twice in this block", name.text);
                    problems.push(Problem::new(name.span, message).hint("keep one of the two"));
                }
                item(name, node, &mut body, problems);
            }
        }
        _ => problems.push(Problem::new(
            node.span,
            "expected an object with the block's attributes",
        )),
    }
    Block {
        kind: kind.text.clone(),
        span: kind.span,
        labels,
        body,
        open: node.span.start,
        close: node.span.end.saturating_sub(1),
    }
}

fn item(name: &Name, node: &Node, body: &mut Body, problems: &mut Vec<Problem>) {
    match NESTED.iter().find(|(nested, _)| *nested == &*name.text) {
        Some((_, labels)) if !matches!(node.kind, NodeKind::Scalar(_)) => {
            let mut blocks = Vec::new();
            labelled(name, &mut Vec::new(), *labels, node, &mut blocks);
            for parsed in blocks {
                problems.extend(parsed.problems);
                body.blocks.extend(parsed.block);
            }
        }
        _ => {
            let value = expression(node, problems);
            body.attributes.push(Attribute {
                name: name.text.clone(),
                span: name.span,
                value,
            });
        }
    }
}

fn expression(node: &Node, problems: &mut Vec<Problem>) -> Expression {
    let kind = match &node.kind {
        NodeKind::Scalar(Value::String(text)) if text.contains("${") || text.contains("%{") => {
            let (expression, found) = parse_text(text, node.span);
            problems.extend(found);
            return expression;
        }
        NodeKind::Scalar(value) => ExpressionKind::Literal(value.clone()),
        NodeKind::Array(nodes) => ExpressionKind::List(
            nodes
                .iter()
                .map(|node| expression(node, problems))
                .collect(),
        ),
        NodeKind::Object(items) => ExpressionKind::Object(
            items
                .iter()
                .map(|(name, node)| {
                    let kind = ExpressionKind::Literal(Value::String(name.text.clone()));
                    (
                        Expression {
                            span: name.span,
                            kind,
                        },
                        expression(node, problems),
                    )
                })
                .collect(),
        ),
    };
    Expression {
        span: node.span,
        kind,
    }
}

type Result<T> = std::result::Result<T, Box<Problem>>;

/// Reads JSON and keeps where everything is.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<Node> {
        let node = self.node()?;
        match self.byte() {
            None => Ok(node),
            Some(_) => self.fail("expected nothing after the last `}`"),
        }
    }

    /// The next byte that is not white space.
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
                let Some((word, value)) = words
                    .into_iter()
                    .find(|(word, _)| rest.starts_with(word) && word_length(rest) == word.len())
                else {
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
        let value = match text.parse::<i128>() {
            Ok(integer) => Some(Value::Integer(integer)),
            // A double holds fifteen digits whatever they are.
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
