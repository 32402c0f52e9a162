//! YAML files as Steampipe reads them: its reader makes JSON of them, by the rules of YAML 1.1 for
//! plain texts (`on` is true), and reads that as HCL's JSON syntax with literal texts.
//!
//! Spans are those of the YAML text. An alias has the spans of the value that it names.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::objects::{File, Name, Node, NodeKind, Texts};
use super::syntax::{MAX_DEPTH, Problem, Span};
use super::value::Value;

/// Bytes and values that aliases may add to a short file.
const MAX_COPIED: usize = 64 << 10;

/// Bytes and values that aliases may add for each byte of a file: enough for files that repeat
/// themselves, and the work stays linear in the length of the text.
const COPIED_PER_BYTE: usize = 16;

/// Parses a file.
pub fn parse(text: &str) -> File {
    match Reader::new(text).document() {
        Ok(Some(root)) => File::of_root(&root, Texts::Literal),
        Ok(None) => File::default(),
        Err(problem) => File::broken(*problem),
    }
}

/// Returns the value of a YAML text; null if it has none. The span of a problem counts from its
/// start.
pub(super) fn decode(text: &str) -> Result<Value> {
    let mut reader = Reader::new(text);
    reader.copied_per_byte = 1;
    match reader.document()? {
        Some(root) => root.into_value(),
        None => Ok(Value::Null),
    }
}

/// Names and values of a file, for masking: everything else may be part of a value or a comment.
#[derive(Debug, Default, PartialEq)]
pub struct Ranges {
    /// Names, in the order of the text.
    pub names: Vec<Span>,
    /// Values that are neither lists nor objects, in the order of the text, each with the attribute
    /// of a top-level block that it is the value of, or an element of.
    pub values: Vec<(Span, Option<Box<str>>)>,
}

/// Returns the names and values of a file; `None` if it is not YAML.
pub fn ranges(text: &str) -> Option<Ranges> {
    let mut found = Ranges::default();
    if let Some(root) = Reader::new(text).document().ok()? {
        collect_ranges(&root, text, 0, None, &mut found);
    }
    found.names.sort_by_key(|span| span.start);
    found.names.dedup();
    found.values.sort_by_key(|(span, _)| span.start);
    found.values.dedup_by(|later, kept| {
        let is_same = later.0 == kept.0;
        if is_same && later.1 != kept.1 {
            // An alias makes it the value of two attributes.
            kept.1 = None;
        }
        is_same
    });
    Some(found)
}

fn collect_ranges(
    node: &Node,
    text: &str,
    objects: usize,
    attribute: Option<&str>,
    out: &mut Ranges,
) {
    match &node.kind {
        NodeKind::Scalar(_) => {
            let value = text.get(node.span.start as usize..node.span.end as usize);
            // The span of a text of several lines may have a comment in it.
            let attribute = attribute.filter(|_| value.is_some_and(|value| !value.contains('\n')));
            out.values.push((node.span, attribute.map(Box::from)));
        }
        NodeKind::Array(nodes) => {
            for node in nodes {
                collect_ranges(node, text, objects, attribute, out);
            }
        }
        NodeKind::Object(items) => {
            for (name, node) in items {
                out.names.push(name.span);
                // Block type, label, attribute.
                let attribute = (objects == 2).then_some(&*name.text);
                collect_ranges(node, text, objects + 1, attribute, out);
            }
        }
    }
}

type Result<T> = std::result::Result<T, Box<Problem>>;

fn fail<T>(span: Span, message: impl Into<String>, hint: &str) -> Result<T> {
    let problem = Problem::new(span, message);
    Err(Box::new(match hint {
        "" => problem,
        hint => problem.hint(hint),
    }))
}

