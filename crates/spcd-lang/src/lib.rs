//! The language of `.spc` files: HCL 2's native and JSON syntax, and
//! the YAML that Steampipe reads.
//!
//! `block_splitter` finds the borders of top-level blocks, `parse` reads one block into a
//! [`syntax::Block`], and [`evaluate`] computes the values of its attributes. All spans of a parsed
//! block count from the block's first byte, so that a block that moved within its file, or to
//! another file, is still the same block.
//!
//! The crate has its own parser because `.spc` files are often read while a user is writing them.
//! It continues after each error in a broken block, reports every error at its place, keeps numbers
//! exactly, and keeps no white space in memory. The tests compare it with `hcl-rs`.

pub mod evaluate;
pub mod outline;
pub mod syntax;
pub mod value;

pub mod block_splitter;
mod expression;
mod functions;
pub mod json;
pub mod lex;
pub mod nearest;
mod number;
pub mod objects;
mod operations;
pub mod parse;
pub mod references;
pub mod settings;
mod template;
mod word;
pub mod yaml;
