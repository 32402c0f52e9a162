//! A parsed block. Spans are byte offsets from the first byte of the top-level block they are in.

use super::value::Value;

/// Maximum nesting of blocks, expressions and templates: far beyond what anyone writes, and small
/// enough for the stack of any thread.
pub(super) const MAX_DEPTH: usize = 64;

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
}

impl Span {
    /// A span from two offsets; what lies beyond 4 GiB is cut off there.
    pub fn new(start: usize, end: usize) -> Self {
        let clamp = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        Self {
            start: clamp(start),
            end: clamp(end),
        }
    }

    /// From this one's start to the other's end.
    pub fn to(self, other: Self) -> Self {
        Self {
            start: self.start,
            end: other.end.max(self.start),
        }
    }
}

/// A mistake: where, what, and what to type instead. Holds no value that is not public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The marked range.
    pub span: Span,
    /// What is wrong, and what was expected.
    pub message: String,
    /// What to type.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self {
            span,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Attributes and nested blocks, each in the order written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Body {
    /// `name = value`; names are unique.
    pub attributes: Vec<Attribute>,
    /// Nested blocks.
    pub blocks: Vec<Block>,
}

/// `name = value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// Its name.
    pub name: Box<str>,
    /// Where the name is.
    pub span: Span,
    /// Its value.
    pub value: Expression,
}

/// `type "label" { … }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Its type.
    pub kind: Box<str>,
    /// Where the type is.
    pub span: Span,
    /// Its labels.
    pub labels: Vec<Label>,
    /// What is between its braces.
    pub body: Body,
    /// The offset of the opening brace.
    pub open: u32,
    /// The offset of the closing one.
    pub close: u32,
}

/// A block's label.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// Its text.
    pub text: Box<str>,
    /// Where it is, quotes included.
    pub span: Span,
}

/// A value that is still to be computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// Where it is.
    pub span: Span,
    /// What it is.
    pub kind: ExpressionKind,
}

/// The kinds of expressions.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpressionKind {
    /// It could not be read; a problem says why.
    Broken,
    /// A text, number, bool or null.
    Literal(Value),
    /// A text with `${…}` or `%{…}` in it.
    Template(Vec<Part>),
    /// `[a, b]`.
    List(Vec<Expression>),
    /// `{ key = value }`.
    Object(Vec<(Expression, Expression)>),
    /// A name that stands for a value.
    Variable(Box<str>),
    /// `name(arguments)`.
    Call(Box<Call>),
    /// `-x`, `!x`.
    Unary(Unary, Box<Expression>),
    /// Operands of one precedence, from left to right.
    Binary(Box<Expression>, Vec<(Binary, Expression)>),
    /// `condition ? yes : no`.
    Conditional(Box<(Expression, Expression, Expression)>),
    /// `[for …]`, `{for …}`.
    For(Box<For>),
    /// `base.name[index]` and so on.
    Traversal(Box<Expression>, Vec<Step>),
}

/// A function call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The function.
    pub name: Box<str>,
    /// Where its name is.
    pub span: Span,
    /// What it is given.
    pub arguments: Vec<Expression>,
    /// The last argument is a list whose elements are the arguments (`...`).
    pub spread: bool,
}

/// A `for` expression, or the head of a `for` directive.
#[derive(Debug, Clone, PartialEq)]
pub struct For {
    /// The name for the key or index.
    pub key: Option<Box<str>>,
    /// The name for the element.
    pub element: Box<str>,
    /// What is gone through.
    pub collection: Expression,
    /// The key of a result's element: the result is an object then.
    pub result_key: Option<Expression>,
    /// The result's element.
    pub result: Expression,
    /// `...`: elements with the same key are grouped in a list.
    pub group: bool,
    /// `if …`.
    pub condition: Option<Expression>,
}

/// A step from a value into it.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// `.name`
    Get(Box<str>, Span),
    /// `[index]`, `.0`
    Index(Expression),
    /// `.*` (takes the attributes that follow it) or `[*]` (takes all steps that follow it).
    Splat {
        /// `[*]`.
        full: bool,
        /// Where it is.
        span: Span,
    },
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text as it is.
    Text(Box<str>),
    /// `${…}`
    Value(Expression),
    /// `%{ if … }`
    If(Box<(Expression, Vec<Part>, Vec<Part>)>),
    /// `%{ for … }`; the result of the head is not used.
    For(Box<(For, Vec<Part>)>),
}

/// An operator with one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    /// `-`
    Negate,
    /// `!`
    Not,
}

/// An operator with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}
