//! Renders diagnostics for users: the source line with a marker, and a hint. Values that are not
//! public are masked in the excerpt, whether or not the block could be parsed.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::config::{
    Diagnostic, Loaded, Severity, SourceFile, is_yaml, public_settings, without_byte_order_mark,
};
use crate::{secret, terminal};
use spcd_lang::block_splitter::TOP_LEVEL;
use spcd_lang::lex::{Lexer, Token, TokenKind};
use spcd_lang::yaml;

/// Attributes whose values are always public.
const ALWAYS_PUBLIC: [&str; 4] = ["plugin", "type", "connections", "import_schema"];

/// Maximum number of bytes of a line shown on each side of the marker.
const CONTEXT_BYTES: usize = 120;

/// Options for rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RenderStyle {
    /// Whether to use colours, for a terminal.
    pub colours: bool,
    /// Whether to show values, secrets included.
    pub show_values: bool,
}

/// Renders diagnostics with excerpts from their files.
pub fn render(loaded: &Loaded, sources: &[SourceFile], style: RenderStyle) -> String {
    let public = |diagnostic: &Diagnostic| {
        let connection = (loaded.desired.connections).get(diagnostic.connection.as_ref()?)?;
        loaded.public.get(&connection.plugin_instance)
    };
    print(&loaded.diagnostics, sources, style, public)
}

/// Renders the diagnostics of the settings file.
pub fn render_settings(diagnostics: &[Diagnostic], source: &SourceFile, colours: bool) -> String {
    let style = RenderStyle {
        colours,
        show_values: false,
    };
    let public = public_settings();
    print(diagnostics, std::slice::from_ref(source), style, |_| {
        Some(&public)
    })
}

fn print<'a>(
    diagnostics: &[Diagnostic],
    sources: &[SourceFile],
    style: RenderStyle,
    public: impl Fn(&Diagnostic) -> Option<&'a BTreeSet<String>>,
) -> String {
    let texts: HashMap<&str, &str> = sources
        .iter()
        .filter_map(|source| {
            Some((
                source.path.as_str(),
                without_byte_order_mark(source.text.as_deref().ok()?),
            ))
        })
        .collect();
    let renderer = if style.colours {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    // Each file is scanned once, however many diagnostics it has.
    let mut values: HashMap<&str, Vec<MaskedRange>> = HashMap::new();
    let mut out = String::new();
    for diagnostic in diagnostics {
        let text = texts.get(diagnostic.file.as_str()).copied().unwrap_or("");
        let hidden = match style.show_values {
            true => &Vec::new(),
            false => &*values
                .entry(&diagnostic.file)
                .or_insert_with(|| masked_ranges(text, &diagnostic.file)),
        };
        out.push_str(&render_diagnostic(
            diagnostic,
            text,
            hidden,
            public(diagnostic),
            &renderer,
        ));
        out.push_str("\n\n");
    }
    out
}

fn render_diagnostic(
    diagnostic: &Diagnostic,
    text: &str,
    hidden: &[MaskedRange],
    public: Option<&BTreeSet<String>>,
    renderer: &Renderer,
) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let message = without_controls(&diagnostic.message);
    let path = without_controls(&diagnostic.file);
    let title = level.primary_title(&message);
    let excerpt = excerpt(text, &diagnostic.span, hidden, public);
    let place = format!("{path}:{}", diagnostic.line);
    let group = match &excerpt {
        Some((shown, span)) => title.element(
            Snippet::source(shown.as_str())
                .line_start(diagnostic.line as usize)
                .path(path.as_str())
                .annotation(AnnotationKind::Primary.span(span.clone())),
        ),
        None => title.element(Level::NOTE.message(&place)),
    };
    let hint = diagnostic.hint.as_deref().map(without_controls);
    let group = match &hint {
        Some(hint) => group.element(Level::HELP.message(hint)),
        None => group,
    };
    renderer.render(&[group])
}

/// Returns a text with control characters replaced.
fn without_controls(text: &str) -> String {
    text.chars()
        .map(
            |c| match c.is_control() || terminal::is_terminal_control(c) {
                true => '\u{fffd}',
                false => c,
            },
        )
        .collect()
}