/// Builds nodes from the events of a parser.
struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    position: Position<'t>,
    anchors: HashMap<usize, Node>,
    depth: usize,
    copied: usize,
    copied_per_byte: usize,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            parser: Parser::new_from_str(text),
            position: Position {
                text,
                is_ascii: text.is_ascii(),
                chars: 0,
                bytes: 0,
            },
            anchors: HashMap::new(),
            depth: 0,
            copied: 0,
            copied_per_byte: COPIED_PER_BYTE,
        }
    }

    /// Returns the root of the only document; `None` if there is none.
    fn document(&mut self) -> Result<Option<Node>> {
        // The parser takes it for the end of the text.
        if let Some(at) = self.position.text.find('\0') {
            return fail(Span::new(at, at + 1), "not YAML: this is a NUL", "");
        }
        let mut root: Option<Node> = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::Nothing | Event::StreamStart | Event::DocumentStart(_), _)
                | (Event::DocumentEnd, _) => {}
                (event, span) => {
                    let node = self.node(event, span)?;
                    let is_empty = matches!(node.kind, NodeKind::Scalar(Value::Null));
                    if !is_empty && root.is_some() {
                        let hint = "write it to a file of its own";
                        return fail(node.span, "this is a second document", hint);
                    }
                    root = root.or((!is_empty).then_some(node));
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let start = self.position.byte(span.start.index());
                let end = self.position.byte(span.end.index());
                Ok((event, Span::new(start, end.max(start))))
            }
            Some(Err(error)) => Err(self.syntax_error(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn syntax_error(&mut self, error: &ScanError) -> Box<Problem> {
        let start = self.position.byte(error.marker().index());
        let next = self.position.text[start..].chars().next();
        let span = Span::new(start, start + next.map_or(0, char::len_utf8));
        Box::new(Problem::new(span, format!("not YAML: {}", error.info())))
    }

    /// Reads the node that begins with an event.
    fn node(&mut self, event: Event<'t>, span: Span) -> Result<Node> {
        if self.depth > MAX_DEPTH {
            return too_deep(span);
        }
        self.depth += 1;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let kind = NodeKind::Scalar(scalar(&text, style, tag.as_deref(), span)?);
                let span = self.position.scalar(span, style);
                (Node { span, kind }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), "seq", span)?;
                (self.sequence(span)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), "map", span)?;
                (self.mapping(span)?, anchor)
            }
            Event::Alias(anchor) => (self.alias(anchor, span)?, 0),
            _ => return fail(span, "expected a value", ""),
        };
        self.depth -= 1;
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, span: Span) -> Result<Node> {
        let (mut nodes, mut end) = (Vec::new(), span.end);
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                let span = self.position.collection(span, end, at);
                let kind = NodeKind::Array(nodes);
                return Ok(Node { span, kind });
            }
            end = end.max(at.end);
            let node = self.node(event, at)?;
            if at.start <= node.span.start {
                end = end.max(node.span.end);
            }
            nodes.push(node);
        }
    }

    fn mapping(&mut self, span: Span) -> Result<Node> {
        let (mut items, mut merged, mut end) = (Vec::new(), Vec::new(), span.end);
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                let mut names: HashSet<Box<str>> = items
                    .iter()
                    .map(|(name, _): &(Name, _)| name.text.clone())
                    .collect();
                merged.retain(|(name, _): &(Name, _)| names.insert(name.text.clone()));
                items.append(&mut merged);
                let span = self.position.collection(span, end, at);
                let kind = NodeKind::Object(items);
                return Ok(Node { span, kind });
            }
            let name = key(&event, at)?;
            let (event, at) = self.next()?;
            end = end.max(at.end);
            let mut node = self.node(event, at)?;
            if at.start <= node.span.start {
                end = end.max(node.span.end);
            }
            let Some(text) = name else {
                merge(node, &mut merged)?;
                continue;
            };
            let span = self.position.scalar(text.1, text.2);
            // A block on the lines below its name begins beside the name.
            let is_block = matches!(node.kind, NodeKind::Object(_))
                && at.start <= node.span.start
                && !self.position.is_at(node.span.start, "{");
            if is_block {
                node.span.start = span.end.min(node.span.start);
            }
            items.push((Name { text: text.0, span }, node));
        }
    }

    /// Returns a copy of the value that an alias names.
    fn alias(&mut self, anchor: usize, span: Span) -> Result<Node> {
        let Some(node) = self.anchors.get(&anchor) else {
            return fail(span, "this alias is within the value that it names", "");
        };
        let (height, size) = measure(node);
        if self.depth + height > MAX_DEPTH {
            return too_deep(span);
        }
        self.copied += size;
        if self.copied > MAX_COPIED + self.copied_per_byte * self.position.text.len() {
            return fail(
                span,
                "the aliases of this file expand to too much",
                "write the values out",
            );
        }
        Ok(node.clone())
    }
}

fn too_deep<T>(span: Span) -> Result<T> {
    fail(
        span,
        format!("this is nested more than {MAX_DEPTH} levels deep"),
        "",
    )
}

