//! Syntax tree of a block. Spans are byte offsets from the first byte of the top-level block.

use super::value::Value;

/// Maximum nesting of blocks, expressions and templates: far more than users write, and small
/// enough for the stack of any thread.
pub(super) const MAX_DEPTH: usize = 64;

/// Range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset after the last byte.
    pub end: u32,
}

impl Span {
    /// Creates a span from two offsets; offsets beyond 4 GiB are clamped.
    pub fn new(start: usize, end: usize) -> Self {
        let clamp = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        Self {
            start: clamp(start),
            end: clamp(end),
        }
    }

    /// Returns the span from this one's start to the other's end.
    pub fn to(self, other: Self) -> Self {
        Self {
            start: self.start,
            end: other.end.max(self.start),
        }
    }
}

/// Error in a text: where it is, what is wrong, and what to type instead. It contains no value that
/// is not public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Range to mark.
    pub span: Span,
    /// Message: what is wrong, and what was expected.
    pub message: String,
    /// Hint: what to type instead.
    pub hint: Option<String>,
}

impl Problem {
    /// Creates a problem without a hint.
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self {
            span,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint if there is one.
    pub fn hint_if(mut self, hint: Option<String>) -> Self {
        self.hint = self.hint.or(hint);
        self
    }
}

/// Attributes and nested blocks, each in the order of the text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Body {
    /// Attributes; names are unique.
    pub attributes: Vec<Attribute>,
    /// Nested blocks.
    pub blocks: Vec<Block>,
}

/// `name = value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// Name.
    pub name: Box<str>,
    /// Span of the name.
    pub span: Span,
    /// Value.
    pub value: Expression,
}

/// `type "label" { … }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Block type.
    pub kind: Box<str>,
    /// Span of the type.
    pub span: Span,
    /// Labels.
    pub labels: Vec<Label>,
    /// Content between the braces.
    pub body: Body,
    /// Offset of the opening brace.
    pub open: u32,
    /// Offset of the closing brace.
    pub close: u32,
}

/// Label of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// Text.
    pub text: Box<str>,
    /// Span, quotes included.
    pub span: Span,
}

/// Expression that is not evaluated yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    /// Span.
    pub span: Span,
    /// Kind.
    pub kind: ExpressionKind,
}

/// Kind of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpressionKind {
    /// Expression that could not be parsed; a problem was reported.
    Broken,
    /// Text, number, bool or null.
    Literal(Value),
    /// Text with `${…}` or `%{…}` in it.
    Template(Vec<TemplatePart>),
    /// `[a, b]`.
    List(Vec<Expression>),
    /// `{ key = value }`.
    Object(Vec<(Expression, Expression)>),
    /// Name of a variable.
    Variable(Box<str>),
    /// `name(arguments)`.
    Call(Box<Call>),
    /// `-x`, `!x`.
    Unary(UnaryOperator, Box<Expression>),
    /// Operands of one precedence, from left to right.
    Binary(Box<Expression>, Vec<(BinaryOperator, Expression)>),
    /// `condition ? yes : no`.
    Conditional(Box<(Expression, Expression, Expression)>),
    /// `[for …]`, `{for …}`.
    For(Box<ForExpression>),
    /// `base.name[index]` and so on.
    Traversal(Box<Expression>, Vec<Step>),
}

/// A function call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Name of the function.
    pub name: Box<str>,
    /// Span of the name.
    pub span: Span,
    /// Arguments.
    pub arguments: Vec<Expression>,
    /// Whether the last argument is a list whose elements are the arguments (`...`).
    pub spread: bool,
}

/// A `for` expression, or the head of a `for` directive.
#[derive(Debug, Clone, PartialEq)]
pub struct ForExpression {
    /// Name of the variable for the key or index.
    pub key: Option<Box<str>>,
    /// Name of the variable for the element.
    pub element: Box<str>,
    /// Collection to iterate over.
    pub collection: Expression,
    /// Key of an element of the result; if it is given, the result is an object.
    pub result_key: Option<Expression>,
    /// Element of the result.
    pub result: Expression,
    /// Whether elements of the same key are grouped in a list (`...`).
    pub group: bool,
    /// Condition after `if`.
    pub condition: Option<Expression>,
}

/// Access to a part of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// `.name`
    Get(Box<str>, Span),
    /// `[index]`, `.0`
    Index(Expression),
    /// `.*` (takes the attributes that follow it) or `[*]` (takes all steps that follow it).
    Splat {
        /// Whether it is `[*]`.
        full: bool,
        /// Span.
        span: Span,
    },
}

/// Part of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum TemplatePart {
    /// Literal text.
    Text(Box<str>),
    /// `${…}`
    Value(Expression),
    /// `%{ if … }`
    If(Box<(Expression, Vec<TemplatePart>, Vec<TemplatePart>)>),
    /// `%{ for … }`; the result of the head is unused.
    For(Box<(ForExpression, Vec<TemplatePart>)>),
}

/// Operator with one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnaryOperator {
    /// `-`
    Negate,
    /// `!`
    Not,
}

/// Operator with two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BinaryOperator {
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
