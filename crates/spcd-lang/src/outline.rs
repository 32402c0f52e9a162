//! What a text is, whatever it means: its blocks with their values and lines. For tests and tools.

use std::collections::BTreeMap;

use super::evaluate::{Lookup, evaluate};
use super::syntax::Block;
use super::value::Value;
use super::{block_splitter, parse};

/// A block.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// Its type.
    pub kind: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// The line of its type, from 1.
    pub start_line: usize,
    /// The line of its opening brace.
    pub brace_line: usize,
    /// The line of its closing brace.
    pub end_line: usize,
    /// The values of its attributes; `None` where there is none.
    pub attributes: BTreeMap<String, (usize, Option<Value>)>,
    /// The blocks in it.
    pub nested: Vec<Outline>,
}

/// All blocks of a text in native syntax, and what cannot be read: offset and message.
pub fn outline(text: &str, lookup: &mut Lookup<'_>) -> (Vec<Outline>, Vec<(usize, String)>) {
    let pieces = block_splitter::split_blocks(text);
    let mut blocks = Vec::new();
    let mut problems = Vec::new();
    for piece in pieces.pieces {
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
            .open
            .map(|problem| (problem.span.start as usize, problem.message)),
    );
    (blocks, problems)
}

fn read(block: &Block, line: &dyn Fn(u32) -> usize, lookup: &mut Lookup<'_>) -> Outline {
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