/// Returns how deep a node is, and how many bytes and values it has.
fn measure(node: &Node) -> (usize, usize) {
    let of_all = |parts: &mut dyn Iterator<Item = (usize, usize)>| {
        parts.fold((1, 1), |(height, size), (deep, more)| {
            (height.max(deep + 1), size + more)
        })
    };
    match &node.kind {
        NodeKind::Scalar(Value::String(text)) => (1, 1 + text.len()),
        NodeKind::Scalar(_) => (1, 1),
        NodeKind::Array(nodes) => of_all(&mut nodes.iter().map(measure)),
        NodeKind::Object(items) => of_all(&mut items.iter().map(|(name, node)| {
            let (height, size) = measure(node);
            (height, size + name.text.len())
        })),
    }
}

/// Adds the items of a merge key's value (`<<: *defaults`), of which earlier ones win.
fn merge(node: Node, into: &mut Vec<(Name, Node)>) -> Result<()> {
    match node.kind {
        NodeKind::Object(items) => into.extend(items),
        NodeKind::Array(nodes) => {
            for node in nodes {
                let NodeKind::Object(items) = node.kind else {
                    return fail(node.span, "expected an object to merge", "");
                };
                into.extend(items);
            }
        }
        NodeKind::Scalar(_) => return fail(node.span, "expected an object to merge", ""),
    }
    Ok(())
}

/// Returns a name of a mapping; `None` for a merge key.
fn key(event: &Event<'_>, span: Span) -> Result<Option<(Box<str>, Span, ScalarStyle)>> {
    let Event::Scalar(text, style, _, tag) = event else {
        return fail(span, "expected a name", "");
    };
    if tag.is_none() && *style == ScalarStyle::Plain && text == "<<" {
        return Ok(None);
    }
    let hint = "put it in quotes";
    match scalar(text, *style, tag.as_deref(), span)? {
        Value::String(text) => Ok(Some((text, span, *style))),
        // Steampipe's reader would take another text for it.
        value if value.as_text().as_deref() != Some(text.as_ref()) => fail(
            span,
            format!("YAML reads this name as {}", value.kind()),
            hint,
        ),
        _ => Ok(Some((text.as_ref().into(), span, *style))),
    }
}

fn check_tag(tag: Option<&Tag>, expected: &str, span: Span) -> Result<()> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == expected) => {
            fail(span, "this tag has no meaning here", "leave the tag out")
        }
        _ => Ok(()),
    }
}

/// Returns the value of a scalar. Only plain ones can be anything but text.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Value> {
    let kind = match tag {
        // The tag of any text.
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => "str",
        None if style != ScalarStyle::Plain => "str",
        None => "",
        Some(tag) if tag.is_yaml_core_schema() => tag.suffix.as_str(),
        Some(_) => "unknown",
    };
    let value = match kind {
        "str" => return Ok(Value::String(text.into())),
        "" => return plain(text, span),
        "null" | "bool" | "int" | "float" => plain(text, span)?,
        _ => return check_tag(tag, "str", span).map(|()| Value::Null),
    };
    let fits = match value {
        Value::Null => kind == "null",
        Value::Bool(_) => kind == "bool",
        Value::Integer(_) => kind == "int" || kind == "float",
        Value::Float(_) => kind == "float",
        _ => false,
    };
    match fits {
        true => Ok(value),
        false => fail(
            span,
            "this value does not have the type of its tag",
            "leave the tag out",
        ),
    }
}

/// Returns what a plain text means in YAML 1.1.
fn plain(text: &str, span: Span) -> Result<Value> {
    const TRUE: [&str; 11] = [
        "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON",
    ];
    const FALSE: [&str; 11] = [
        "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF",
    ];
    const NULL: [&str; 5] = ["", "~", "null", "Null", "NULL"];
    let not_a_number = [".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF"];
    if TRUE.contains(&text) {
        return Ok(Value::Bool(true));
    }
    if FALSE.contains(&text) {
        return Ok(Value::Bool(false));
    }
    if NULL.contains(&text) {
        return Ok(Value::Null);
    }
    if not_a_number.contains(&text.trim_start_matches(['+', '-'])) {
        return fail(span, "JSON has no such number", "put it in quotes");
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return number(text, span);
    }
    Ok(Value::String(text.into()))
}

