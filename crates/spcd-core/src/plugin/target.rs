//! A connection's settings through a definition: what it becomes in Postgres.

mod verbatim;

use std::collections::BTreeMap;

use super::path::{absolute, below, is_plain};
use super::words::{self, Words};
use super::{Definition, files, libpq, shipped};
use crate::csv::Csv;
use crate::csv::Encoding;
use crate::model::{Import, OptionValue, Ssh, Target, Tunnel};
use crate::secret::Secret;
use spcd_lang::nearest::nearest;
use spcd_lang::settings::{Setting, Settings};
use spcd_lang::syntax::{Problem, Span};
use spcd_lang::value::Value;

/// Attributes that spcd itself reads in a connection; never a part of the plugin's configuration.
pub(crate) const OWN_ATTRIBUTES: [&str; 6] = [
    "plugin",
    "type",
    "connections",
    "import_schema",
    "import",
    "allow_visible_secrets",
];

/// The blocks that spcd itself reads.
pub(crate) const OWN_BLOCKS: [&str; 5] = ["import", "labels", "health", "ssh", "options"];

/// Where a connection is.
pub(crate) struct Context<'a> {
    /// Its file.
    pub(crate) file: &'a str,
    /// Its plugin as people write it.
    pub(crate) plugin: &'a str,
    /// The place to mark where something is missing.
    pub(crate) span: Span,
    /// How it is reached, where that is said.
    pub(crate) ssh: Option<(Ssh, Span)>,
    /// All of its block could be read: what is missing in it was not written.
    pub(crate) whole: bool,
}

