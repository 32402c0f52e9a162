//! Builds the target of a connection from its settings and its plugin's definition.

mod verbatim;

use std::collections::BTreeMap;

use super::path::{is_local_path, resolve, resolve_unless_url};
use super::words::{self, AttributeValues};
use super::{PluginDefinition, files, parameter_names, shipped_definitions, visible_secrets};
use crate::conninfo;
use crate::csv::CsvSettings;
use crate::csv::Encoding;
use crate::diff::FETCH_SIZE;
use crate::model::{ForeignSource, Import, OptionValue, Ssh, Tunnel};
use crate::secret::Secret;
use spcd_lang::nearest::nearest;
use spcd_lang::settings::{Setting, Settings};
use spcd_lang::syntax::{Problem, Span};
use spcd_lang::value::Value;

/// Attributes that spcd itself reads in a connection; they are no part of the plugin's
/// configuration.
pub(crate) const OWN_ATTRIBUTES: [&str; 7] = [
    "plugin",
    "type",
    "connections",
    "import_schema",
    "import",
    "gateway",
    "allow_visible_secrets",
];

/// Blocks that spcd itself reads.
pub(crate) const OWN_BLOCKS: [&str; 5] = ["import", "labels", "health", "ssh", "options"];

/// Connection whose target is built.
pub(crate) struct ConnectionContext<'a> {
    /// File that holds the block.
    pub(crate) file: &'a str,
    /// Plugin as written.
    pub(crate) plugin: &'a str,
    /// Span to mark if something is missing.
    pub(crate) span: Span,
    /// Ssh server for the tunnel, with the span of its block.
    pub(crate) ssh: Option<(Ssh, Span)>,
    /// Whether there is a gateway.
    pub(crate) has_gateway: bool,
    /// Whether all of the block could be parsed: an absent attribute was not written.
    pub(crate) whole: bool,
}

/// Builds the target; adds problems to `problems`.
pub(crate) fn build_target(
    settings: &Settings,
    definition: &PluginDefinition,
    import: Import,
    context: &ConnectionContext<'_>,
    problems: &mut Vec<Problem>,
) -> ForeignSource {
    let mut builder = Builder {
        definition,
        context,
        problems,
        target: ForeignSource::default(),
        attribute_of: BTreeMap::new(),
        attribute_values: AttributeValues::default(),
    };
    let before = builder.problems.len();
    builder.target = ForeignSource {
        extension: definition.extension.clone(),
        requires: definition.requires.clone(),
        package: definition.package.clone(),
        wrapper: definition.wrapper.clone(),
        ask_options: definition.ask_options.clone(),
        import_options: definition.import_options.clone(),
        dynamic: definition.dynamic,
        probe: definition.probe,
        positional: definition.positional,
        table_name_option: definition.table_name.clone(),
        column_name_option: definition.column_name.clone(),
        lanes: definition.lanes,
        has_tuned_wrapper: definition.wrapper == "postgres_fdw" && !definition.verbatim,
        import: Import {
            unknown_types: import.unknown_types.or(definition.unknown_types),
            ..import
        },
        ..ForeignSource::default()
    };
    let gateway = settings.boolean("gateway", builder.problems);
    builder.target.in_gateway = context.has_gateway && gateway.unwrap_or(definition.gateway);
    builder.required(settings);
    match &definition.body {
        Some(option) => builder.body(settings, option),
        None => builder.settings(settings),
    }
    let whole = settings.without_value.is_empty();
    if definition.body.is_none() && whole && builder.problems.len() == before {
        builder.plain_words();
    }
    builder.defaults();
    if let Some((ssh, span)) = &context.ssh {
        builder.tunnel(ssh, *span);
    }
    builder.target
}

struct Builder<'a, 'p> {
    definition: &'a PluginDefinition,
    context: &'a ConnectionContext<'a>,
    problems: &'p mut Vec<Problem>,
    target: ForeignSource,
    /// Attribute that set each option.
    attribute_of: BTreeMap<String, String>,
    /// Given attributes with their spans.
    attribute_values: AttributeValues,
}

