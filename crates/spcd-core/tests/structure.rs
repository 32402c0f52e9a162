//! The shape of the source: no circle of modules that use each other, no file that is too long, no
//! function that does not fit a screen.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// The longest file, in lines.
const MAX_FILE_LINES: usize = 600;
/// The longest function, in lines, with its signature.
const MAX_FUNCTION_LINES: usize = 80;

const CRATES: [&str; 6] = [
    "spcd-protocol",
    "spcd-client",
    "spcd-lang",
    "spcd-core",
    "spcd-postgres",
    "spcd",
];

/// A module's path in its crate: `["planner", "show"]`; the crate's root is empty.
type ModulePath = Vec<String>;

struct Module {
    items: Vec<syn::Item>,
    /// Names that its `use` declarations bring in, and the paths that they stand for.
    imports: BTreeMap<String, Vec<String>>,
}

/// The modules of one crate, without those of its tests.
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    let is_test = |attribute: &syn::Attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|path| path.is_ident("test")))
    };
    attributes.iter().any(is_test)
}

impl Crate {
    fn read(name: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../{name}/src"));
        let root = ["lib.rs", "main.rs"].map(|file| source.join(file));
        let root = root.into_iter().find(|file| file.exists()).unwrap();
        let mut read = Self {
            modules: BTreeMap::new(),
        };
        read.add(Vec::new(), &root, &source);
        read
    }

    /// Adds a module and those below it, whose files are in `directory`.
    fn add(&mut self, path: ModulePath, file: &Path, directory: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.add_items(path, parsed.items, directory);
    }

    fn add_items(&mut self, path: ModulePath, items: Vec<syn::Item>, directory: &Path) {
        let mut imports = BTreeMap::new();
        for item in &items {
            match item {
                syn::Item::Use(import) if !is_for_tests(&import.attrs) => {
                    names(&import.tree, Vec::new(), &mut imports);
                }
                syn::Item::Mod(module) if !is_for_tests(&module.attrs) => {
                    let name = module.ident.to_string();
                    let child = [path.clone(), vec![name.clone()]].concat();
                    match &module.content {
                        Some((_, items)) => {
                            self.add_items(child, items.clone(), &directory.join(&name));
                        }
                        None => {
                            let beside = directory.join(format!("{name}.rs"));
                            let file = match beside.exists() {
                                true => beside,
                                false => directory.join(&name).join("mod.rs"),
                            };
                            self.add(child, &file, &directory.join(&name));
                        }
                    }
                }
                _ => {}
            }
        }
        self.modules.insert(path, Module { items, imports });
    }

    /// The module that defines what a path in `module` names; `None`: it is of another crate.
    fn definition(&self, module: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        let (first, mut rest) = path.split_first()?;
        let mut at = module.clone();
        match first.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()),
            name if self.child(&at, name).is_some() => at.push(name.to_owned()),
            name => {
                let target = self.modules.get(&at)?.imports.get(name)?;
                let whole = [target, rest].concat();
                let again = depth < 8 && target.first() != Some(first);
                return again.then(|| self.definition(&at, &whole, depth + 1))?;
            }
        }
        while let Some((name, after)) = rest.split_first() {
            if name == "super" {
                at.pop();
            } else if let Some(child) = self.child(&at, name) {
                at = child;
            } else {
                let imported = self.modules.get(&at)?.imports.get(name);
                let whole = imported.map(|target| [target, after].concat());
                return match whole {
                    Some(whole) if depth < 8 => self.definition(&at, &whole, depth + 1),
                    _ => Some(at),
                };
            }
            rest = after;
        }
        Some(at)
    }

    fn child(&self, module: &ModulePath, name: &str) -> Option<ModulePath> {
        let child = [module.clone(), vec![name.to_owned()]].concat();
        self.modules.contains_key(&child).then_some(child)
    }

    /// Which modules use which others.
    fn uses(&self) -> BTreeMap<&ModulePath, BTreeSet<ModulePath>> {
        let mut uses = BTreeMap::new();
        for (path, module) in &self.modules {
            let mut paths = Paths::default();
            module.items.iter().for_each(|item| paths.visit_item(item));
            let imports = module.imports.values().cloned();
            let used: BTreeSet<ModulePath> = (paths.found.into_iter().chain(imports))
                .filter_map(|used| self.definition(path, &used, 0))
                .filter(|used| used != path)
                .collect();
            uses.insert(path, used);
        }
        uses
    }
}

/// Adds the names that a `use` declaration brings in.
fn names(tree: &syn::UseTree, before: Vec<String>, found: &mut BTreeMap<String, Vec<String>>) {
    let with = |name: &syn::Ident| [before.clone(), vec![name.to_string()]].concat();
    match tree {
        syn::UseTree::Path(path) => names(&path.tree, with(&path.ident), found),
        syn::UseTree::Name(name) if name.ident == "self" => {
            found.extend(before.last().cloned().map(|last| (last, before.clone())));
        }
        syn::UseTree::Name(name) => drop(found.insert(name.ident.to_string(), with(&name.ident))),
        syn::UseTree::Rename(name) => {
            let path = match name.ident == "self" {
                true => before,
                false => with(&name.ident),
            };
            found.insert(name.rename.to_string(), path);
        }
        syn::UseTree::Glob(_) => {}
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                names(tree, before.clone(), found);
            }
        }
    }
}

/// Paths in the code that is no test, and functions that are too long.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
    long: Vec<String>,
}

