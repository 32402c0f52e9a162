//! All files to what is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::connection::{self, Read, View, refused};
use super::options;
use super::place::Text;
use super::plugins::{self, Instances, PluginBlock};
use super::{Connection, DatabaseOptions, Desired, Diagnostic, Doubt, Kind, Severity, Source};
use crate::aggregate::{Candidate, circles, members};
use crate::nearest::nearest;
use crate::spc::cut::{TOP_LEVEL, cut};
use crate::spc::evaluate::Function;
use crate::spc::parse::Parsed;
use crate::spc::settings::Settings;
use crate::spc::syntax::{Block, Problem, Span};
use crate::spc::value::Value;
use crate::spc::{json, parse};

/// How many diagnostics of one file are told; the rest is counted.
const MAX_DIAGNOSTICS: usize = 100;

/// Asks the edge for a function's result: the function, the directory of the `.spc` file, the
/// argument. The error is the reason why there is none (`No such file or directory …`).
pub type Lookup<'a> = dyn FnMut(Function, &str, &str) -> Result<String, String> + 'a;

/// What the edge hands in: the core itself knows no environment and no file system.
pub struct Given<'a> {
    /// What values may ask for.
    pub lookup: &'a mut Lookup<'a>,
}

/// Blocks that were parsed before, by their text. Values are never kept: what came from the
/// environment or a file may have changed.
#[derive(Default)]
pub struct Cache {
    kept: HashMap<Key, (u64, Arc<Entry>)>,
    pass: u64,
    parsed: usize,
}

impl Cache {
    /// How many blocks the last pass had to parse.
    pub fn parsed(&self) -> usize {
        self.parsed
    }
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
        lookup: &mut lookup,
    };
    load(sources, &mut given, &mut Cache::default()).desired
}

type Key = [u8; 16];

/// The blocks of a text: one of a piece of native syntax, all of a JSON file.
#[derive(Default)]
struct Entry {
    blocks: Vec<Parsed>,
    broken: Option<Problem>,
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
    entry: Arc<Entry>,
    index: usize,
    /// Problems that are not of the block itself.
    extra: Vec<Problem>,
}

impl Item {
    fn parsed(&self) -> Option<&Parsed> {
        self.entry.blocks.get(self.index)
    }

    fn block(&self) -> Option<&Block> {
        self.parsed()?.block.as_ref()
    }
}

struct Pass<'a, 'g> {
    texts: Vec<Text<'a>>,
    given: &'a mut Given<'g>,
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
        cache.pass += 1;
        cache.parsed = 0;
        let mut pass = Pass {
            texts: Vec::with_capacity(sources.len()),
            given,
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
        let current = cache.pass;
        cache.kept.retain(|_, (used, _)| *used == current);

        let mut connections = Vec::new();
        let mut database = None;
        for item in items {
            pass.sort(item, &mut connections, &mut database);
        }
        pass.twins();
        pass.connections(connections);
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
        if source.path.ends_with(".json") {
            let entry = cache.entry(text, || {
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
                });
            }
            if let Some(problem) = &entry.broken {
                self.tell(file, 0, Severity::Error, problem, None);
                self.doubt(file);
            }
            return;
        }
        let pieces = cut(text);
        let first = items.len();
        for piece in &pieces.pieces {
            let text = &text[piece.start..piece.end];
            let entry = cache.entry(text, || Entry {
                blocks: vec![parse::parse(text)],
                broken: None,
            });
            if piece.stray && !items.last().is_some_and(|last: &Item| last.stray) {
                // The block before it has ended where it should not, so it lacks something.
                if let Some(before) = items.get_mut(first..).and_then(<[Item]>::last_mut) {
                    let line = piece.line;
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
            let (base, line) = (piece.start, Some(piece.line));
            items.push(Item {
                file,
                base,
                line,
                stray: piece.stray,
                entry,
                index: 0,
                extra: Vec::new(),
            });
        }
        if let Some(problem) = &pieces.open {
            self.tell(file, 0, Severity::Error, problem, None);
            self.doubt(file);
        }
    }

    /// What the last problem told says of its file, put on what the file held before.
    fn doubt(&mut self, file: usize) {
        if let (true, Some(told)) = (self.doubtful.insert(file), self.loaded.diagnostics.last()) {
            self.loaded.desired.doubts.push(Doubt {
                path: told.file.clone(),
                directory: false,
                error: Some(told.one_line()),
            });
        }
    }

    fn tell(
        &mut self,
        file: usize,
        base: usize,
        severity: Severity,
        problem: &Problem,
        connection: Option<&str>,
    ) {
        let Some(text) = self.texts.get(file) else {
            return;
        };
        self.loaded
            .diagnostics
            .push(text.diagnostic(base, severity, problem, connection));
    }

    /// Tells a block's problems; returns the first one as a state's error would say it.
    fn tell_all(
        &mut self,
        item: &Item,
        problems: &[Problem],
        connection: Option<&str>,
    ) -> Option<String> {
        let before = self.loaded.diagnostics.len();
        let mut problems: Vec<&Problem> = problems.iter().collect();
        problems.sort_by_key(|problem| problem.span.start);
        for &problem in &problems {
            self.tell(item.file, item.base, Severity::Error, problem, connection);
        }
        let first = self.loaded.diagnostics.get(before)?;
        let mut error = first.one_line();
        if problems.len() > 1 {
            error.push_str(&format!(" (and {} more)", problems.len() - 1));
        }
        Some(error)
    }

    fn warn(&mut self, item: &Item, warnings: &[Problem], connection: Option<&str>) -> Vec<String> {
        for warning in warnings {
            self.tell(item.file, item.base, Severity::Warning, warning, connection);
        }
        warnings
            .iter()
            .map(|warning| warning.message.clone())
            .collect()
    }

    /// The lines of a block's braces.
    fn lines(&self, item: &Item, block: &Block) -> (u32, u32) {
        let Some(text) = self.texts.get(item.file) else {
            return (0, 0);
        };
        let at = |offset: u32| item.base + offset as usize;
        match item.line {
            // Counting within the block is cheaper than an index of the whole file.
            Some(line) => {
                let newlines = |from: usize, to: usize| {
                    let bytes = text.text.as_bytes().get(from..to).unwrap_or(&[]);
                    u32::try_from(bytes.iter().filter(|&&b| b == b'\n').count()).unwrap_or(u32::MAX)
                };
                let start = line + newlines(item.base, at(block.open));
                (start, start + newlines(at(block.open), at(block.close)))
            }
            None => (
                text.position(at(block.open)).0,
                text.position(at(block.close)).0,
            ),
        }
    }

    /// Handles a block by its type; connections are put aside.
    fn sort(
        &mut self,
        item: Item,
        connections: &mut Vec<Item>,
        database: &mut Option<(usize, u32)>,
    ) {
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
            "options" => self.options(&item, &block, &label, problems, database),
            _ => {
                self.tell_all(&item, &problems, None);
            }
        }
    }

