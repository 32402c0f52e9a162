//! The language of `.spc` files: HCL 2's native and JSON syntax.
//!
//! `block_splitter` finds the borders of top-level blocks without understanding them, `parse` reads one
//! block into a [`syntax::Block`], [`evaluate`] gives the values of its attributes. All spans in a
//! parsed block count from the block's first byte, so that a block which has moved within its
//! file, or to another one, is still the same block.
//!
//! The parser is our own because a `.spc` file is mostly read while it is being written: every
//! item of a broken block is read on, each mistake is reported where it was made, numbers are
//! kept exactly, and what stays in memory is values rather than white space. `hcl-rs` is the
//! second opinion in the tests.

pub mod evaluate;
pub mod outline;
pub mod syntax;
pub mod value;

pub mod block_splitter;
mod expression;
pub mod json;
pub mod lex;
pub mod nearest;
mod number;
mod operations;
pub mod parse;
pub mod settings;
mod template;
mod word;