impl Paths {
    fn measure(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (from, to) = (signature.span(), block.brace_token.span.close());
        let lines = to.end().line - from.start().line + 1;
        if lines > MAX_FUNCTION_LINES {
            self.long.push(signature.ident.to_string());
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {
        // A module of its own.
    }

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if !is_for_tests(&function.attrs) {
            self.measure(&function.sig, &function.block);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            self.measure(&function.sig, &function.block);
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        let names: Vec<String> = names.collect();
        if names.len() > 1 {
            self.found.push(names);
        }
        visit::visit_path(self, path);
    }
}

/// All siblings that one uses, directly or through others.
fn reachable<'a>(
    from: &ModulePath,
    uses: &'a BTreeMap<ModulePath, BTreeSet<ModulePath>>,
) -> BTreeSet<&'a ModulePath> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&ModulePath> = uses.get(from).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if found.insert(module) {
            open.extend(uses.get(module).into_iter().flatten());
        }
    }
    found
}

/// Which modules use which of their siblings. What a module below one uses counts for it. A parent and
/// its children may use each other: they are one room.
fn siblings(
    uses: &BTreeMap<&ModulePath, BTreeSet<ModulePath>>,
) -> BTreeMap<ModulePath, BTreeSet<ModulePath>> {
    let mut found: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    for (module, used) in uses
        .iter()
        .flat_map(|(module, used)| used.iter().map(move |u| (*module, u)))
    {
        let common = module.iter().zip(used).take_while(|(a, b)| a == b).count();
        if common < module.len() && common < used.len() {
            let [user, used] = [module, used].map(|path| path[..=common].to_vec());
            found.entry(user).or_default().insert(used);
        }
    }
    found
}

fn shown(module: &ModulePath) -> String {
    match module.is_empty() {
        true => "crate".to_owned(),
        false => module.join("::"),
    }
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let mut found = Vec::new();
    for name in CRATES {
        let read = Crate::read(name);
        let uses = siblings(&read.uses());
        for (module, used) in &uses {
            let back = used
                .iter()
                .filter(|used| reachable(used, &uses).contains(module));
            found.extend(back.map(|used| format!("{name}: {} → {}", shown(module), shown(used))));
        }
    }
    assert!(found.is_empty(), "in circles:\n{}", found.join("\n"));
}

#[test]
fn functions_fit_a_screen() {
    let mut long = BTreeSet::new();
    for name in CRATES {
        for (path, module) in &Crate::read(name).modules {
            let mut paths = Paths::default();
            module.items.iter().for_each(|item| paths.visit_item(item));
            let of_module = paths.long.into_iter().map(|function| {
                let path = path.iter().chain([&function]);
                let path: Vec<&str> = path.map(String::as_str).collect();
                format!("{name} {}", path.join("::"))
            });
            long.extend(of_module);
        }
    }
    assert!(
        long.is_empty(),
        "of more than {MAX_FUNCTION_LINES} lines: {long:?}"
    );
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn files_are_not_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    sources(&root.join("tests"), &mut files);
    for name in CRATES {
        sources(&root.join("crates").join(name), &mut files);
    }
    let lines = |file: &PathBuf| std::fs::read_to_string(file).unwrap().lines().count();
    let long: Vec<String> = (files.iter().map(|file| (file, lines(file))))
        .filter(|(_, lines)| *lines > MAX_FILE_LINES)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// A relation of the catalog without its schema may be a user's, whatever the search path was meant to be.
#[test]
fn relations_of_the_catalog_are_named_with_their_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for name in CRATES {
        sources(&root.join("crates").join(name).join("src"), &mut files);
    }
    let mut migrations = Vec::new();
    paths(&root, "migrations/", &mut migrations);
    let is_sql = |path: &&String| path.ends_with(".sql");
    files.extend(migrations.iter().filter(is_sql).map(|path| root.join(path)));
    let mut questions = 0;
    let mut unqualified = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words
            .windows(2)
            .filter(|pair| matches!(pair[0], "FROM" | "JOIN" | "UPDATE"))
        {
            questions += usize::from(pair[1].starts_with("pg_catalog."));
            let is_schema = ["pg_catalog.", "pg_temp."]
                .iter()
                .any(|schema| pair[1].starts_with(schema));
            if pair[1].starts_with("pg_") && !is_schema {
                unqualified.push(format!("{}: {} {}", file.display(), pair[0], pair[1]));
            }
        }
    }
    assert!(questions > 200, "{questions}");
    assert!(unqualified.is_empty(), "{}", unqualified.join("\n"));
}

/// Adds all paths below a directory, relative to the root; those of directories end with a slash.
fn paths(root: &Path, directory: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => {
                found.push(format!("{path}/"));
                paths(root, &format!("{path}/"), found);
            }
            false => found.push(path),
        }
    }
}

#[test]
fn paths_in_the_guides_for_contributors_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut existing = Vec::new();
    for directory in [
        "crates/",
        "tests/",
        "scripts/",
        "migrations/",
        "config/",
        "docs/",
    ] {
        existing.push(directory.to_owned());
        paths(&root, directory, &mut existing);
    }
    let mut missing = Vec::new();
    for guide in [
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "crates/spcd-core/src/lib.rs",
    ] {
        let text = std::fs::read_to_string(root.join(guide)).unwrap();
        // Every second part is between backticks.
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = [".rs", ".sql", ".sh", ".spc", "/"]
                .iter()
                .any(|end| word.len() > end.len() && word.ends_with(end));
            let is_plain = word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
            let is_there = |path: &String| *path == word || path.ends_with(&format!("/{word}"));
            if is_path && is_plain && !word.starts_with('.') && !existing.iter().any(is_there) {
                missing.push(format!("{guide}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
