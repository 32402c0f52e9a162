//! Loads all files into the desired state.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::connection::InspectedConnection;
use super::key::{Key, key};
use super::options;
use super::plugins::{PluginBlock, PluginInstances};
use super::position::SourceText;
use super::{DesiredState, Diagnostic, Severity, SourceFile};
use spcd_lang::block_splitter::{Fragment, SplitText, TOP_LEVEL, split_blocks};
use spcd_lang::evaluate::Function;
use spcd_lang::nearest::suggestion;
use spcd_lang::parse::Parsed;
use spcd_lang::syntax::{Block, Problem, Span};
use spcd_lang::value::Value;
use spcd_lang::{json, objects, parse, yaml};

mod aggregators;
mod blocks;
mod budget;
mod cache;
mod connections;
mod diagnostics;
mod elements;
mod local_values;
mod locals;
mod mirrors;

pub(super) use budget::{Budget, FileEnvironment};
pub use cache::Cache;
use cache::{CachedConnection, ParsedText};
use local_values::Locals;

/// Evaluates a function outside of this crate: the function, the directory of the `.spc` file, the
/// argument. The error is the reason why there is no result (`No such file or directory …`).
pub type FunctionResolver<'a> = dyn FnMut(Function, &str, &str) -> Result<String, String> + 'a;

/// Access to the environment and the file system, which this crate does not have.
pub struct LoadContext<'a> {
    /// Evaluates functions; `None` leaves values that call one unknown.
    pub lookup: Option<&'a mut FunctionResolver<'a>>,
    /// There is a gateway, where wrappers can run that must not run in the hub.
    pub has_gateway: bool,
}

/// Result of loading all files.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Desired state.
    pub desired: DesiredState,
    /// Diagnostics, by file and position.
    pub diagnostics: Vec<Diagnostic>,
    /// The `plugin` blocks, by file and position.
    pub plugins: Vec<PluginBlock>,
    /// Attributes whose values may be shown, by plugin instance.
    pub public: BTreeMap<String, BTreeSet<String>>,
}

/// Result of loading, with what `check` shows besides.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// Result of [`load`].
    pub loaded: Loaded,
    /// Every connection with its values, by file and position. Two of the same name are both
    /// listed.
    pub connections: Vec<InspectedConnection>,
    /// Values of all `options` blocks, by label.
    pub options: BTreeMap<String, Value>,
    /// Resulting search path.
    pub search_path: Vec<String>,
}

/// Loads all files. Never fails as a whole.
pub fn load(sources: &[SourceFile], given: &mut LoadContext<'_>, cache: &mut Cache) -> Loaded {
    Loader::run(sources, given, cache, None)
}

/// Loads all files and keeps what `check` shows.
pub fn inspect(sources: &[SourceFile], given: &mut LoadContext<'_>) -> Inspection {
    let mut inspection = Inspection::default();
    let loaded = Loader::run(sources, given, &mut Cache::default(), Some(&mut inspection));
    let enabled = loaded.desired.connections.values().filter(|c| c.enabled);
    inspection.search_path =
        options::search_path(&loaded.desired.database, enabled.map(|c| c.name.as_str()));
    inspection.loaded = loaded;
    inspection
}

/// [`load`] for files that call no functions.
pub fn load_plain(sources: &[SourceFile]) -> DesiredState {
    let mut lookup = |_: Function, _: &str, _: &str| Err("there are no functions here".to_owned());
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    load(sources, &mut given, &mut Cache::default()).desired
}

/// Block and its position.
#[derive(Clone)]
struct LoadedBlock {
    file: usize,
    /// Offset that its spans count from.
    base: usize,
    /// Line of that offset, if it is known without counting.
    line: Option<u32>,
    is_stray: bool,
    /// Parsed text; empty if the block is cached.
    entry: Arc<ParsedText>,
    index: usize,
    /// Problems that the block itself does not have.
    extra: Vec<Problem>,
    /// The connection as it was read last, and the key of its text.
    cached: Option<CachedConnection>,
    key: Key,
    /// Offset after its text.
    end: usize,
}

impl LoadedBlock {
    fn parsed(&self) -> Option<&Parsed> {
        self.entry.blocks.get(self.index)
    }

    fn block(&self) -> Option<&Block> {
        self.parsed()?.block.as_ref()
    }

    /// Returns the problems of the text itself.
    fn own_problems(&self) -> impl Iterator<Item = Problem> {
        let of_text = self
            .parsed()
            .into_iter()
            .flat_map(|parsed| &parsed.problems);
        of_text.chain(&self.extra).cloned()
    }

