//! All files to what is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::connection::View;
use super::key::{Key, key};
use super::options;
use super::place::Text;
use super::plugins::{Instances, PluginBlock};
use super::{Desired, Diagnostic, Severity, Source};
use spcd_lang::block_splitter::{Piece, Pieces, TOP_LEVEL, split_blocks};
use spcd_lang::evaluate::Function;
use spcd_lang::nearest::nearest;
use spcd_lang::parse::Parsed;
use spcd_lang::syntax::{Block, Problem, Span};
use spcd_lang::value::Value;
use spcd_lang::{json, parse};

mod blocks;
mod budget;
mod cache;
mod tell;

pub(super) use budget::{Asking, Budget};
pub use cache::Cache;
use cache::{Entry, Settled};

/// Asks the edge for a function's result: the function, the directory of the `.spc` file, the
/// argument. The error is the reason why there is none (`No such file or directory …`).
pub type Lookup<'a> = dyn FnMut(Function, &str, &str) -> Result<String, String> + 'a;

/// What the edge hands in: the core itself knows no environment and no file system.
pub struct Given<'a> {
    /// What values may ask for; `None`: functions are not evaluated, and what uses them is unknown.
    pub lookup: Option<&'a mut Lookup<'a>>,
}

/// What all files say.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What is wanted.
    pub desired: Desired,
    /// What is wrong, by file and place.
    pub diagnostics: Vec<Diagnostic>,
    /// The `plugin` blocks, by file and place.
    pub plugins: Vec<PluginBlock>,
    /// Of each plugin instance that is used: the attributes whose values may be shown.
    pub public: BTreeMap<String, BTreeSet<String>>,
}

/// What `check` shows on top of that.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// What [`load`] gives.
    pub loaded: Loaded,
    /// Every connection with its values, by file and place. Two of the same name are both here.
    pub connections: Vec<View>,
    /// The values of all `options` blocks, by label.
    pub options: BTreeMap<String, Value>,
    /// The search path that results.
    pub search_path: Vec<String>,
}

/// Reads all sources. Never fails as a whole.
pub fn load(sources: &[Source], given: &mut Given<'_>, cache: &mut Cache) -> Loaded {
    Pass::run(sources, given, cache, None)
}

/// Reads all sources and keeps what `check` shows.
pub fn inspect(sources: &[Source], given: &mut Given<'_>) -> Inspection {
    let mut inspection = Inspection::default();
    let loaded = Pass::run(sources, given, &mut Cache::default(), Some(&mut inspection));
    let enabled = loaded.desired.connections.values().filter(|c| c.enabled);
    inspection.search_path =
        options::search_path(&loaded.desired.database, enabled.map(|c| c.name.as_str()));
    inspection.loaded = loaded;
    inspection
}

/// [`load`] of files that call no function.
pub fn load_plain(sources: &[Source]) -> Desired {
    let mut lookup = |_: Function, _: &str, _: &str| Err("there are no functions here".to_owned());
    let mut given = Given {
        lookup: Some(&mut lookup),
    };
    load(sources, &mut given, &mut Cache::default()).desired
}

/// A block and where it is.
#[derive(Clone)]
struct Item {
    file: usize,
    /// What its spans count from.
    base: usize,
    /// The line of that offset where it is known without looking.
    line: Option<u32>,
    stray: bool,
    /// What was parsed; empty where it is settled.
    entry: Arc<Entry>,
    index: usize,
    /// Problems that are not of the block itself.
    extra: Vec<Problem>,
    /// What it was when it was read last, and by which key that is kept.
    settled: Option<Settled>,
    key: Key,
    /// Where its text ends.
    end: usize,
}

impl Item {
    fn parsed(&self) -> Option<&Parsed> {
        self.entry.blocks.get(self.index)
    }

    fn block(&self) -> Option<&Block> {
        self.parsed()?.block.as_ref()
    }

    /// Has the piece of native syntax itself, and no longer what it was when it was read last.
    fn parse(&mut self, file: &str, cache: &mut Cache) {
        let text = file.get(self.base..self.end).unwrap_or_default();
        self.settled = None;
        self.entry = cache.entry(self.key, || Entry {
            blocks: vec![parse::parse(text)],
            broken: None,
        });
    }
}

/// The length of a file's text.
fn length(source: &Source) -> usize {
    source.text.as_ref().map_or(0, String::len)
}

struct Pass<'a, 'g> {
    texts: Vec<Text<'a>>,
    given: &'a mut Given<'g>,
    budget: Budget,
    loaded: Loaded,
    /// Problems beyond those kept, by file.
    further: HashMap<usize, usize>,
    doubtful: HashSet<usize>,
    instances: Instances,
    /// Of each plugin block, in the order added: where it is.
    instance_items: Vec<(Item, Span)>,
    inspection: Option<&'a mut Inspection>,
}

impl<'a, 'g> Pass<'a, 'g> {
    fn run(
        sources: &'a [Source],
        given: &'a mut Given<'g>,
        cache: &mut Cache,
        inspection: Option<&'a mut Inspection>,
    ) -> Loaded {
        cache.begin();
        let mut pass = Pass {
            texts: Vec::with_capacity(sources.len()),
            given,
            budget: Budget::of(sources.iter().map(length).sum()),
            loaded: Loaded::default(),
            further: HashMap::new(),
            doubtful: HashSet::new(),
            instances: Instances::default(),
            instance_items: Vec::new(),
            inspection,
        };
        let mut items = Vec::new();
        for source in sources {
            pass.read(source, cache, &mut items);
        }

        let mut connections = Vec::new();
        let mut options = BTreeMap::new();
        for item in items {
            pass.sort(item, &mut connections, &mut options);
        }
        pass.twins();
        cache.rest_on(pass.instances.key());
        pass.connections(connections, cache);
        cache.end();
        pass.finish()
    }

