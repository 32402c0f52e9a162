//! Blocks written as nested objects: block types, then labels, then bodies. HCL's JSON syntax and
//! YAML files have this form.

use std::collections::BTreeMap;

use super::parse::{MAX_PROBLEMS, Parsed, parse_text};
use super::syntax::{Attribute, Block, Body, Expression, ExpressionKind, Label, Problem, Span};
use super::value::Value;

/// Names that are read as nested blocks instead of attributes, with their number of labels.
const NESTED: [(&str, usize); 6] = [
    ("import", 0),
    ("labels", 0),
    ("health", 0),
    ("ssh", 0),
    ("options", 1),
    ("limiter", 1),
];

/// Content of a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct File {
    /// Blocks; spans count from the start of the file.
    pub blocks: Vec<Parsed>,
    /// Syntax error of the text, which leaves all blocks unknown.
    pub syntax_error: Option<Problem>,
}

/// Meaning of the texts in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texts {
    /// Every text is a template, as in HCL's JSON syntax.
    Templates,
    /// Only the text of `plugin` is a template, as Steampipe reads its JSON and YAML files.
    Literal,
}

impl File {
    /// Returns the blocks below a root object.
    pub(super) fn of_root(root: &Node, texts: Texts) -> Self {
        let mut blocks = Vec::new();
        for object in root.objects(&mut blocks) {
            for (kind, node) in object {
                top_level(kind, node, texts, &mut blocks);
            }
        }
        Self {
            blocks,
            syntax_error: None,
        }
    }

    /// Returns a file of which only a syntax error is known.
    pub(super) fn broken(problem: Problem) -> Self {
        Self {
            blocks: Vec::new(),
            syntax_error: Some(problem),
        }
    }
}

/// Name in an object.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) text: Box<str>,
    pub(super) span: Span,
}

/// Value with its span.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: NodeKind,
}

#[derive(Debug, Clone)]
pub(super) enum NodeKind {
    Scalar(Value),
    Array(Vec<Node>),
    Object(Vec<(Name, Node)>),
}

fn problem_only(problem: Problem) -> Parsed {
    Parsed {
        block: None,
        problems: vec![problem],
        suppressed: 0,
    }
}

impl Node {
    /// Returns the value. A name may stand only once in an object, since one of two would be lost.
    pub(super) fn into_value(self) -> Result<Value, Box<Problem>> {
        Ok(match self.kind {
            NodeKind::Scalar(value) => value,
            NodeKind::Array(nodes) => {
                let values = nodes.into_iter().map(Node::into_value);
                Value::List(values.collect::<Result<_, _>>()?)
            }
            NodeKind::Object(items) => {
                let mut object = BTreeMap::new();
                for (name, node) in items {
                    let span = name.span;
                    if object.insert(name.text, node.into_value()?).is_some() {
                        let problem =
                            Problem::new(span, "this name is written twice in its object");
                        return Err(Box::new(problem.hint("keep one of the two")));
                    }
                }
                Value::Object(object)
            }
        })
    }

    /// Returns the object, or the objects of the array; reports a problem for anything else.
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

fn top_level(kind: &Name, node: &Node, texts: Texts, out: &mut Vec<Parsed>) {
    if &*kind.text == "//" {
        return;
    }
    let labels = match &*kind.text {
        "partition" => 2,
        "locals" => 0,
        _ => 1,
    };
    labelled(kind, &mut Vec::new(), labels, node, texts, out);
}

fn labelled(
    kind: &Name,
    labels: &mut Vec<Label>,
    depth: usize,
    node: &Node,
    texts: Texts,
    out: &mut Vec<Parsed>,
) {
    if depth == 0 {
        let bodies: Vec<&Node> = match &node.kind {
            NodeKind::Array(nodes) => nodes.iter().collect(),
            _ => vec![node],
        };
        for node in bodies {
            let mut problems = Vec::new();
            let block = block(kind, labels.clone(), node, texts, &mut problems);
            let further = problems.len().saturating_sub(MAX_PROBLEMS);
            problems.truncate(MAX_PROBLEMS);
            out.push(Parsed {
                block: Some(block),
                problems,
                suppressed: further,
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
                labelled(kind, labels, depth - 1, node, texts, out);
                labels.pop();
            }
        }
    }
}

fn block(
    kind: &Name,
    labels: Vec<Label>,
    node: &Node,
    texts: Texts,
    problems: &mut Vec<Problem>,
) -> Block {
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
                let nested = match &*kind.text {
                    // Its attributes have any names.
                    "locals" => None,
                    _ => NESTED.iter().find(|(nested, _)| *nested == &*name.text),
                };
                item(name, node, nested, texts, &mut body, problems);
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

fn item(
    name: &Name,
    node: &Node,
    nested: Option<&(&str, usize)>,
    texts: Texts,
    body: &mut Body,
    problems: &mut Vec<Problem>,
) {
    match nested {
        Some((_, labels)) if !matches!(node.kind, NodeKind::Scalar(_)) => {
            let mut blocks = Vec::new();
            labelled(name, &mut Vec::new(), *labels, node, texts, &mut blocks);
            for parsed in blocks {
                problems.extend(parsed.problems);
                body.blocks.extend(parsed.block);
            }
        }
        _ => {
            let texts = match &*name.text {
                "plugin" => Texts::Templates,
                _ => texts,
            };
            let value = expression(node, texts, problems);
            body.attributes.push(Attribute {
                name: name.text.clone(),
                span: name.span,
                value,
            });
        }
    }
}

fn expression(node: &Node, texts: Texts, problems: &mut Vec<Problem>) -> Expression {
    let kind = match &node.kind {
        NodeKind::Scalar(Value::String(text))
            if texts == Texts::Templates && (text.contains("${") || text.contains("%{")) =>
        {
            let (expression, found) = parse_text(text, node.span);
            problems.extend(found);
            return expression;
        }
        NodeKind::Scalar(value) => ExpressionKind::Literal(value.clone()),
        NodeKind::Array(nodes) => ExpressionKind::List(
            nodes
                .iter()
                .map(|node| expression(node, texts, problems))
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
                        expression(node, texts, problems),
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