impl Builder<'_, '_> {
    fn problem(&mut self, span: Span, message: impl Into<String>, hint: Option<String>) {
        self.problems.push(Problem {
            span,
            message: message.into(),
            hint,
        });
    }

    fn required(&mut self, settings: &Settings) {
        let mut required: Vec<&str> = self
            .definition
            .required
            .iter()
            .map(String::as_str)
            .collect();
        if self.definition.verbatim {
            required.push("wrapper");
        }
        for name in required {
            let named_by_import = self.definition.schema_attribute.as_deref() == Some(name)
                && !self.target.import.schema.is_empty();
            if !settings.was_written(name) && !named_by_import {
                let message = format!("`{}` needs the attribute `{name}`", self.context.plugin);
                self.problem(
                    self.context.span,
                    message,
                    Some(format!("write `{name} = \"…\"`")),
                );
            }
        }
    }

    fn settings(&mut self, settings: &Settings) {
        for setting in &settings.list {
            self.setting(setting);
        }
        let definition = self.definition;
        for broken in &settings.without_value {
            if !definition.accepts(broken) && !OWN_ATTRIBUTES.contains(&&**broken) {
                let message = match OWN_BLOCKS.contains(&&**broken) {
                    true => format!("`{broken}` is a block"),
                    false => format!("`{}` has no attribute `{broken}`", self.context.plugin),
                };
                self.problem(self.context.span, message, None);
            }
        }
        for section in &settings.blocks {
            if OWN_BLOCKS.contains(&&*section.kind) {
                continue;
            }
            if self.definition.verbatim && matches!(&*section.kind, "server" | "mapping") {
                self.verbatim_section(section);
                continue;
            }
            let message = format!("`{}` has no block `{}`", self.context.plugin, section.kind);
            let hint = definition
                .accepts(&section.kind)
                .then(|| format!("write `{} = …`", section.kind));
            self.problem(section.span, message, hint);
        }
    }

    fn setting(&mut self, setting: &Setting) {
        let definition = self.definition;
        let name = &*setting.name;
        if OWN_ATTRIBUTES.contains(&name) {
            return;
        }
        if !definition.accepts(name) {
            if matches!(name, "labels" | "health") {
                let hint = format!("write `{name} {{ … }}` without `=`");
                return self.problem(setting.span, format!("`{name}` is a block"), Some(hint));
            }
            let message = format!("`{}` has no attribute `{name}`", self.context.plugin);
            let near = definition.nearest_attribute(name, &["plugin", "import_schema", "import"]);
            let hint = match name {
                "disable" | "disabled" | "enable" | "enabled" => {
                    Some("write `import_schema = \"disabled\"` to disable the connection".into())
                }
                _ => near.map(|near| format!("did you mean `{near}`?")),
            };
            return self.problem(setting.span, message, hint);
        }
        if setting.value == Value::Null {
            return;
        }
        if definition.verbatim {
            return self.verbatim(setting);
        }
        if definition.files.contains(name) {
            return self.file_setting(setting);
        }
        let Some(mut text) = setting.text(self.problems) else {
            return;
        };
        if definition.connection_string.as_deref() == Some(name) {
            return self.connection_string(setting, &text);
        }
        if let Some(way_out) = definition.lacks.get(name) {
            let message = format!(
                "the wrapper `{}` has no option for `{name}`",
                definition.wrapper
            );
            return self.problem(setting.span, message, Some(way_out.clone()));
        }
        if definition.schema_attribute.as_deref() == Some(name) {
            if self.target.import.schema.is_empty() {
                self.target.import.schema.clone_from(&text);
            } else if self.target.import.schema != text {
                let message = format!("`{name}` and `import` name two remote schemas");
                self.problem(
                    setting.span,
                    message,
                    Some("keep one of the two".to_owned()),
                );
            }
            if !definition.server.contains_key(name) {
                return;
            }
        }
        if definition.paths.contains(name) {
            text = resolve_unless_url(self.context.file, &text);
        }
        self.option(name, text, setting.value_span);
    }