    fn read(&mut self, source: &'a Source, cache: &mut Cache, items: &mut Vec<Item>) {
        let file = self.texts.len();
        let text = match &source.text {
            Ok(text) => {
                self.texts.push(Text::new(&source.path, text));
                self.texts[file].text
            }
            Err(reason) => {
                self.texts.push(Text::new(&source.path, ""));
                let problem = Problem::new(
                    Span::default(),
                    format!("this file cannot be read: {reason}"),
                );
                let hint = "its connections keep what they have until it can be";
                self.tell(file, 0, Severity::Error, &problem.hint(hint), None);
                return self.doubt(file);
            }
        };
        match source.path.ends_with(".json") {
            true => self.read_json(source, text, file, cache, items),
            false => self.read_native(source, text, file, cache, items),
        }
    }

    fn read_json(
        &mut self,
        source: &Source,
        text: &'a str,
        file: usize,
        cache: &mut Cache,
        items: &mut Vec<Item>,
    ) {
        let key = key([&source.path, text]);
        let entry = cache.entry(key, || {
            let json::File { blocks, broken } = json::parse(text);
            Entry { blocks, broken }
        });
        for index in 0..entry.blocks.len() {
            let entry = entry.clone();
            items.push(Item {
                file,
                base: 0,
                line: None,
                stray: false,
                entry,
                index,
                extra: Vec::new(),
                settled: None,
                key,
                end: text.len(),
            });
        }
        if let Some(problem) = &entry.broken {
            self.tell(file, 0, Severity::Error, problem, None);
            self.doubt(file);
        }
    }

    fn read_native(
        &mut self,
        source: &Source,
        text: &'a str,
        file: usize,
        cache: &mut Cache,
        items: &mut Vec<Item>,
    ) {
        let pieces = cache.pieces(key([&source.path, text]), || {
            let Pieces { pieces, open } = split_blocks(text);
            let key = |piece: Piece| (key([&source.path, &text[piece.start..piece.end]]), piece);
            (pieces.into_iter().map(key).collect(), open)
        });
        let (pieces, open) = &*pieces;
        let first = items.len();
        for &(key, ref piece) in pieces {
            if piece.stray && !items.last().is_some_and(|last: &Item| last.stray) {
                // The block before it has ended where it should not, so it lacks something.
                if let Some(before) = items.get_mut(first..).and_then(<[Item]>::last_mut) {
                    let line = piece.line;
                    before.parse(text, cache);
                    let span = before.block().map_or(Span::default(), |block| block.span);
                    let message = format!(
                        "this block ends before what follows it on line {line}, which belongs to no block"
                    );
                    let problem = Problem::new(span, message);
                    before
                        .extra
                        .push(problem.hint("one of its `}` stands too early, or one is too many"));
                }
            }
            let mut item = Item {
                file,
                base: piece.start,
                line: Some(piece.line),
                stray: piece.stray,
                entry: Arc::default(),
                index: 0,
                extra: Vec::new(),
                settled: cache.settled(&key),
                key,
                end: piece.end,
            };
            if item.settled.is_none() {
                item.parse(text, cache);
            }
            items.push(item);
        }
        if let Some(problem) = open {
            self.tell(file, 0, Severity::Error, problem, None);
            self.doubt(file);
        }
    }

    /// Handles a block by its type; connections are put aside.
    fn sort(
        &mut self,
        item: Item,
        connections: &mut Vec<Item>,
        options: &mut BTreeMap<String, (usize, u32)>,
    ) {
        if item.settled.is_some() {
            return connections.push(item);
        }
        let Some(parsed) = item.parsed() else { return };
        *self.further.entry(item.file).or_default() += parsed.further;
        let mut problems = parsed.problems.clone();
        problems.extend(item.extra.iter().cloned());
        let Some(block) = item.block().cloned() else {
            // What stands here may have been a connection.
            if self.tell_all(&item, &problems, None).is_some() {
                self.doubt(item.file);
            }
            return;
        };
        let expected = match &*block.kind {
            "partition" => 2,
            kind if TOP_LEVEL.contains(&kind) => 1,
            kind => {
                let problem = Problem::new(block.span, format!("there is no block type `{kind}`"));
                problems.insert(
                    0,
                    match nearest(kind, TOP_LEVEL.into_iter()) {
                        Some(near) => problem.hint(format!("did you mean `{near}`?")),
                        None => problem.hint("the types are `connection`, `plugin` and `options`"),
                    },
                );
                self.tell_all(&item, &problems, None);
                return self.doubt(item.file);
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
            self.tell_all(&item, &problems, None);
            return self.doubt(item.file);
        }
        let label = block
            .labels
            .first()
            .map(|label| label.text.to_string())
            .unwrap_or_default();
        match &*block.kind {
            "connection" => connections.push(item),
            "plugin" => self.plugin(item, &block, &label, problems),
            "options" => self.options(&item, &block, &label, problems, options),
            _ => {
                self.tell_all(&item, &problems, None);
            }
        }
    }
}