    fn is_locals(&self) -> bool {
        self.block().is_some_and(|block| &*block.kind == "locals")
    }

    /// Parses the fragment again and discards the cached connection.
    fn parse(&mut self, file: &str, cache: &mut Cache) {
        let text = file.get(self.base..self.end).unwrap_or_default();
        self.cached = None;
        self.entry = cache.entry(self.key, || ParsedText {
            blocks: vec![parse::parse(text)],
            broken: None,
        });
    }
}

/// Returns the parser of a file whose blocks are nested objects; `None` for HCL's native syntax.
fn object_reader(path: &str) -> Option<fn(&str) -> objects::File> {
    if path.ends_with(".spc.json") {
        Some(json::parse)
    } else if path.ends_with(".json") {
        Some(json::parse_literal)
    } else if is_yaml(path) {
        Some(yaml::parse)
    } else {
        None
    }
}

/// Returns whether a path is that of a YAML file.
pub(crate) fn is_yaml(path: &str) -> bool {
    path.ends_with(".yml") || path.ends_with(".yaml")
}

/// Returns the length of a file's text in bytes.
fn length(source: &SourceFile) -> usize {
    source.text.as_ref().map_or(0, String::len)
}

struct Loader<'a, 'g> {
    texts: Vec<SourceText<'a>>,
    given: &'a mut LoadContext<'g>,
    budget: Budget,
    locals: Locals,
    loaded: Loaded,
    /// Number of problems beyond those kept, by file.
    suppressed: HashMap<usize, usize>,
    unknown_files: HashSet<usize>,
    instances: PluginInstances,
    /// Position of each plugin block, in the order added.
    instance_items: Vec<(LoadedBlock, Span)>,
    inspection: Option<&'a mut Inspection>,
}

impl<'a, 'g> Loader<'a, 'g> {
    fn run(
        sources: &'a [SourceFile],
        given: &'a mut LoadContext<'g>,
        cache: &mut Cache,
        inspection: Option<&'a mut Inspection>,
    ) -> Loaded {
        cache.begin();
        let has_gateway = given.has_gateway;
        let mut pass = Loader {
            texts: Vec::with_capacity(sources.len()),
            given,
            budget: Budget::of(sources.iter().map(length).sum()),
            locals: Locals::default(),
            loaded: Loaded::default(),
            suppressed: HashMap::new(),
            unknown_files: HashSet::new(),
            instances: PluginInstances::new(has_gateway),
            instance_items: Vec::new(),
            inspection,
        };
        let mut items = Vec::new();
        for source in sources {
            pass.read(source, cache, &mut items);
        }

        let (locals, items) = items.into_iter().partition(LoadedBlock::is_locals);
        pass.locals(locals);
        let mut connections = Vec::new();
        let mut mirrors = Vec::new();
        let mut options = BTreeMap::new();
        for item in items {
            pass.sort(item, &mut connections, &mut mirrors, &mut options);
        }
        pass.report_duplicate_plugins();
        cache.use_instances(pass.instances.key());
        cache.use_locals(pass.locals.key());
        pass.connections(connections, cache);
        pass.mirrors(&mirrors);
        cache.end();
        pass.finish()
    }

    fn read(&mut self, source: &'a SourceFile, cache: &mut Cache, items: &mut Vec<LoadedBlock>) {
        let file = self.texts.len();
        let text = match &source.text {
            Ok(text) => {
                self.texts.push(SourceText::new(&source.path, text));
                self.texts[file].text
            }
            Err(reason) => {
                self.texts.push(SourceText::new(&source.path, ""));
                let problem = Problem::new(
                    Span::default(),
                    format!("this file cannot be read: {reason}"),
                );
                let hint = "its connections keep their tables until it can be read";
                self.report(file, 0, Severity::Error, &problem.hint(hint), None);
                return self.mark_unknown(file);
            }
        };
        match object_reader(&source.path) {
            Some(parse) => self.read_objects(source, text, parse, file, cache, items),
            None => self.read_native(source, text, file, cache, items),
        }
    }

    fn read_objects(
        &mut self,
        source: &SourceFile,
        text: &'a str,
        parse: fn(&str) -> objects::File,
        file: usize,
        cache: &mut Cache,
        items: &mut Vec<LoadedBlock>,
    ) {
        let key = key([&source.path, text]);
        let entry = cache.entry(key, || {
            let objects::File {
                blocks,
                syntax_error: broken,
            } = parse(text);
            ParsedText { blocks, broken }
        });
        for index in 0..entry.blocks.len() {
            let entry = entry.clone();
            items.push(LoadedBlock {
                file,
                base: 0,
                line: None,
                is_stray: false,
                entry,
                index,
                extra: Vec::new(),
                cached: None,
                key,
                end: text.len(),
            });
        }
        if let Some(problem) = &entry.broken {
            self.report(file, 0, Severity::Error, problem, None);
            self.mark_unknown(file);
        }
    }