    /// Sets the option of the server or the user mapping for an attribute.
    fn option(&mut self, name: &str, mut text: String, span: Span) {
        if let Some(kind) = self.definition.values.get(name) {
            match words::parse_value(kind, name, &text) {
                Ok(value) => text = value,
                Err((message, hint)) => return self.problem(span, message, Some(hint)),
            }
        }
        if self.definition.words.contains_key(name) {
            if self.attribute_values.insert(name, text, span).is_some() {
                let message = format!("`{name}` is given twice");
                self.problem(span, message, Some("keep one of the two".to_owned()));
            }
            return;
        }
        self.attribute_values.insert(name, text.clone(), span);
        let (option, secret) = match (
            self.definition.server.get(name),
            self.definition.mapping.get(name),
        ) {
            (Some(option), _) => (option, false),
            (None, Some(option)) => (option, true),
            (None, None) => {
                let message = format!("`{}` has no parameter `{name}`", self.context.plugin);
                let hint = (self.definition.nearest_attribute(name, &[]))
                    .map(|near| format!("did you mean `{near}`?"));
                return self.problem(span, message, hint);
            }
        };
        if let Some(since) = self.definition.since.get(name) {
            self.target.since.insert(name.to_owned(), since.clone());
        }
        if let Some(before) = self.attribute_of.insert(option.clone(), name.to_owned()) {
            let message = if before == name {
                format!("`{name}` is given twice: by itself and in the connection string")
            } else {
                format!("`{before}` and `{name}` mean the same")
            };
            return self.problem(span, message, Some("keep one of the two".to_owned()));
        }
        if secret {
            self.target
                .mapping
                .insert(option.clone(), Secret::new(text));
        } else {
            let path = self.definition.paths.contains(name) && is_local_path(&text);
            let public = path || self.definition.is_public(name);
            self.target.server.insert(
                option.clone(),
                OptionValue {
                    value: text,
                    public,
                },
            );
        }
    }

    fn connection_string(&mut self, setting: &Setting, text: &str) {
        match conninfo::parse(text) {
            Ok(parameters) => {
                for (name, value) in parameters {
                    if value.is_empty() {
                        continue;
                    }
                    if value.contains('\0') {
                        let message =
                            "the connection string holds a NUL, which Postgres cannot store";
                        self.problem(setting.value_span, message, None);
                        continue;
                    }
                    self.parameter(&name, value, setting.value_span);
                }
            }
            Err(bad) => {
                let hint = "write `\"host=… dbname=… user=… password=…\"` or `\"postgresql://…\"`";
                self.problem(setting.value_span, bad.to_string(), Some(hint.to_owned()));
            }
        }
    }