    fn plugin(&mut self, item: Item, block: &Block, label: &str, mut problems: Vec<Problem>) {
        let mut warnings = Vec::new();
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let span = block.labels.first().map_or(block.span, |label| label.span);
        if label.is_empty() || label.contains('\0') {
            problems.push(Problem::new(
                span,
                "a plugin block's label is some text without NUL",
            ));
        }
        let given = &mut *self.given;
        let mut lookup = |function, argument: &str| look_up(given, path, function, argument);
        let mut instance =
            plugins::instance(block, label, &mut lookup, &mut problems, &mut warnings);
        instance.view.file = path.to_owned();
        (instance.view.start_line, instance.view.end_line) = self.lines(&item, block);
        instance.view.error = self.tell_all(&item, &problems, None);
        self.warn(&item, &warnings, None);
        self.instances.add(instance);
        self.instance_items.push((item, span));
    }

    /// Plugin blocks that share a label.
    fn twins(&mut self) {
        let twins: Vec<Vec<usize>> = self.instances.twins().map(<[usize]>::to_vec).collect();
        for indexes in twins {
            let places: Vec<String> = indexes
                .iter()
                .filter_map(|index| self.instances.views().nth(*index))
                .map(|view| format!("{}:{}", view.file, view.start_line))
                .collect();
            for (position, index) in indexes.iter().enumerate() {
                let Some((item, span)) = self.instance_items.get(*index).cloned() else {
                    continue;
                };
                let label = self
                    .instances
                    .views()
                    .nth(*index)
                    .map_or("", |view| &view.label);
                let problem = twice("plugin", label, position, &places, span);
                if let Some(error) = self.tell_all(&item, &[problem], None) {
                    self.instances.spoil(*index, &error);
                }
            }
        }
        self.loaded.plugins = self.instances.views().cloned().collect();
    }