/// Returns a number, or the text if it is none.
fn number(text: &str, span: Span) -> Result<Value> {
    let without: Cow<'_, str> = match text.contains('_') {
        true => text.replace('_', "").into(),
        false => text.into(),
    };
    let (sign, digits) = match without.strip_prefix(['+', '-']) {
        Some(digits) => (&without[..1], digits),
        None => ("", &*without),
    };
    let hint = "put it in quotes";
    let is_all = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if is_all(digits) && digits.len() > 1 && digits.starts_with('0') {
        return fail(
            span,
            "YAML reads this as a number without its leading zero",
            hint,
        );
    }
    let radix = |radix| {
        let digits = digits[2..]
            .strip_prefix(['+', '-'])
            .is_none()
            .then_some(&digits[2..]);
        digits.and_then(|digits| i128::from_str_radix(digits, radix).ok())
    };
    let integer = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => radix(16),
        Some("0o") => radix(8),
        Some("0b") => radix(2),
        _ if is_all(digits) => match digits.parse() {
            Ok(integer) => Some(integer),
            Err(_) => return fail(span, "this number cannot be kept exactly", hint),
        },
        _ => None,
    };
    if let Some(integer) = integer {
        return Ok(Value::Integer(if sign == "-" { -integer } else { integer }));
    }
    if !is_float(digits) {
        return Ok(Value::String(text.into()));
    }
    let float = without
        .parse::<f64>()
        .ok()
        .filter(|float| float.is_finite());
    // A double represents any 15 digits exactly.
    match float.filter(|_| digits.bytes().filter(u8::is_ascii_digit).count() <= 15) {
        Some(float) => Ok(Value::Float(float)),
        None => fail(span, "this number cannot be kept exactly", hint),
    }
}

/// Returns whether a text without its sign is a decimal number: `1.5`, `.5`, `1.`, `1e-3`.
fn is_float(text: &str) -> bool {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    is_digits(whole)
        && is_digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|digits| !digits.is_empty() && is_digits(digits))
}

/// Finds the byte of a character. The characters asked for are near to each other.
struct Position<'t> {
    text: &'t str,
    is_ascii: bool,
    chars: usize,
    bytes: usize,
}

impl Position<'_> {
    fn byte(&mut self, character: usize) -> usize {
        if self.is_ascii {
            return character.min(self.text.len());
        }
        while self.chars < character {
            let Some(next) = self.text[self.bytes..].chars().next() else {
                break;
            };
            self.chars += 1;
            self.bytes += next.len_utf8();
        }
        while self.chars > character {
            let Some(last) = self.text[..self.bytes].chars().next_back() else {
                break;
            };
            self.chars -= 1;
            self.bytes -= last.len_utf8();
        }
        self.bytes
    }

    fn is_at(&self, start: u32, text: &str) -> bool {
        let rest = self.text.get(start as usize..);
        rest.is_some_and(|rest| rest.starts_with(text))
    }

    /// Returns a span without the white space at its end.
    fn trimmed(&self, span: Span) -> Span {
        let (start, end) = (span.start as usize, span.end as usize);
        let text = self.text.get(start..end).unwrap_or("");
        Span::new(start, start + text.trim_end().len())
    }

    /// Returns the span of a scalar without its anchor and tag, and without a comment that follows
    /// its closing quote.
    fn scalar(&self, span: Span, style: ScalarStyle) -> Span {
        let end = span.end as usize;
        let mut start = span.start as usize;
        while self
            .text
            .get(start..end)
            .is_some_and(|rest| rest.starts_with(['&', '!']))
        {
            let rest = &self.text[start..end];
            let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let rest = &rest[length..];
            start += length + (rest.len() - rest.trim_start().len());
        }
        let text = self.text.get(start..end).unwrap_or("");
        let quote = match style {
            ScalarStyle::SingleQuoted => '\'',
            ScalarStyle::DoubleQuoted => '"',
            _ => return self.trimmed(Span::new(start, end)),
        };
        let mut chars = text.char_indices().skip(1).peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' if quote == '"' => drop(chars.next()),
                '\'' if quote == c && chars.peek().is_some_and(|(_, next)| *next == quote) => {
                    chars.next();
                }
                _ if c == quote => return Span::new(start, start + at + 1),
                _ => {}
            }
        }
        self.trimmed(Span::new(start, end))
    }

    /// Returns the span of a list or an object: up to its bracket, or to its last part, since the
    /// event of one that ends with an indentation is where the next text begins.
    fn collection(&self, first: Span, last_part: u32, end: Span) -> Span {
        // The event of a flow collection ends behind its bracket, with the white space before it.
        let flow = self.text.get(end.start as usize..end.end as usize);
        let last = match flow {
            Some(flow) if !flow.is_empty() => end.end,
            _ => last_part,
        };
        self.trimmed(Span::new(
            first.start as usize,
            last.max(first.end) as usize,
        ))
    }
}

#[cfg(test)]
mod tests;