    /// Sets the option for a parameter of a connection string. In a broken string a name may
    /// contain a secret, so an unknown name is not shown.
    fn parameter(&mut self, name: &str, value: String, span: Span) {
        if self.definition.server.contains_key(name) || self.definition.mapping.contains_key(name) {
            return self.option(name, value, span);
        }
        let message = match parameter_names::is_public(name) {
            true => format!("the wrapper does not know the connection string's parameter `{name}`"),
            false => {
                "the connection string has a parameter that the wrapper does not know".to_owned()
            }
        };
        let known = self
            .definition
            .server
            .keys()
            .chain(self.definition.mapping.keys());
        let synonym = self.definition.synonyms.get(name).map(String::as_str);
        let near = synonym.or_else(|| nearest(name, known.map(String::as_str)));
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "leave it out".to_owned(),
        };
        self.problem(span, message, Some(hint));
    }

    fn file_setting(&mut self, setting: &Setting) {
        let csv = self.target.csv.get_or_insert_with(CsvSettings::default);
        let texts = match &setting.value {
            Value::List(values) => values
                .iter()
                .map(Value::as_text)
                .collect::<Option<Vec<_>>>(),
            other => other.as_text().map(|text| vec![text]),
        };
        let Some(texts) = texts else {
            let message = format!(
                "expected text for `{}`, found {}",
                setting.name,
                setting.value.kind()
            );
            return self.problem(setting.value_span, message, None);
        };
        let first = texts.first().cloned().unwrap_or_default();
        if &*setting.name == "paths" {
            csv.paths = texts
                .iter()
                .map(|path| resolve(self.context.file, path))
                .collect();
            if let Some((message, hint)) = files::invalid_paths(&texts) {
                self.problem(setting.value_span, message, Some(hint.to_owned()));
            }
            return;
        }
        let wrong = match &*setting.name {
            "header" => match first.as_str() {
                "auto" | "" => None,
                "on" | "true" => {
                    csv.header = Some(true);
                    None
                }
                "off" | "false" => {
                    csv.header = Some(false);
                    None
                }
                _ => Some("write `header = \"auto\"`, `\"on\"` or `\"off\"`"),
            },
            "encoding" => match Encoding::from_name(&first) {
                Some(encoding) => {
                    csv.encoding = encoding;
                    None
                }
                None => Some(
                    "write `\"utf8\"`, `\"latin1\"`, `\"win1252\"` or another of the server's names",
                ),
            },
            // COPY refuses these characters.
            "null" if first.contains(['"', '\n', '\r', '\0']) => {
                Some("write a text without quotes and on one line")
            }
            "null" => {
                csv.null = Some(first);
                None
            }
            name => match <[u8; 1]>::try_from(first.as_bytes()) {
                // COPY gives these characters another meaning.
                Ok([b'"' | b'\n' | b'\r' | 0]) => {
                    Some("write a character that is neither a quote nor the end of a line")
                }
                Ok([byte]) if byte.is_ascii() && name == "separator" => {
                    csv.separator = Some(char::from(byte));
                    None
                }
                Ok([byte]) if byte.is_ascii() => {
                    csv.comment = Some(char::from(byte));
                    None
                }
                _ => Some("write one ASCII character in quotes (a tab is `\"\\t\"`)"),
            },
        };
        if let Some(hint) = wrong {
            let message = format!("this is not a value for `{}`", setting.name);
            self.problem(setting.value_span, message, Some(hint.to_owned()));
        }
    }

    /// Sets one option to the whole body, which every role can read.
    fn body(&mut self, settings: &Settings, option: &str) {
        let own = |name: &str, block: bool| match block {
            true => OWN_BLOCKS.contains(&name),
            false => OWN_ATTRIBUTES.contains(&name),
        };
        let mut new_problems = Vec::new();
        let allowed = settings.boolean("allow_visible_secrets", &mut new_problems);
        self.problems.append(&mut new_problems);
        let secret = visible_secrets::first_secret(settings, self.definition, &own);
        let is_allowed =
            self.target.in_gateway || allowed.unwrap_or(self.definition.allow_visible_secrets);
        if let (Some((name, span)), false) = (secret, is_allowed) {
            let message = format!(
                "`{name}` looks like a secret, and every role of the database could read it: the extension \
                 `{}` takes its configuration as an option of the server",
                self.definition.extension
            );
            // Shorter names are too similar to those of other plugins: `oci` to `ogr`.
            let long = shipped_definitions()
                .keys()
                .filter(|label| label.len() >= 5);
            let hint = match nearest(self.context.plugin, long.map(String::as_str)) {
                Some(near) => format!("did you mean `plugin = \"{near}\"`?"),
                None => {
                    "turn on the gateway, which hides it (`gateway = \"private\"` in spcd.hcl), \
                         leave the secret to the plugin's own files or environment, or write \
                         `allow_visible_secrets = true` if that is acceptable"
                        .to_owned()
                }
            };
            self.problem(span, message, Some(hint));
        }
        let mut text = String::new();
        settings.write_hcl(&mut text, 0, &own);
        if !text.is_empty() {
            self.target.server.insert(
                option.to_owned(),
                OptionValue {
                    value: text,
                    public: false,
                },
            );
        }
    }

    /// Adds a tunnel: the server's options name its local end.
    fn tunnel(&mut self, ssh: &Ssh, span: Span) {
        let option = |name: &str| {
            self.definition
                .tunnel
                .get(name)
                .cloned()
                .unwrap_or_default()
        };
        let (address, host, port) = (option("address"), option("host"), option("port"));
        if address.is_empty() || port.is_empty() {
            let message = format!("`{}` cannot be reached through ssh", self.context.plugin);
            return self.problem(span, message, Some("remove the block".to_owned()));
        }
        let given = |option: &str| {
            let value = self
                .target
                .server
                .get(option)
                .map(|value| value.value.trim());
            value.filter(|value| !value.is_empty())
        };
        let to_host = given(&address)
            .or_else(|| given(&host))
            .unwrap_or("127.0.0.1");
        let to_port = given(&port).map_or_else(|| option("default_port"), str::to_owned);
        let Some(to_port) = to_port
            .parse()
            .ok()
            .filter(|_| !to_host.contains(['/', ',', ' ']))
        else {
            let message = "a tunnel leads to one host and one port";
            let hint = "write the `host` and `port` that the ssh server is to connect to";
            return self.problem(span, message, Some(hint.to_owned()));
        };
        let tunnel = Tunnel {
            ssh: ssh.clone(),
            host: to_host.to_owned(),
            port: to_port,
            port_option: port.clone(),
        };
        let here = [
            (address, "127.0.0.1".to_owned()),
            (port, tunnel.default_port(0).to_string()),
        ];
        for (option, value) in here {
            let public = true;
            self.target
                .server
                .insert(option, OptionValue { value, public });
        }
        self.target.tunnel = Some(tunnel);
    }

    /// Expands attributes to options, and reports missing ones.
    fn plain_words(&mut self) {
        let options = match self
            .attribute_values
            .options(self.definition, &self.target.server)
        {
            Ok(options) => options,
            Err((span, message, hint)) => return self.problem(span, message, Some(hint)),
        };
        for (option, (value, alone)) in options {
            let public = alone && self.target.server.get(&option).is_none_or(|own| own.public);
            let value = OptionValue { value, public };
            self.target.server.insert(option, value);
        }
        if self.context.ssh.is_some() {
            // The source may be on the ssh server itself.
            self.attribute_values
                .insert_if_missing(self.definition.tunnel.get("host"));
        }
        if !self.context.whole {
            return;
        }
        if let Some((span, message, hint)) = self.attribute_values.missing(self.definition) {
            self.problem(span, message, Some(hint));
        }
    }

    /// Refuses the number of rows of a fetch where it is no option of the tables.
    fn fetch_size(&mut self) {
        if self.target.import.fetch_size.is_some() && !self.target.has_tuned_wrapper {
            let message = format!(
                "`import {{ fetch_size = … }}` is for Postgres sources, not for `{}`",
                self.context.plugin
            );
            let hint = match self.definition.server.contains_key(FETCH_SIZE) {
                true => "write `fetch_size = …` outside of the block `import`",
                false => "remove it",
            };
            self.problem(self.context.span, message, Some(hint.to_owned()));
        }
    }

    fn defaults(&mut self) {
        self.fetch_size();
        for (option, value) in &self.definition.defaults {
            if !self.target.server.contains_key(option) {
                let public = self.definition.is_public(option);
                let value = OptionValue {
                    value: value.clone(),
                    public,
                };
                self.target.server.insert(option.clone(), value);
                self.target.default_options.insert(option.clone());
            }
        }
        if self.target.import.schema.is_empty() {
            self.target
                .import
                .schema
                .clone_from(&self.definition.schema);
        }
        // A wrapper without schemas ignores it, but the statement must name one.
        if self.target.import.schema.is_empty() {
            self.target.import.schema = "public".to_owned();
        }
        for option in self.target.server.keys() {
            self.target.ask_options.remove(option);
        }
    }
}
