//! The connections that mirrors add to the desired state.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{MirrorProblem, MirrorView, SourceConnection, SourceState};
use crate::config::{Diagnostic, Severity, invalid_name};
use crate::hash::Hasher;
use crate::health::ProbeOptions;
use crate::model::{
    Connection, ConnectionKind, DesiredState, ForeignSource, Import, LANE_OPTIONS, Lane,
    LaneServer, Mirror, MirrorOrigin, OptionValue, ProbeMethod, TargetHash, UnknownInput,
};
use crate::pattern::Pattern;
use crate::planner::LANE_WRAPPER;
use crate::secret::Secret;
use spcd_lang::syntax::Span;

/// Last known states of the sources, by mirror.
pub type MirrorViews = BTreeMap<String, Arc<MirrorView>>;

/// Maximum number of diagnostics of one mirror; the rest is counted.
const MAX_DIAGNOSTICS: usize = 20;

/// Adds the mirrored connections. Rebuilds one only if its block or its state at the source differs.
#[derive(Debug, Default)]
pub struct MirrorParts {
    parts: BTreeMap<String, MirrorPart>,
}

/// Connections of one mirror, and the inputs from which they were built.
#[derive(Debug)]
struct MirrorPart {
    mirror: Mirror,
    view: Arc<MirrorView>,
    /// By their names at the source.
    connections: BTreeMap<String, Arc<Connection>>,
}

/// Names of the files' connections, and of the mirrored ones that have been added so far.
struct KnownNames<'a> {
    desired: &'a mut DesiredState,
    /// Mirror of each mirrored name.
    mirrored: BTreeMap<String, String>,
}

impl MirrorParts {
    /// Adds the connections of all mirrors. Returns diagnostics about those that are left out.
    pub fn apply(&mut self, desired: &mut DesiredState, views: &MirrorViews) -> Vec<Diagnostic> {
        let mut before = std::mem::take(&mut self.parts);
        let mirrors = std::mem::take(&mut desired.mirrors);
        let mut diagnostics = Vec::new();
        let mut names = KnownNames {
            desired,
            mirrored: BTreeMap::new(),
        };
        for (name, mirror) in &mirrors {
            let view = views.get(name).cloned().unwrap_or_default();
            let target = match &mirror.target {
                // The patterns of a block with an error are not known, so its connections stay.
                Err(error) => {
                    names
                        .desired
                        .unknown_inputs
                        .push(unknown(mirror, Some(error)));
                    continue;
                }
                Ok(target) => target,
            };
            if view.kind.is_none() {
                names.desired.unknown_inputs.push(unknown(mirror, None));
            }
            let server = server_of(mirror, target);
            names.desired.lane_servers.insert(mirror.server(), server);
            let part = MirrorPart::of(mirror, target, view, before.remove(name));
            diagnostics.extend(part.problems(&mut names));
            self.parts.insert(name.clone(), part);
        }
        desired.mirrors = mirrors;
        diagnostics
    }
}

impl MirrorPart {
    fn of(
        mirror: &Mirror,
        target: &ForeignSource,
        view: Arc<MirrorView>,
        before: Option<Self>,
    ) -> Self {
        let before = before.filter(|before| before.mirror == *mirror);
        let is_same_source = before.as_ref().is_some_and(|before| {
            before.view.extensions == view.extensions && before.view.kind == view.kind
        });
        let way = way_hash(target);
        let selection = Selection::of(mirror);
        let shapes = shared_shapes(&view);
        let mut kept = before.map(|before| (before.connections, before.view));
        let connection = |(name, row): (&String, &Arc<SourceConnection>)| {
            if row.is_mirrored && !mirror.is_transitive || !selection.selects(name) {
                return None;
            }
            let same = kept.as_mut().filter(|_| is_same_source);
            let same = same.and_then(|(connections, view)| {
                let is_same = view.connections.get(name) == Some(row);
                connections.remove(name).filter(|_| is_same)
            });
            let made = || {
                let mut made = connection_of(mirror, target, &view, &way, name, row);
                if let (Ok(target), Some(shape)) = (&mut made.target, &row.shape) {
                    target.shared_shape = shapes.get(shape.as_str()).cloned();
                }
                Arc::new(made)
            };
            Some((name.clone(), same.unwrap_or_else(made)))
        };
        let connections = view.connections.iter().filter_map(connection).collect();
        Self {
            mirror: mirror.clone(),
            view,
            connections,
        }
    }