    fn read_native(
        &mut self,
        source: &SourceFile,
        text: &'a str,
        file: usize,
        cache: &mut Cache,
        items: &mut Vec<LoadedBlock>,
    ) {
        let pieces = cache.pieces(key([&source.path, text]), || {
            let SplitText {
                fragments: pieces,
                unclosed: open,
            } = split_blocks(text);
            let key = |piece: Fragment| (key([&source.path, &text[piece.start..piece.end]]), piece);
            (pieces.into_iter().map(key).collect(), open)
        });
        let (pieces, open) = &*pieces;
        let first = items.len();
        for &(key, ref piece) in pieces {
            if piece.is_stray && !items.last().is_some_and(|last: &LoadedBlock| last.is_stray) {
                // The block before it has ended too early.
                if let Some(before) = items.get_mut(first..).and_then(<[LoadedBlock]>::last_mut) {
                    let line = piece.line;
                    before.parse(text, cache);
                    let span = before.block().map_or(Span::default(), |block| block.span);
                    let message = format!(
                        "this block ends before what follows it on line {line}, which does not belong to a block"
                    );
                    let problem = Problem::new(span, message);
                    before.extra.push(
                        problem.hint("one of its `}` is too early, or there is one too many"),
                    );
                }
            }
            let mut item = LoadedBlock {
                file,
                base: piece.start,
                line: Some(piece.line),
                is_stray: piece.is_stray,
                entry: Arc::default(),
                index: 0,
                extra: Vec::new(),
                cached: cache.connection(&key),
                key,
                end: piece.end,
            };
            if item.cached.is_none() {
                item.parse(text, cache);
            }
            items.push(item);
        }
        if let Some(problem) = open {
            self.report(file, 0, Severity::Error, problem, None);
            self.mark_unknown(file);
        }
    }

    /// Handles a block by its type; connections and mirrors are collected for later.
    fn sort(
        &mut self,
        item: LoadedBlock,
        connections: &mut Vec<LoadedBlock>,
        mirrors: &mut Vec<LoadedBlock>,
        options: &mut BTreeMap<String, (usize, u32)>,
    ) {
        if item.cached.is_some() {
            return connections.push(item);
        }
        let Some(parsed) = item.parsed() else { return };
        *self.suppressed.entry(item.file).or_default() += parsed.suppressed;
        let mut problems = parsed.problems.clone();
        problems.extend(item.extra.iter().cloned());
        let Some(block) = item.block().cloned() else {
            // The unreadable text may have been a connection.
            if self.report_errors(&item, &problems, None).is_some() {
                self.mark_unknown(item.file);
            }
            return;
        };
        let expected = match &*block.kind {
            "partition" => 2,
            kind if TOP_LEVEL.contains(&kind) => 1,
            kind => {
                let problem = Problem::new(block.span, format!("there is no block type `{kind}`"));
                let hint = suggestion(kind, TOP_LEVEL).unwrap_or_else(|| {
                    "the types are `connection`, `plugin`, `mirror`, `locals` and `options`"
                        .to_owned()
                });
                problems.insert(0, problem.hint(hint));
                self.report_errors(&item, &problems, None);
                return self.mark_unknown(item.file);
            }
        };
        if block.labels.len() != expected {
            let message = format!(
                "expected {expected} {} after `{}`, found {}",
                if expected == 1 { "label" } else { "labels" },
                block.kind,
                block.labels.len()
            );
            let problem = Problem::new(block.span, message);
            problems.insert(
                0,
                problem.hint(format!("write `{} \"name\" {{`", block.kind)),
            );
            self.report_errors(&item, &problems, None);
            return self.mark_unknown(item.file);
        }
        let label = block
            .labels
            .first()
            .map(|label| label.text.to_string())
            .unwrap_or_default();
        match &*block.kind {
            "connection" => connections.push(item),
            "mirror" => mirrors.push(item),
            "plugin" => self.plugin(item, &block, &label, problems),
            "options" => self.options(&item, &block, &label, problems, options),
            _ => {
                self.report_errors(&item, &problems, None);
            }
        }
    }
}
