//! Variables that an expression refers to.

use super::syntax::{Expression, ExpressionKind, Step, TemplatePart};
use super::value::Value;

/// Calls `found` with each variable in an expression, and the attribute behind it. Variables of `for`
/// are among them.
pub fn references<'e>(expression: &'e Expression, found: &mut dyn FnMut(&'e str, Option<&'e str>)) {
    match &expression.kind {
        ExpressionKind::Broken | ExpressionKind::Literal(_) => {}
        ExpressionKind::Variable(name) => found(name, None),
        ExpressionKind::Template(parts) => of_parts(parts, found),
        ExpressionKind::List(elements) => elements.iter().for_each(|e| references(e, found)),
        ExpressionKind::Object(items) => {
            for (key, value) in items {
                references(key, found);
                references(value, found);
            }
        }
        ExpressionKind::Call(call) => call.arguments.iter().for_each(|e| references(e, found)),
        ExpressionKind::Unary(_, operand) => references(operand, found),
        ExpressionKind::Binary(first, rest) => {
            references(first, found);
            rest.iter().for_each(|(_, e)| references(e, found));
        }
        ExpressionKind::Conditional(parts) => {
            let (condition, yes, no) = &**parts;
            [condition, yes, no]
                .into_iter()
                .for_each(|e| references(e, found));
        }
        ExpressionKind::For(head) => {
            let parts = [Some(&head.collection), Some(&head.result)];
            let others = [head.result_key.as_ref(), head.condition.as_ref()];
            let all = parts.into_iter().chain(others).flatten();
            all.for_each(|e| references(e, found));
        }
        ExpressionKind::Traversal(base, steps) => {
            match &base.kind {
                ExpressionKind::Variable(name) => {
                    found(name, steps.first().and_then(Step::literal_name));
                }
                _ => references(base, found),
            }
            for step in steps {
                if let Step::Index(index) = step {
                    references(index, found);
                }
            }
        }
    }
}

fn of_parts<'e>(parts: &'e [TemplatePart], found: &mut dyn FnMut(&'e str, Option<&'e str>)) {
    for part in parts {
        match part {
            TemplatePart::Text(_) => {}
            TemplatePart::Value(expression) => references(expression, found),
            TemplatePart::If(parts) => {
                let (condition, yes, no) = &**parts;
                references(condition, found);
                of_parts(yes, found);
                of_parts(no, found);
            }
            TemplatePart::For(parts) => {
                let (head, body) = &**parts;
                references(&head.collection, found);
                of_parts(body, found);
            }
        }
    }
}

impl Step {
    /// Returns the name in `.name` and `["name"]`.
    pub(super) fn literal_name(&self) -> Option<&str> {
        match self {
            Step::Get(name, _) => Some(name),
            Step::Index(Expression {
                kind: ExpressionKind::Literal(Value::String(name)),
                ..
            }) => Some(name),
            _ => None,
        }
    }
}