/// Builds the target; what is wrong is added to `problems`.
pub(crate) fn target(
    settings: &Settings,
    definition: &Definition,
    import: Import,
    context: &Context<'_>,
    problems: &mut Vec<Problem>,
) -> Target {
    let mut builder = Builder {
        definition,
        context,
        problems,
        target: Target::default(),
        origin: BTreeMap::new(),
        given: Words::default(),
    };
    let before = builder.problems.len();
    builder.target = Target {
        extension: definition.extension.clone(),
        requires: definition.requires.clone(),
        package: definition.package.clone(),
        wrapper: definition.wrapper.clone(),
        ask: definition.ask.clone(),
        import_options: definition.import_options.clone(),
        dynamic: definition.dynamic,
        probe: definition.probe,
        positional: definition.positional,
        column_name_option: definition.column_name.clone(),
        import: Import {
            unknown_types: import.unknown_types.or(definition.unknown_types),
            ..import
        },
        ..Target::default()
    };
    builder.required(settings);
    match &definition.body {
        Some(option) => builder.body(settings, option),
        None => builder.settings(settings),
    }
    let whole = settings.broken.is_empty();
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
    definition: &'a Definition,
    context: &'a Context<'a>,
    problems: &'p mut Vec<Problem>,
    target: Target,
    /// Which attribute gave an option.
    origin: BTreeMap<String, String>,
    /// What is given, with its place.
    given: Words,
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
        for broken in &settings.broken {
            if !definition.knows(broken) && !OWN_ATTRIBUTES.contains(&&**broken) {
                let message = match OWN_BLOCKS.contains(&&**broken) {
                    true => format!("`{broken}` is a block"),
                    false => format!("`{}` has no attribute `{broken}`", self.context.plugin),
                };
                self.problem(self.context.span, message, None);
            }
        }
        for section in &settings.sections {
            if OWN_BLOCKS.contains(&&*section.kind) {
                continue;
            }
            if self.definition.verbatim && matches!(&*section.kind, "server" | "mapping") {
                self.verbatim_section(section);
                continue;
            }
            let message = format!("`{}` has no block `{}`", self.context.plugin, section.kind);
            let hint = definition
                .knows(&section.kind)
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
        if !definition.knows(name) {
            if matches!(name, "labels" | "health") {
                let hint = format!("write `{name} {{ … }}` without `=`");
                return self.problem(setting.span, format!("`{name}` is a block"), Some(hint));
            }
            let message = format!("`{}` has no attribute `{name}`", self.context.plugin);
            let near = definition.meant(name, &["plugin", "import_schema", "import"]);
            let hint = near.map(|near| format!("did you mean `{near}`?"));
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
            text = absolute(self.context.file, &text);
        }
        self.option(name, text, setting.value_span);
    }

    /// An attribute as an option of the server or the user mapping.
    fn option(&mut self, name: &str, mut text: String, span: Span) {
        if let Some(kind) = self.definition.values.get(name) {
            match words::value(kind, name, &text) {
                Ok(value) => text = value,
                Err((message, hint)) => return self.problem(span, message, Some(hint)),
            }
        }
        if self.definition.words.contains_key(name) {
            if self.given.insert(name, text, span).is_some() {
                let message = format!("`{name}` is given twice");
                self.problem(span, message, Some("keep one of the two".to_owned()));
            }
            return;
        }
        self.given.insert(name, text.clone(), span);
        let (option, secret) = match (
            self.definition.server.get(name),
            self.definition.mapping.get(name),
        ) {
            (Some(option), _) => (option, false),
            (None, Some(option)) => (option, true),
            (None, None) => {
                let message = format!("`{}` has no parameter `{name}`", self.context.plugin);
                let hint = (self.definition.meant(name, &[]))
                    .map(|near| format!("did you mean `{near}`?"));
                return self.problem(span, message, hint);
            }
        };
        if let Some(since) = self.definition.since.get(name) {
            self.target.since.insert(name.to_owned(), since.clone());
        }
        if let Some(before) = self.origin.insert(option.clone(), name.to_owned()) {
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
            let path = self.definition.paths.contains(name) && is_plain(&text);
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
        match libpq::parameters(text) {
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
                let hint = "write `\"host=… dbname=… user=… password=…\"` or `\"postgresql://…\"`; in a URL, `%25` stands for `%`";
                self.problem(setting.value_span, bad.to_string(), Some(hint.to_owned()));
            }
        }
    }

    /// A parameter of a connection string. Its name may hold a secret if the string is broken, so
    /// one that is not known is not shown.
    fn parameter(&mut self, name: &str, value: String, span: Span) {
        if self.definition.server.contains_key(name) || self.definition.mapping.contains_key(name) {
            return self.option(name, value, span);
        }
        let message = match libpq::is_word(name) {
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
        let csv = self.target.csv.get_or_insert_with(Csv::default);
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
                .map(|path| below(self.context.file, path))
                .collect();
            if let Some((message, hint)) = files::unfit(&texts) {
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
            "encoding" => match Encoding::named(&first) {
                Some(encoding) => {
                    csv.encoding = encoding;
                    None
                }
                None => Some(
                    "write `\"utf8\"`, `\"latin1\"`, `\"win1252\"` or another of the server's names",
                ),
            },
            // COPY refuses these.
            "null" if first.contains(['"', '\n', '\r', '\0']) => {
                Some("write a text without quotes and on one line")
            }
            "null" => {
                csv.null = Some(first);
                None
            }
            name => match <[u8; 1]>::try_from(first.as_bytes()) {
                // COPY takes these for something else.
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
            let message = format!("this is no value for `{}`", setting.name);
            self.problem(setting.value_span, message, Some(hint.to_owned()));
        }
    }

    /// The whole body as one option, which every role can read.
    fn body(&mut self, settings: &Settings, option: &str) {
        let own = |name: &str, block: bool| match block {
            true => OWN_BLOCKS.contains(&name),
            false => OWN_ATTRIBUTES.contains(&name),
        };
        let mut nobody = Vec::new();
        let allowed = settings.boolean("allow_visible_secrets", &mut nobody);
        self.problems.append(&mut nobody);
        let secret = first_secret(settings, self.definition, &own);
        if let (Some((name, span)), false) = (
            secret,
            allowed.unwrap_or(self.definition.allow_visible_secrets),
        ) {
            let message = format!(
                "`{name}` may be a secret, and every role of the database could read it: the extension \
                 `{}` takes its configuration as an option of the server",
                self.definition.extension
            );
            // Shorter names are too near to those of other plugins: `oci` to `ogr`.
            let long = shipped().keys().filter(|label| label.len() >= 5);
            let hint = match nearest(self.context.plugin, long.map(String::as_str)) {
                Some(near) => format!("did you mean `plugin = \"{near}\"`?"),
                None => "write `allow_visible_secrets = true` if that is acceptable, or leave the \
                         secret to the plugin's own files or environment"
                    .to_owned(),
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

    /// Leads to the source through ssh: the server's options name the tunnel's end.
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
            (port, tunnel.usual_port(0).to_string()),
        ];
        for (option, value) in here {
            let public = true;
            self.target
                .server
                .insert(option, OptionValue { value, public });
        }
        self.target.tunnel = Some(tunnel);
    }

    /// What is said in plain words, and what must be said besides.
    fn plain_words(&mut self) {
        let options = match self.given.options(self.definition, &self.target.server) {
            Ok(options) => options,
            Err((span, message, hint)) => return self.problem(span, message, Some(hint)),
        };
        for (option, (value, alone)) in options {
            let public = alone && self.target.server.get(&option).is_none_or(|own| own.public);
            let value = OptionValue { value, public };
            self.target.server.insert(option, value);
        }
        if self.context.ssh.is_some() {
            // The source may be the ssh server itself.
            self.given
                .insert_if_missing(self.definition.tunnel.get("host"));
        }
        if !self.context.whole {
            return;
        }
        if let Some((span, message, hint)) = self.given.missing(self.definition) {
            self.problem(span, message, Some(hint));
        }
    }

    fn defaults(&mut self) {
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
        // A wrapper that knows no schemas does not look at it, but the statement must name one.
        if self.target.import.schema.is_empty() {
            self.target.import.schema = "public".to_owned();
        }
        for option in self.target.server.keys() {
            self.target.ask.remove(option);
        }
    }
}

/// The first attribute in a body that is not known to be public.
fn first_secret<'a>(
    settings: &'a Settings,
    definition: &Definition,
    own: &dyn Fn(&str, bool) -> bool,
) -> Option<(&'a str, Span)> {
    let here = settings
        .list
        .iter()
        .find(|s| s.value != Value::Null && !own(&s.name, false) && !definition.is_public(&s.name))
        .map(|setting| (&*setting.name, setting.span));
    here.or_else(|| {
        let mut sections = settings
            .sections
            .iter()
            .filter(|section| !own(&section.kind, true));
        sections.find_map(|section| first_secret(&section.settings, definition, &|_, _| false))
    })
}