    /// Adds the connections to the desired state. Returns diagnostics about connections that are left
    /// out and about the source.
    fn problems(&self, names: &mut KnownNames<'_>) -> Vec<Diagnostic> {
        let mut problems: Vec<(String, &str)> = Vec::new();
        let mut folded: HashMap<String, &str> = HashMap::with_capacity(self.connections.len());
        for (there, connection) in &self.connections {
            if let Some(other) = folded.insert(connection.name.to_lowercase(), &connection.name) {
                let message = format!("{other:?} and {:?} differ only in case", connection.name);
                problems.push((message, "write both names in double quotes in SQL"));
            }
            problems.extend(names.add(&self.mirror, there, connection));
        }
        let more = problems.len().saturating_sub(MAX_DIAGNOSTICS);
        problems.truncate(MAX_DIAGNOSTICS);
        if more > 0 {
            problems.push((
                format!("and {more} more connections"),
                "write `exclude` or `prefix`",
            ));
        }
        let of_source = self.view.problem.as_ref().map(|problem| match problem {
            MirrorProblem::Unreachable(text) => {
                let text = format!("its source cannot be followed: {text}");
                (Severity::Warning, text, "its connections stay as they are")
            }
            MirrorProblem::Refused(text) => (
                Severity::Error,
                text.clone(),
                "its connections stay as they are",
            ),
        });
        let warnings = problems.into_iter();
        let warnings = warnings.map(|(text, hint)| (Severity::Warning, text, hint));
        of_source
            .into_iter()
            .chain(warnings)
            .map(|(severity, text, hint)| self.diagnostic(severity, &text, hint))
            .collect()
    }

    fn diagnostic(&self, severity: Severity, text: &str, hint: &str) -> Diagnostic {
        Diagnostic {
            severity,
            file: self.mirror.file.clone(),
            line: self.mirror.start_line,
            column: 1,
            span: 0..0,
            message: format!("mirror {:?}: {text}", self.mirror.name),
            hint: Some(hint.to_owned()),
            connection: None,
        }
    }
}

impl KnownNames<'_> {
    /// Adds a connection. If that is impossible, returns the reason and a hint.
    fn add(
        &mut self,
        mirror: &Mirror,
        there: &str,
        connection: &Arc<Connection>,
    ) -> Option<(String, &'static str)> {
        let name = &connection.name;
        if let Some(problem) = invalid_name(name, Span::default()) {
            let message = format!("its connection {there:?} is left out: {}", problem.message);
            return Some((message, "write `prefix = \"…\"`, or add it to `exclude`"));
        }
        let hint = "write `prefix = \"…\"` for one of them, or add it to `exclude`";
        if let Some(other) = self.mirrored.get(name) {
            let message = format!(
                "its connection {there:?} is left out: the mirror {other:?} has one named {name:?}"
            );
            return Some((message, hint));
        }
        if let Some(own) = self.desired.connections.get(name) {
            let message = format!(
                "its connection {there:?} is left out: the block `connection {name:?}` at {}:{} has \
                 this name",
                own.file, own.start_line
            );
            return Some((message, hint));
        }
        self.mirrored.insert(name.clone(), mirror.name.clone());
        let connections = &mut self.desired.connections;
        connections.insert(name.clone(), connection.clone());
        None
    }
}