    fn options(
        &mut self,
        item: &Item,
        block: &Block,
        label: &str,
        mut problems: Vec<Problem>,
        database: &mut Option<(usize, u32)>,
    ) {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let given = &mut *self.given;
        let mut lookup = |function, argument: &str| look_up(given, path, function, argument);
        let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
        let mut warnings = Vec::new();
        let span = block.labels.first().map_or(block.span, |label| label.span);
        warnings.extend(options::unknown(label, span));
        if label == "database" {
            let read: DatabaseOptions = options::database(&settings, &mut problems, &mut warnings);
            match database {
                None => {
                    self.loaded.desired.database = read;
                    *database = Some((item.file, self.lines(item, block).0));
                }
                Some((file, line)) => {
                    let first = self.texts.get(*file).map_or("", |text| text.path);
                    let message =
                        format!("`options \"database\"` is written twice; {first}:{line} counts");
                    problems.push(Problem::new(span, message).hint("join the two blocks"));
                }
            }
        } else if label == "connection" {
            let problem = Problem::new(
                span,
                "`options \"connection\"` is deprecated and has no effect",
            );
            warnings.push(problem.hint("remove the block"));
        }
        if let Some(inspection) = &mut self.inspection {
            inspection
                .options
                .entry(label.to_owned())
                .or_insert_with(|| Value::Object(settings.object()));
        }
        self.tell_all(item, &problems, None);
        self.warn(item, &warnings, None);
    }

    fn connections(&mut self, items: Vec<Item>) {
        // Where each name is written, so that twins can name each other.
        let mut places: HashMap<String, Vec<String>> = HashMap::with_capacity(items.len());
        for item in &items {
            let Some(block) = item.block() else { continue };
            let Some(label) = block.labels.first() else {
                continue;
            };
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let place = format!("{path}:{}", self.lines(item, block).0);
            places
                .entry(label.text.to_string())
                .or_default()
                .push(place);
        }
        let mut counted: HashMap<String, usize> = HashMap::new();
        let mut spans: BTreeMap<String, (Item, Span)> = BTreeMap::new();
        for item in items {
            let Some(block) = item.block() else { continue };
            let Some(label) = block.labels.first() else {
                continue;
            };
            let (name, span) = (label.text.to_string(), label.span);
            let mut problems: Vec<Problem> = item
                .parsed()
                .map(|parsed| parsed.problems.clone())
                .unwrap_or_default();
            problems.extend(item.extra.iter().cloned());
            if let Some(problem) = refused(&name, span) {
                problems.insert(0, problem);
                self.tell_all(&item, &problems, None);
                continue;
            }
            if let Some(twins) = places.get(&name).filter(|twins| twins.len() > 1) {
                let position = counted.entry(name.clone()).or_default();
                problems.insert(0, twice("connection", &name, *position, twins, span));
                *position += 1;
            }
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let given = &mut *self.given;
            let mut lookup = |function, argument: &str| look_up(given, path, function, argument);
            let mut read = connection::read(block, &name, path, &self.instances, &mut lookup);
            problems.append(&mut read.problems);
            (read.connection.start_line, read.connection.end_line) = self.lines(&item, block);
            let error = self.tell_all(&item, &problems, Some(&name));
            read.connection.warnings = self.warn(&item, &read.warnings, Some(&name));
            if let Some(error) = &error {
                read.connection.target = Err(error.clone());
            }
            if matches!(read.connection.kind, Kind::Aggregator { .. }) {
                spans.insert(name.clone(), (item.clone(), read.connections_span));
            }
            let instance = &read.connection.plugin_instance;
            if !self.loaded.public.contains_key(instance) {
                let public = read.definition.as_ref().map(|d| d.public.clone());
                let public = public.unwrap_or_default();
                self.loaded.public.insert(instance.clone(), public);
            }
            let connection = self.view(read, error);
            self.loaded
                .desired
                .connections
                .entry(name)
                .or_insert(connection);
        }
        self.aggregators(&spans);
    }

    /// Keeps what `check` shows of a connection.
    fn view(&mut self, read: Read, error: Option<String>) -> Connection {
        if let Some(inspection) = &mut self.inspection {
            let mut config = read.settings.object();
            for own in ["plugin", "type", "connections", "import_schema"] {
                config.remove(own);
            }
            inspection.connections.push(View {
                name: read.connection.name.clone(),
                connection: read.connection.clone(),
                config,
                public: read
                    .definition
                    .map(|d| d.public.clone())
                    .unwrap_or_default(),
                error,
            });
        }
        read.connection
    }