/// Returns the first line of a marked range, masked and shortened, and the range in it.
fn excerpt(
    text: &str,
    span: &Range<usize>,
    hidden: &[MaskedRange],
    public: Option<&BTreeSet<String>>,
) -> Option<(String, Range<usize>)> {
    if text.is_empty() || (span.start == 0 && span.end == 0) {
        return None;
    }
    let start = span.start.min(text.len());
    let line_start = text
        .get(..start)?
        .rfind('\n')
        .map_or(0, |newline| newline + 1);
    let line_end = text
        .get(start..)?
        .find('\n')
        .map_or(text.len(), |newline| start + newline);
    let end = span.end.clamp(start, line_end.max(start));
    let mut shown = String::new();
    let mut marked = 0..0;
    let mut at = line_start;
    // Masked ranges of this line; the loop below copies the text between them.
    let mut ranges: Vec<Range<usize>> = hidden
        .iter()
        .skip_while(|hidden| hidden.range.end <= line_start)
        .take_while(|hidden| hidden.range.start < line_end)
        .filter(|hidden| !hidden.is_public(public))
        .map(|hidden| hidden.range.start.max(line_start)..hidden.range.end.min(line_end))
        .filter(|range| !range.is_empty())
        .collect();
    // A public value may contain a secret.
    let line = text.get(line_start..line_end).unwrap_or("");
    let is_hidden = |part: &Range<usize>| {
        let overlaps = |range: &Range<usize>| range.start < part.end && part.start < range.end;
        ranges.iter().any(overlaps)
    };
    let parts: Vec<Range<usize>> = secret::ranges(line)
        .into_iter()
        .map(|part| line_start + part.start..line_start + part.end)
        .filter(|part| !is_hidden(part))
        .collect();
    ranges.extend(parts);
    ranges.sort_by_key(|range| range.start);
    ranges.push(line_end..line_end);
    let (mut begun, mut ended) = (false, false);
    for range in ranges {
        let clear = text.get(at..range.start.max(at)).unwrap_or("");
        let offset = |position: usize| (position - at).min(clear.len());
        if !begun && start <= at + clear.len() && (start < range.end || range.is_empty()) {
            begun = true;
            marked.start = shown.len() + offset(start.max(at));
        }
        if !ended && end <= at + clear.len() && end >= at {
            ended = true;
            marked.end = shown.len() + offset(end);
        }
        shown.push_str(clear);
        if !range.is_empty() {
            // A marker within a masked range marks the mask.
            if !begun && start < range.end {
                begun = true;
                marked.start = shown.len();
            }
            shown.push_str(secret::MASK);
            if !ended && end <= range.end {
                ended = true;
                marked.end = shown.len();
            }
        }
        at = at.max(range.end);
    }
    if !begun {
        marked.start = shown.len();
    }
    marked.end = marked.end.max(marked.start);
    Some(window(&inert(&shown), marked))
}

/// Replaces the characters that control a terminal; the length in bytes stays the same.
fn inert(line: &str) -> String {
    let shown = |c: char| match c {
        // The renderer shows these as symbols.
        c if !terminal::is_terminal_control(c) || (c.is_ascii_control() && c != '\r') => c,
        c if c.len_utf8() == 1 => ' ',
        c if c.len_utf8() == 2 => '\u{bf}',
        _ => '\u{fffd}',
    };
    line.chars().map(shown).collect()
}

