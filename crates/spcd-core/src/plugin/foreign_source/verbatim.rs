//! Handles the plugin `fdw`: server and mapping get the options as written.

use super::Builder;
use crate::model::OptionValue;
use crate::secret::Secret;
use spcd_lang::settings::{NestedBlock, Setting};
use spcd_lang::syntax::Span;
use spcd_lang::value::Value;

impl Builder<'_, '_> {
    pub(super) fn verbatim(&mut self, setting: &Setting) {
        if matches!(&*setting.name, "server" | "mapping") {
            let Value::Object(values) = &setting.value else {
                let message = format!("expected an object for `{}`", setting.name);
                return self.problem(setting.value_span, message, None);
            };
            for (name, value) in values {
                self.verbatim_option(&setting.name, name, value, setting.value_span);
            }
            return;
        }
        let Some(text) = setting.text(self.problems) else {
            return;
        };
        match &*setting.name {
            "wrapper" => {
                if self.target.extension.is_empty() {
                    self.target.extension.clone_from(&text);
                }
                self.target.wrapper = text;
            }
            "extension" => self.target.extension = text,
            "table_name" => self.target.table_name_option = Some(text),
            "column_name" => self.target.column_name_option = Some(text),
            _ => {
                if self.target.import.schema.is_empty() {
                    self.target.import.schema = text;
                }
            }
        }
    }

    pub(super) fn verbatim_section(&mut self, section: &NestedBlock) {
        for setting in &section.settings.list {
            self.verbatim_option(
                &section.kind,
                &setting.name,
                &setting.value,
                setting.value_span,
            );
        }
    }

    fn verbatim_option(&mut self, kind: &str, name: &str, value: &Value, span: Span) {
        if *value == Value::Null {
            return;
        }
        let Some(text) = value.as_text() else {
            let message = format!("expected text for `{name}`, found {}", value.kind());
            return self.problem(span, message, None);
        };
        if kind == "mapping" {
            self.target
                .mapping
                .insert(name.to_owned(), Secret::new(text));
        } else {
            self.target.server.insert(
                name.to_owned(),
                OptionValue {
                    value: text,
                    public: false,
                },
            );
        }
    }
}
