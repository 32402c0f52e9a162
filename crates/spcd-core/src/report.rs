//! Diagnostics as people read them: the line, a marker, what to type. Values that are not public
//! are masked in the excerpt, whether or not the block could be read.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::config::{Diagnostic, Loaded, Severity, Source, public_settings, without_mark};
use crate::{secret, terminal};
use spcd_lang::block_splitter::TOP_LEVEL;
use spcd_lang::lex::{Lexer, Token, TokenKind};

/// Attributes whose values anyone may see.
const ALWAYS_PUBLIC: [&str; 4] = ["plugin", "type", "connections", "import_schema"];

/// How much of a line is shown on each side of the marker.
const WINDOW: usize = 120;

/// How excerpts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// With colours, for a terminal.
    pub colours: bool,
    /// With values, secrets included.
    pub show_values: bool,
}

/// Prints diagnostics with excerpts from their sources.
pub fn render(loaded: &Loaded, sources: &[Source], style: Style) -> String {
    let public = |diagnostic: &Diagnostic| {
        let connection = (loaded.desired.connections).get(diagnostic.connection.as_ref()?)?;
        loaded.public.get(&connection.plugin_instance)
    };
    print(&loaded.diagnostics, sources, style, public)
}

/// The same for what is wrong in the settings file.
pub fn render_settings(diagnostics: &[Diagnostic], source: &Source, colours: bool) -> String {
    let style = Style {
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
    sources: &[Source],
    style: Style,
    public: impl Fn(&Diagnostic) -> Option<&'a BTreeSet<String>>,
) -> String {
    let texts: HashMap<&str, &str> = sources
        .iter()
        .filter_map(|source| {
            Some((
                source.path.as_str(),
                without_mark(source.text.as_deref().ok()?),
            ))
        })
        .collect();
    let renderer = if style.colours {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    // One reading of each file, however many diagnostics it has.
    let mut values: HashMap<&str, Vec<Hidden>> = HashMap::new();
    let mut out = String::new();
    for diagnostic in diagnostics {
        let text = texts.get(diagnostic.file.as_str()).copied().unwrap_or("");
        let hidden = match style.show_values {
            true => &Vec::new(),
            false => &*values
                .entry(&diagnostic.file)
                .or_insert_with(|| hidden(text, diagnostic.file.ends_with(".json"))),
        };
        out.push_str(&one(
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

fn one(
    diagnostic: &Diagnostic,
    text: &str,
    hidden: &[Hidden],
    public: Option<&BTreeSet<String>>,
    renderer: &Renderer,
) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let message = plain(&diagnostic.message);
    let path = plain(&diagnostic.file);
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
    let hint = diagnostic.hint.as_deref().map(plain);
    let group = match &hint {
        Some(hint) => group.element(Level::HELP.message(hint)),
        None => group,
    };
    renderer.render(&[group])
}

/// Text without characters that would move the cursor.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c.is_control() || terminal::acts(c) {
            true => '\u{fffd}',
            false => c,
        })
        .collect()
}

/// The first line of a marked range, masked and shortened, and the range in it.
fn excerpt(
    text: &str,
    span: &Range<usize>,
    hidden: &[Hidden],
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
    // Copies up to an offset; a marker that begins or ends there is set.
    let mut ranges: Vec<Range<usize>> = hidden
        .iter()
        .skip_while(|hidden| hidden.range.end <= line_start)
        .take_while(|hidden| hidden.range.start < line_end)
        .filter(|hidden| !hidden.is_public(public))
        .map(|hidden| hidden.range.start.max(line_start)..hidden.range.end.min(line_end))
        .filter(|range| !range.is_empty())
        .collect();
    // Also in what is public a part may be a secret.
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
            // A marker within what is masked marks the mask.
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

/// A line whose characters do not act on a terminal, of the same length in bytes.
fn inert(line: &str) -> String {
    let shown = |c: char| match c {
        // The renderer shows these as symbols.
        c if !terminal::acts(c) || (c.is_ascii_control() && c != '\r') => c,
        c if c.len_utf8() == 1 => ' ',
        c if c.len_utf8() == 2 => '\u{bf}',
        _ => '\u{fffd}',
    };
    line.chars().map(shown).collect()
}

/// A part of a long line around the marker.
fn window(line: &str, marked: Range<usize>) -> (String, Range<usize>) {
    let boundary = |mut at: usize| {
        while !line.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let from = boundary(marked.start.saturating_sub(WINDOW));
    let to = boundary((marked.start + WINDOW).min(line.len()));
    let end = boundary(marked.end.min(to).max(marked.start));
    let (before, after) = (
        if from > 0 { "…" } else { "" },
        if to < line.len() { "…" } else { "" },
    );
    let shift = before.len();
    let shown = format!("{before}{}{after}", line.get(from..to).unwrap_or(""));
    (shown, marked.start - from + shift..end - from + shift)
}

/// A part of a file that may be a value.
#[derive(Debug)]
struct Hidden {
    range: Range<usize>,
    /// The attribute it belongs to, where that can be told.
    key: Option<Box<str>>,
    /// It is in a block whose values are no secrets.
    import: bool,
}

impl Hidden {
    fn is_public(&self, public: Option<&BTreeSet<String>>) -> bool {
        self.import
            || self.key.as_deref().is_some_and(|key| {
                ALWAYS_PUBLIC.contains(&key) || public.is_some_and(|public| public.contains(key))
            })
    }
}

/// Where a file's values are. It goes by tokens alone, since excerpts are wanted above all where
/// nothing could be parsed: whatever is no name of an attribute and no header of a block is one.
fn hidden(text: &str, json: bool) -> Vec<Hidden> {
    if json {
        return hidden_json(text);
    }
    let tokens: Vec<Token> = Lexer::new(text).collect();
    let kind = |index: usize| tokens.get(index).map_or(TokenKind::End, |token| token.kind);
    let mut hidden: Vec<Hidden> = Vec::new();
    // The types of the blocks that we are in.
    let mut blocks: Vec<&str> = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        match token.kind {
            TokenKind::Newline | TokenKind::End => index += 1,
            TokenKind::CloseBrace => {
                blocks.pop();
                index += 1;
            }
            // A header's brace on a line of its own.
            TokenKind::OpenBrace => {
                blocks.push("");
                index += 1;
            }
            // What is commented out may be a secret all the same.
            TokenKind::Comment => {
                hidden.push(Hidden {
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
                    // A word that nothing is assigned to may be a secret that was pasted here.
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
                    let nested = blocks.len() > 1;
                    let clean = is_whole(&tokens[from..end]);
                    let key = key.filter(|_| assigned && !nested && clean);
                    let import = import && assigned && clean;
                    hidden.push(Hidden {
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

/// The token after a value: the line's end, or the brace that closes the block around it.
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

/// Whether tokens are one value and nothing behind it: a second one may be somebody else's.
fn is_whole(tokens: &[Token]) -> bool {
    let Some((first, rest)) = tokens.split_first() else {
        return true;
    };
    if tokens.iter().any(|token| token.flaw.is_some()) {
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

/// In JSON, everything that is not the name before a `:`.
fn hidden_json(text: &str) -> Vec<Hidden> {
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
                hidden.push(Hidden {
                    range: token.start..token.end,
                    key,
                    import: false,
                });
            }
        }
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::{Style, render};
    use crate::config::{Cache, Given, Source, load};

    /// What is shown of one file, in which `SECRET` stands wherever a value may be secret.
    fn shown(path: &str, text: &str) -> String {
        let source = Source {
            path: path.to_owned(),
            text: Ok(text.to_owned()),
        };
        let sources = [source];
        let mut lookup = |_, _: &str, _: &str| Err("it is not set".to_owned());
        let mut given = Given {
            lookup: Some(&mut lookup),
        };
        let loaded = load(&sources, &mut given, &mut Cache::default());
        assert!(!loaded.diagnostics.is_empty(), "{text}");
        render(&loaded, &sources, Style::default())
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
    fn public_values_are_shown_with_a_marker_under_them() {
        let text = "connection \"a\" {\n  plugin = \"postgres\"\n  type   = \"agregator\"\n}\n";
        let shown = shown("a.spc", text);
        assert!(
            shown.contains("type   = \"agregator\"\n  |            ^^^^^^^^^^^"),
            "{shown}"
        );
    }
}