/// Returns the part of a long line around the marker.
fn window(line: &str, marked: Range<usize>) -> (String, Range<usize>) {
    let boundary = |mut at: usize| {
        while !line.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let from = boundary(marked.start.saturating_sub(CONTEXT_BYTES));
    let to = boundary((marked.start + CONTEXT_BYTES).min(line.len()));
    let end = boundary(marked.end.min(to).max(marked.start));
    let (before, after) = (
        if from > 0 { "…" } else { "" },
        if to < line.len() { "…" } else { "" },
    );
    let shift = before.len();
    let shown = format!("{before}{}{after}", line.get(from..to).unwrap_or(""));
    (shown, marked.start - from + shift..end - from + shift)
}

/// Range of a file that may be a value.
#[derive(Debug)]
struct MaskedRange {
    range: Range<usize>,
    /// Attribute that it belongs to, if known.
    key: Option<Box<str>>,
    /// Whether it is in a block whose values are public.
    import: bool,
}

impl MaskedRange {
    fn is_public(&self, public: Option<&BTreeSet<String>>) -> bool {
        self.import
            || self.key.as_deref().is_some_and(|key| {
                ALWAYS_PUBLIC.contains(&key) || public.is_some_and(|public| public.contains(key))
            })
    }
}

/// Returns the ranges of a file's values. It works on tokens, because excerpts are needed most
/// where parsing failed: every token that is not an attribute's name or a block's header counts as
/// a value.
fn masked_ranges(text: &str, path: &str) -> Vec<MaskedRange> {
    if path.ends_with(".json") {
        return masked_ranges_json(text);
    }
    if is_yaml(path) {
        return masked_ranges_yaml(text);
    }
    let tokens: Vec<Token> = Lexer::new(text).collect();
    let kind = |index: usize| tokens.get(index).map_or(TokenKind::End, |token| token.kind);
    let mut hidden: Vec<MaskedRange> = Vec::new();
    // Types of the open blocks.
    let mut blocks: Vec<&str> = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        match token.kind {
            TokenKind::Newline | TokenKind::End => index += 1,
            TokenKind::CloseBrace => {
                blocks.pop();
                index += 1;
            }
            // A header's brace on its own line.
            TokenKind::OpenBrace => {
                blocks.push("");
                index += 1;
            }
            // A comment may contain a secret.
            TokenKind::Comment => {
                hidden.push(MaskedRange {
                    range: token.start + 1..token.end,
                    key: None,
                    import: false,
                });
                index += 1;
            }
            _ => {
                let mut brace = index + 1;
                while matches!(kind(brace), TokenKind::Word | TokenKind::Quoted) {
                    brace += 1;
                }
                if token.kind == TokenKind::Word && kind(brace) == TokenKind::OpenBrace {
                    blocks.push(token.text(text));
                    index = brace + 1;
                    continue;
                }
                let key: Option<Box<str>> =
                    (token.kind == TokenKind::Word).then(|| token.text(text).into());
                let assigned = matches!(kind(index + 1), TokenKind::Equal | TokenKind::Colon);
                let from = match (&key, assigned) {
                    // A word without an assignment may be a pasted secret.
                    (Some(key), false) if TOP_LEVEL.contains(&&**key) => index + 1,
                    (None, _) | (Some(_), false) => index,
                    (Some(_), true) => index + 2,
                };
                let end = end_of_value(from, kind);
                let plain = |block: &&str| ["import", "labels", "health"].contains(block);
                let import = blocks.get(1).is_some_and(plain) && blocks.len() == 2;
                if let (Some(first), Some(last)) =
                    (tokens.get(from), tokens.get(end.wrapping_sub(1)))
                    && end > from
                {
                    let nested = blocks.len() > 1 || blocks == ["locals"];
                    let clean = is_whole(&tokens[from..end]);
                    let key = key.filter(|_| assigned && !nested && clean);
                    let import = import && assigned && clean;
                    hidden.push(MaskedRange {
                        range: first.start..last.end,
                        key,
                        import,
                    });
                }
                index = end.max(index + 1);
            }
        }
    }
    hidden
}

/// Returns the index of the token after a value: the end of the line, or the closing brace of the
/// block.
fn end_of_value(from: usize, kind: impl Fn(usize) -> TokenKind) -> usize {
    let (mut braces, mut end) = (0_usize, from);
    loop {
        match kind(end) {
            TokenKind::End => return end,
            TokenKind::Newline | TokenKind::CloseBrace if braces == 0 => return end,
            TokenKind::OpenBrace => braces += 1,
            TokenKind::CloseBrace => braces -= 1,
            _ => {}
        }
        end += 1;
    }
}

