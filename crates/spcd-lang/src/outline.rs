//! Outline of a text: its blocks with their values and lines, independent of their meaning. For
//! tests and tools.

use std::collections::BTreeMap;

use super::evaluate::{DynEnvironment, evaluate};
use super::syntax::Block;
use super::value::Value;
use super::{block_splitter, parse};

/// Block.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// Block type.
    pub kind: String,
    /// Labels.
    pub labels: Vec<String>,
    /// Line of the type, from 1.
    pub start_line: usize,
    /// Line of the opening brace.
    pub brace_line: usize,
    /// Line of the closing brace.
    pub end_line: usize,
    /// Line and value of each attribute; `None` where evaluation failed.
    pub attributes: BTreeMap<String, (usize, Option<Value>)>,
    /// Nested blocks.
    pub nested: Vec<Outline>,
}

/// Returns all blocks of a text in native syntax, and the problems in it as offset and message.
pub fn outline(
    text: &str,
    lookup: &mut DynEnvironment<'_>,
) -> (Vec<Outline>, Vec<(usize, String)>) {
    let pieces = block_splitter::split_blocks(text);
    let mut blocks = Vec::new();
    let mut problems = Vec::new();
    for piece in pieces.fragments {
        let own = text.get(piece.start..piece.end).unwrap_or("");
        let parsed = parse::parse(own);
        let place = |problem: super::syntax::Problem| {
            (piece.start + problem.span.start as usize, problem.message)
        };
        problems.extend(parsed.problems.into_iter().map(place));
        let line = |offset: u32| {
            let before = own
                .as_bytes()
                .get(..offset as usize)
                .unwrap_or(own.as_bytes());
            piece.line as usize + before.iter().filter(|&&byte| byte == b'\n').count()
        };
        blocks.extend(parsed.block.map(|block| read(&block, &line, lookup)));
    }
    problems.extend(
        pieces
            .unclosed
            .map(|problem| (problem.span.start as usize, problem.message)),
    );
    (blocks, problems)
}

fn read(block: &Block, line: &dyn Fn(u32) -> usize, lookup: &mut DynEnvironment<'_>) -> Outline {
    let attributes = block.body.attributes.iter().map(|attribute| {
        let value = evaluate(&attribute.value, lookup).ok();
        (
            attribute.name.to_string(),
            (line(attribute.span.start), value),
        )
    });
    Outline {
        kind: block.kind.to_string(),
        labels: block
            .labels
            .iter()
            .map(|label| label.text.to_string())
            .collect(),
        start_line: line(block.span.start),
        brace_line: line(block.open),
        end_line: line(block.close),
        attributes: attributes.collect(),
        nested: block
            .body
            .blocks
            .iter()
            .map(|block| read(block, line, lookup))
            .collect(),
    }
}