/// Patterns of a mirror.
struct Selection {
    connections: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Selection {
    fn of(mirror: &Mirror) -> Self {
        // The block reports invalid patterns.
        let patterns = |texts: &[String]| {
            let patterns = texts.iter().filter_map(|text| Pattern::new(text).ok());
            patterns.collect()
        };
        Self {
            connections: patterns(&mirror.connections),
            exclude: patterns(&mirror.exclude),
        }
    }

    fn selects(&self, name: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name));
        any(&self.connections) && !any(&self.exclude)
    }
}

/// Returns the shapes that several connections share, so that one import serves all of them. The
/// source's extensions are part of a shape, since they decide the columns' types.
fn shared_shapes(view: &MirrorView) -> HashMap<&str, String> {
    let mut counts: HashMap<&str, usize> = HashMap::with_capacity(view.connections.len());
    for shape in view
        .connections
        .values()
        .filter_map(|one| one.shape.as_deref())
    {
        *counts.entry(shape).or_default() += 1;
    }
    let key = |shape: &str| {
        let mut hasher = Hasher::default();
        hasher.put(shape);
        view.extensions
            .iter()
            .for_each(|extension| hasher.put(extension));
        hasher.finish()
    };
    let shared = counts.into_iter().filter(|(_, count)| *count > 1);
    shared.map(|(shape, _)| (shape, key(shape))).collect()
}

/// Returns the unknown input that keeps the connections of a mirror.
fn unknown(mirror: &Mirror, error: Option<&String>) -> UnknownInput {
    UnknownInput {
        path: mirror.file.clone(),
        is_directory: false,
        error: error.cloned(),
        mirror: Some(mirror.name.clone()),
    }
}

fn connection_of(
    mirror: &Mirror,
    target: &ForeignSource,
    view: &MirrorView,
    way: &str,
    name: &str,
    row: &SourceConnection,
) -> Connection {
    let target = match &row.state {
        SourceState::Error(error) => Err(error.clone()),
        _ => Ok(target_of(mirror, target, view, name)),
    };
    let mut labels = row.labels.clone();
    labels.extend(mirror.labels.clone());
    Connection {
        name: format!("{}{name}", mirror.prefix),
        plugin: row.plugin.clone(),
        plugin_instance: mirror.name.clone(),
        kind: ConnectionKind::Plugin,
        enabled: row.state != SourceState::Disabled,
        file: mirror.file.clone(),
        start_line: mirror.start_line,
        end_line: mirror.end_line,
        target,
        warnings: match row.state {
            SourceState::Disabled => vec![format!("disabled at the source of {:?}", mirror.name)],
            _ => Vec::new(),
        },
        labels,
        health: ProbeOptions::default(),
        in_gateway: false,
        awaits_source: row.state == SourceState::AtWork,
        gateway: None,
        left_out: Vec::new(),
        mirror: Some(MirrorOrigin {
            mirror: mirror.name.clone(),
            kind: row.kind.clone(),
            connections: row.connections.clone(),
            stamp: match &row.state {
                SourceState::Ready(stamp) => Some(format!("{stamp} {way}")),
                _ => None,
            },
        }),
        hash: TargetHash::default(),
    }
}

/// Returns the target of a mirrored connection: its tables at the source.
fn target_of(
    mirror: &Mirror,
    target: &ForeignSource,
    view: &MirrorView,
    name: &str,
) -> ForeignSource {
    let mut source = ForeignSource {
        extension: LANE_WRAPPER.to_owned(),
        requires: view.extensions.clone(),
        package: target.package.clone(),
        wrapper: LANE_WRAPPER.to_owned(),
        server: target.server.clone(),
        mapping: target.mapping.clone(),
        ask_options: [("keep_connections".to_owned(), "off".to_owned())].into(),
        import: Import {
            schema: name.to_owned(),
            // Its tables are compared when its stamp changes.
            refresh_interval: Some(0),
            ..Import::default()
        },
        since: target.since.clone(),
        dynamic: true,
        table_name_option: target.table_name_option.clone(),
        column_name_option: target.column_name_option.clone(),
        probe: ProbeMethod::None,
        lane: Some(Lane {
            group: mirror.server(),
            number: None,
        }),
        follows: view.kind,
        ..ForeignSource::default()
    };
    for (option, value) in LANE_OPTIONS {
        let value = || OptionValue {
            value: value.to_owned(),
            public: true,
        };
        source.server.entry(option.to_owned()).or_insert_with(value);
    }
    source
}