/// Returns whether tokens are exactly one value: a second one may belong to another attribute.
fn is_whole(tokens: &[Token]) -> bool {
    let Some((first, rest)) = tokens.split_first() else {
        return true;
    };
    if tokens.iter().any(|token| token.unclosed.is_some()) {
        return false;
    }
    let rest = match (first.kind, rest) {
        (TokenKind::Word, [open, rest @ ..]) if open.kind == TokenKind::OpenParen => rest,
        (TokenKind::OpenBracket, rest) => rest,
        (TokenKind::Minus, rest) => {
            return matches!(rest, [number] if number.kind == TokenKind::Number);
        }
        (TokenKind::Word, rest) => {
            let mut rest = rest.iter();
            return rest.all(|token| matches!(token.kind, TokenKind::Dot | TokenKind::Word));
        }
        (_, rest) => return rest.is_empty(),
    };
    let opens = |kind| {
        matches!(
            kind,
            TokenKind::OpenBracket | TokenKind::OpenParen | TokenKind::OpenBrace
        )
    };
    let closes = |kind| {
        matches!(
            kind,
            TokenKind::CloseBracket | TokenKind::CloseParen | TokenKind::CloseBrace
        )
    };
    let mut depth = 1_usize;
    for token in rest {
        match token.kind {
            TokenKind::Comment => return false,
            kind if depth == 0 || kind == TokenKind::Equal => return false,
            kind if opens(kind) => depth += 1,
            kind if closes(kind) => depth -= 1,
            _ => {}
        }
    }
    depth == 0
}

/// Returns the ranges of a JSON file's values: everything but the names before a `:`.
fn masked_ranges_json(text: &str) -> Vec<MaskedRange> {
    let tokens: Vec<Token> = Lexer::new(text)
        .filter(|token| token.kind != TokenKind::Newline)
        .collect();
    let mut hidden = Vec::new();
    let mut key: Option<Box<str>> = None;
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::OpenBrace => depth += 1,
            TokenKind::CloseBrace => depth = depth.saturating_sub(1),
            TokenKind::Quoted
                if tokens
                    .get(index + 1)
                    .is_some_and(|next| next.kind == TokenKind::Colon) =>
            {
                key = Some(token.text(text).trim_matches('"').into());
            }
            TokenKind::OpenBracket
            | TokenKind::CloseBracket
            | TokenKind::Comma
            | TokenKind::Colon
            | TokenKind::End => {}
            _ => {
                let key = key.clone().filter(|_| depth == 3);
                hidden.push(MaskedRange {
                    range: token.start..token.end,
                    key,
                    import: false,
                });
            }
        }
    }
    hidden
}

/// Returns the ranges of a YAML file's values, and of all else that is neither a name nor
/// punctuation, such as comments. A text that is not YAML has no names.
fn masked_ranges_yaml(text: &str) -> Vec<MaskedRange> {
    const PUNCTUATION: [char; 8] = [':', '-', '?', ',', '[', ']', '{', '}'];
    let ranges = yaml::ranges(text).unwrap_or_default();
    let names = ranges.names.into_iter().map(|span| (span, true, None));
    let values = ranges
        .values
        .into_iter()
        .map(|(span, key)| (span, false, key));
    let mut parts: Vec<_> = names.chain(values).collect();
    parts.sort_by_key(|(span, ..)| (span.start, span.end));
    let mut hidden = Vec::new();
    let mut at = 0;
    let hide_between = |from: usize, to: usize, hidden: &mut Vec<MaskedRange>| {
        let between = text.get(from..to).unwrap_or("");
        let is_clear = |c: char| c.is_whitespace() || PUNCTUATION.contains(&c);
        let start = from + between.len() - between.trim_start_matches(is_clear).len();
        let end = from + between.trim_end_matches(is_clear).len();
        if start < end {
            hidden.push(MaskedRange {
                range: start..end,
                key: None,
                import: false,
            });
        }
    };
    for (span, is_name, key) in parts {
        let (start, end) = (span.start as usize, span.end as usize);
        hide_between(at, start, &mut hidden);
        if !is_name && start < end {
            hidden.push(MaskedRange {
                range: start..end,
                key,
                import: false,
            });
        }
        at = at.max(end);
    }
    hide_between(at, text.len(), &mut hidden);
    hidden
}

#[cfg(test)]
mod tests {
    use super::{RenderStyle, render};
    use crate::config::{Cache, LoadContext, SourceFile, load};