    fn aggregators(&mut self, spans: &BTreeMap<String, (Item, Span)>) {
        let chosen = {
            let candidates: BTreeMap<&str, Candidate> = self
                .loaded
                .desired
                .connections
                .iter()
                .map(|(name, connection)| {
                    let patterns = match &connection.kind {
                        Kind::Plugin => None,
                        Kind::Aggregator { patterns, .. } => Some(patterns.clone()),
                    };
                    let plugin_instance = connection.plugin_instance.clone();
                    (
                        name.as_str(),
                        Candidate {
                            plugin_instance,
                            patterns,
                        },
                    )
                })
                .collect();
            if spans.is_empty() {
                BTreeMap::new()
            } else {
                members(&candidates)
            }
        };
        let circles = circles(&chosen);
        for (name, found) in chosen {
            let Some((item, span)) = spans.get(&name) else {
                continue;
            };
            let mut error = None;
            if let Some(circle) = circles.get(&name) {
                let problem = Problem::new(
                    *span,
                    format!("this aggregator is a member of itself: {circle}"),
                );
                let problem = problem.hint("leave out one of them");
                error = self.tell_all(item, &[problem], Some(&name));
            }
            let mut warnings = Vec::new();
            if found.is_empty() {
                let problem = Problem::new(
                    *span,
                    "no connection matches: the schema is empty until one does",
                );
                warnings = self.warn(item, &[problem], Some(&name));
            }
            let Some(connection) = self.loaded.desired.connections.get_mut(&name) else {
                continue;
            };
            connection.warnings.append(&mut warnings);
            if let (Some(error), Ok(_)) = (&error, &connection.target) {
                connection.target = Err(error.clone());
            }
            if let Kind::Aggregator { members, .. } = &mut connection.kind {
                *members = found;
            }
            let connection = connection.clone();
            let views = self
                .inspection
                .iter_mut()
                .flat_map(|inspection| &mut inspection.connections);
            for view in views.filter(|view| view.name == name) {
                view.error = view.error.take().or_else(|| error.clone());
                view.connection.kind = connection.kind.clone();
            }
        }
    }

    /// Sorts the diagnostics and shortens the list of each file.
    fn finish(mut self) -> Loaded {
        let mut diagnostics = std::mem::take(&mut self.loaded.diagnostics);
        let order: HashMap<&str, usize> = self
            .texts
            .iter()
            .enumerate()
            .map(|(index, text)| (text.path, index))
            .collect();
        let file =
            |diagnostic: &Diagnostic| order.get(diagnostic.file.as_str()).copied().unwrap_or(0);
        diagnostics.sort_by_key(|d| (file(d), d.span.start, d.severity));
        let mut kept: Vec<Diagnostic> = Vec::with_capacity(diagnostics.len());
        let mut in_file = (usize::MAX, 0, 0);
        let mut last = None;
        let close = |kept: &mut Vec<Diagnostic>, last: &mut Option<Diagnostic>, more: usize| {
            if let (Some(mut last), true) = (last.take(), more > 0) {
                last.message = format!("and {more} more in this file");
                last.hint = Some("mend the first ones, then look again".to_owned());
                last.span = 0..0;
                last.connection = None;
                kept.push(last);
            }
        };
        for diagnostic in diagnostics {
            let index = file(&diagnostic);
            if index != in_file.0 {
                close(&mut kept, &mut last, in_file.2);
                in_file = (index, 0, self.further.get(&index).copied().unwrap_or(0));
            }
            in_file.1 += 1;
            if in_file.1 <= MAX_DIAGNOSTICS {
                last = Some(diagnostic.clone());
                kept.push(diagnostic);
            } else {
                in_file.2 += 1;
            }
        }
        close(&mut kept, &mut last, in_file.2);
        self.loaded.diagnostics = kept;
        self.loaded.desired.hash_targets();
        self.loaded
    }
}

impl Cache {
    /// What a text says, from memory if it was there before.
    fn entry(&mut self, text: &str, read: impl FnOnce() -> Entry) -> Arc<Entry> {
        let digest = Sha256::digest(text.as_bytes());
        let mut key: Key = [0; 16];
        key.iter_mut()
            .zip(digest.iter())
            .for_each(|(to, from)| *to = *from);
        if let Some((used, entry)) = self.kept.get_mut(&key) {
            *used = self.pass;
            return entry.clone();
        }
        self.parsed += 1;
        let entry = Arc::new(read());
        self.kept.insert(key, (self.pass, entry.clone()));
        entry
    }
}

pub(super) fn look_up(
    given: &mut Given<'_>,
    file: &str,
    function: Function,
    argument: &str,
) -> Result<String, String> {
    let directory = match file.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((directory, _)) => directory,
        None => "",
    };
    (given.lookup)(function, directory, argument).map_err(|reason| {
        let what = match function {
            Function::Env => "the environment variable",
            Function::File => "the file",
            Function::Credential => "the credential",
        };
        // Where a secret lies is none; but somebody may have put the secret itself there.
        let is_name = argument.len() <= 200
            && argument
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        match is_name {
            true => format!("{what} `{argument}` cannot be had: {reason}"),
            false => format!("{what} cannot be had: {reason}"),
        }
    })
}

/// A block that is there more than once; names the others.
fn twice(kind: &str, name: &str, position: usize, places: &[String], span: Span) -> Problem {
    let others: Vec<&str> = places
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != position)
        .map(|(_, place)| place.as_str())
        .take(5)
        .collect();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let message = format!("{kind} `{name}` is also written at {}", others.join(", "));
    Problem::new(span, message).hint("rename or remove one of them")
}