/// Returns the server and the mapping that all tables of a mirror use.
fn server_of(mirror: &Mirror, target: &ForeignSource) -> LaneServer {
    let source = target_of(mirror, target, &MirrorView::default(), "");
    LaneServer {
        options: source.server_options(),
        mapping: source.mapping,
    }
}

/// Returns a hash of the address and credentials of the source. When it changes, the tables are
/// compared again.
fn way_hash(target: &ForeignSource) -> String {
    let mut hasher = Hasher::default();
    for (name, value) in target.server_options() {
        hasher.put(&name);
        hasher.put(&value);
    }
    for (name, value) in &target.mapping {
        hasher.put(name);
        hasher.put(Secret::expose(value));
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceFile, load_plain};
    use crate::mirror::SourceKind;

    fn desired(text: &str) -> DesiredState {
        load_plain(&[SourceFile {
            path: "a.spc".into(),
            text: Ok(text.into()),
        }])
    }

    fn mirror(name: &str, more: &str) -> String {
        format!("mirror \"{name}\" {{\n  source = \"postgresql://u:p@h:1/d\"\n{more}\n}}\n")
    }

    fn row() -> SourceConnection {
        SourceConnection {
            state: SourceState::Ready("1".into()),
            ..SourceConnection::default()
        }
    }

    fn view(rows: &[(&str, SourceConnection)]) -> Arc<MirrorView> {
        let rows = rows.iter();
        let rows = rows.map(|(name, row)| ((*name).to_owned(), Arc::new(row.clone())));
        Arc::new(MirrorView {
            kind: Some(SourceKind::Spcd),
            connections: rows.collect(),
            ..MirrorView::default()
        })
    }

    fn views(all: &[(&str, &Arc<MirrorView>)]) -> MirrorViews {
        all.iter()
            .map(|(name, view)| ((*name).to_owned(), (*view).clone()))
            .collect()
    }

    fn names(desired: &DesiredState) -> Vec<&str> {
        desired.connections.keys().map(String::as_str).collect()
    }

    #[test]
    fn patterns_choose_and_what_is_mirrored_there_is_not_offered_further() {
        let there = SourceConnection {
            is_mirrored: true,
            ..row()
        };
        let view = view(&[
            ("aws_1", row()),
            ("aws_test", row()),
            ("gcp", row()),
            ("far", there),
        ]);
        for (more, expected) in [
            ("", vec!["aws_1", "aws_test", "gcp"]),
            (
                "  exclude = [\"*_test\"]\n  connections = [\"aws_*\"]",
                vec!["aws_1"],
            ),
            (
                "  transitive = true\n  prefix = \"x\"",
                vec!["xaws_1", "xaws_test", "xfar", "xgcp"],
            ),
        ] {
            let mut desired = desired(&mirror("m", more));
            let found = MirrorParts::default().apply(&mut desired, &views(&[("m", &view)]));
            assert_eq!((names(&desired), found), (expected, vec![]), "{more}");
        }
    }

    #[test]
    fn a_name_that_is_taken_or_refused_is_left_out_and_named() {
        let own = "connection \"own\" {\n  plugin = \"postgres\"\n}\n".to_owned();
        let text = own + &mirror("m", "") + &mirror("n", "");
        let mut desired = desired(&text);
        let first = view(&[("own", row()), ("pg_x", row()), ("a", row()), ("A", row())]);
        let second = view(&[("a", row())]);
        let all = views(&[("m", &first), ("n", &second)]);
        let found = MirrorParts::default().apply(&mut desired, &all);
        assert_eq!(names(&desired), ["A", "a", "own"]);
        assert!(desired.connections["own"].mirror.is_none());
        let messages: Vec<&str> = found.iter().map(|one| one.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "mirror \"m\": \"A\" and \"a\" differ only in case",
                "mirror \"m\": its connection \"own\" is left out: the block `connection \"own\"` at \
                 a.spc:1 has this name",
                "mirror \"m\": its connection \"pg_x\" is left out: names that begin with `pg_` are \
                 Postgres's own",
                "mirror \"n\": its connection \"a\" is left out: the mirror \"m\" has one named \"a\"",
            ]
        );
    }

    #[test]
    fn a_connection_is_made_anew_only_where_something_differs() {
        let mut parts = MirrorParts::default();
        let mut apply = |more: &str, view: &Arc<MirrorView>| {
            let mut desired = desired(&mirror("m", more));
            parts.apply(&mut desired, &views(&[("m", view)]));
            desired.connections["a"].clone()
        };
        let first = apply("", &view(&[("a", row())]));
        // Another connection of the source is another view.
        let same = apply("", &view(&[("a", row()), ("b", row())]));
        assert!(Arc::ptr_eq(&first, &same));
        let changed = SourceConnection {
            state: SourceState::Ready("2".into()),
            ..row()
        };
        let changed = apply("", &view(&[("a", changed)]));
        assert_ne!(first.mirror, changed.mirror);
        assert_eq!(first.target_hash(), changed.target_hash());
    }

    #[test]
    fn another_way_to_the_source_compares_the_tables_and_does_not_make_them_anew() {
        let stamps = ["p", "q"].map(|password| {
            let text = mirror("m", "").replace("u:p@", &format!("u:{password}@"));
            let mut desired = desired(&text);
            let view = view(&[("a", row())]);
            MirrorParts::default().apply(&mut desired, &views(&[("m", &view)]));
            let one = desired.connections["a"].clone();
            let stamp = one.mirror.as_ref().and_then(|origin| origin.stamp.clone());
            (one.target_hash().to_owned(), stamp)
        });
        assert_eq!(stamps[0].0, stamps[1].0);
        assert_ne!(stamps[0].1, stamps[1].1);
    }

    #[test]
    fn connections_of_one_shape_are_asked_for_once() {
        let of_shape = |shape: &str| SourceConnection {
            shape: Some(shape.to_owned()),
            ..row()
        };
        let view = view(&[
            ("a", of_shape("s")),
            ("b", of_shape("s")),
            ("c", of_shape("t")),
        ]);
        let mut desired = desired(&mirror("m", ""));
        MirrorParts::default().apply(&mut desired, &views(&[("m", &view)]));
        let shape = |name: &str| {
            let target = desired.connections[name].target.as_ref().unwrap();
            target.shared_shape.clone()
        };
        assert!(shape("a").is_some());
        assert_eq!(shape("a"), shape("b"));
        assert_eq!(shape("c"), None);
    }

    #[test]
    fn ten_thousand_connections_have_few_diagnostics() {
        let rows: Vec<(String, SourceConnection)> =
            (0..10_000).map(|n| (format!("spcd_{n}"), row())).collect();
        let rows: Vec<(&str, SourceConnection)> = rows
            .iter()
            .map(|(name, row)| (name.as_str(), row.clone()))
            .collect();
        let mut desired = desired(&mirror("m", ""));
        let view = view(&rows);
        let found = MirrorParts::default().apply(&mut desired, &views(&[("m", &view)]));
        assert_eq!(
            (names(&desired).len(), found.len()),
            (0, MAX_DIAGNOSTICS + 1)
        );
        assert!(
            found
                .last()
                .unwrap()
                .message
                .contains("and 9980 more connections")
        );
    }
}