    /// What is shown of one file, in which `SECRET` stands wherever a value may be secret.
    fn shown(path: &str, text: &str) -> String {
        let source = SourceFile {
            path: path.to_owned(),
            text: Ok(text.to_owned()),
        };
        let sources = [source];
        let mut lookup = |_, _: &str, _: &str| Err("it is not set".to_owned());
        let mut given = LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: false,
        };
        let loaded = load(&sources, &mut given, &mut Cache::default());
        assert!(!loaded.diagnostics.is_empty(), "{text}");
        render(&loaded, &sources, RenderStyle::default())
    }

    #[test]
    fn an_excerpt_shows_no_value_that_is_not_public() {
        for line in [
            "password = \"SECRET",
            "password = SECRET",
            "password = SECRET and SECRET",
            "password = “SECRET”",
            "password = 'SECRET'",
            "password: \"SECRET\"",
            "password \"SECRET\"",
            "password = \"SECRET\" \"SECRET\"",
            "password = [\"SECRET\", \"SECRET\" \"SECRET\"]",
            "password = \"${SECRET}\"",
            "password = \"\\SECRET\"",
            "password = {\n SECRET\n }",
            "password = \"a\" # SECRET",
            "pasword = \"SECRET\" # SECRET",
            "host = \"x\" password = \"SECRET\"",
            "host = \"x password = \"SECRET\"",
            "host = x # SECRET",
            "host = [1, password = \"SECRET\"]",
            "SECRET",
            "\"SECRET\" = 1",
            "password = 12345678901234567890123456789012345678901234567890 # SECRET",
            "nested { password = SECRET }",
            "connection_string = \"postgres://me:SECRET@x/y?bogus=SECRET\"",
            "password = \"SECRET\\u0000\"",
            // A part of a public value, which is quoted for the port in it.
            "host = \"x?password=SECRET:5432\"",
        ] {
            let text = format!(
                "connection \"a\" {{\n  plugin = \"postgres\"\n  {line}\n  bogus = 1\n}}\n"
            );
            let shown = shown("a.spc", &text);
            assert!(!shown.contains("SECRET"), "{line}\n{shown}");
        }
        let text = "connection \"a\"\n{\n  password = \"SECRET\" 1\n}\n";
        let shown_here = shown("a.spc", text);
        assert!(
            !shown_here.contains("SECRET") && shown_here.contains("2 | {\n"),
            "{shown_here}"
        );
        let json = r#"{"connection": {"a": {"plugin": "postgres", "bogus": "SECRET", "password": ["SECRET"]}}}"#;
        assert!(!shown("a.spc.json", json).contains("SECRET"));
    }

    #[test]
    fn an_excerpt_of_yaml_shows_no_value_that_is_not_public() {
        for line in [
            "password: SECRET",
            "pasword: 'SECRET' # SECRET",
            "password: [SECRET, {SECRET2: SECRET}]",
            "password: |\n      SECRET\n      host: SECRET",
            "password: &SECRET SECRET\n    bogus2: *SECRET",
            "password: !SECRET SECRET",
            "password: SECRET: SECRET",
            "password: \"SECRET",
            "host: SECRET # SECRET\n    password: *SECRET",
            "host: &h SECRET\n    password: *h",
            "host: 'x' # SECRET",
            "host: x # SECRET",
            "host: |\n      SECRET",
            "# SECRET",
            "bogus: 1 # SECRET",
        ] {
            let text =
                format!("connection:\n  a:\n    plugin: postgres\n    {line}\n    bogus: 1\n");
            // The name of a value in an object is shown, as in JSON.
            let shown = shown("a.yml", &text).replace("SECRET2", "");
            assert!(!shown.contains("SECRET"), "{line}\n{shown}");
        }
        let text = "connection:\n  a:\n    plugin: postgres\n    port: 'x' # y\n    host: h\n";
        let shown = shown("a.yml", text);
        assert!(shown.contains("4 |     port: 'x' ***\n"), "{shown}");
    }

    #[test]
    fn public_values_are_shown_with_a_marker_under_them() {
        let text = "connection \"a\" {\n  plugin = \"postgres\"\n  type   = \"agregator\"\n}\n";
        let shown = shown("a.spc", text);
        assert!(
            shown.contains("type   = \"agregator\"\n  |            ^^^^^^^^^^^"),
            "{shown}"
        );
    }
}
