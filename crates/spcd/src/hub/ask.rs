//! What a source has: its catalog where that can be read, else an import into a schema that is
//! rolled back.

use std::sync::atomic::{AtomicU64, Ordering};

use spcd_core::config::Target;
use spcd_core::plan::Offer;
use spcd_core::secret;
use spcd_core::shape;
use spcd_core::sql;
use tokio_postgres::error::SqlState;

use super::connect::Session;
use super::scratch::prepare;
use super::transaction::rolled_back;
use super::{HubError, catalog, csv, partial, privileges};

/// Distinguishes schemas of imports that run at the same time.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Asks a source for its tables, normalized. Nothing of it stays in the database: server, mapping
/// and schema bear a name of their own and go with the transaction, so that nobody waits for it
/// and what is there is not touched before the answer is known.
pub async fn ask(session: &Session, target: &Target) -> Result<Offer, HubError> {
    let client = &session.client;
    let name = fresh_name("spcd_ask");
    if let Some(csv) = &target.csv {
        return csv::ask(client, &name, target, csv).await;
    }
    let mut answer = None;
    if catalog::is_read(target) {
        let mut look = rolled_back(client, look(session, &name, target, false)).await;
        if look.as_ref().is_err_and(HubError::is_of_encoding) {
            look = rolled_back(client, self::look(session, &name, target, true)).await;
        }
        answer = match look {
            Ok(offer) => offer.map(Ok),
            Err(error) if is_final(&error) => Some(Err(error)),
            // A source whose catalog is another one: an import knows it better.
            Err(_) => None,
        };
    }
    let answer = match answer {
        Some(answer) => answer,
        None => rolled_back(client, import(session, &name, target)).await,
    };
    match answer {
        Ok(mut offer) => {
            let in_public = |text: &mut String| *text = in_public(text, &name, target);
            let unfit = offer
                .tables
                .iter_mut()
                .filter_map(|table| table.unfit.as_mut());
            unfit.for_each(in_public);
            offer.warnings.iter_mut().for_each(in_public);
            offer
                .notices
                .iter_mut()
                .map(|notice| &mut notice.text)
                .for_each(in_public);
            Ok(offer)
        }
        Err(error) => Err(clean(error, &name, target)),
    }
}

/// A name that nothing else bears at the same time.
pub(super) fn fresh_name(prefix: &str) -> String {
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{prefix}_{process}_{number}")
}

/// What a source that was asked under a name of ours said, as people may read it.
pub(super) fn clean(error: HubError, name: &str, target: &Target) -> HubError {
    match error {
        HubError::Refused { text, code } => HubError::Refused {
            text: in_public(&text, name, target) + &advice(&code, &text, target),
            code: of_wrapper(code),
        },
        error => error,
    }
}

pub(super) fn in_public(text: &str, name: &str, target: &Target) -> String {
    without(&text.replace(name, "the source"), target)
}

/// Whether another way of asking would meet the same error.
fn is_final(error: &HubError) -> bool {
    let HubError::Refused { code, .. } = error else {
        return true;
    };
    let of_the_source = [
        SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
        SqlState::CONNECTION_FAILURE,
        SqlState::S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED,
        SqlState::QUERY_CANCELED,
    ];
    of_the_source.contains(code)
}

/// Reads the source's catalog, and imports only what that does not tell. `None`: nothing is there,
/// and an import says why.
async fn look(
    session: &Session,
    name: &str,
    target: &Target,
    in_parts: bool,
) -> Result<Option<Offer>, HubError> {
    let client = &session.client;
    let before = prepare(client, name, target).await?;
    let answer = match in_parts {
        false => catalog::look(client, name, &before, target).await?,
        true => {
            client.batch_execute(&before).await?;
            catalog::look_in_parts(client, name, target).await?
        }
    };
    let taken: Vec<&str> = (answer.tables.iter().map(|table| table.name.as_str()))
        .chain(answer.odd.iter().map(String::as_str))
        .collect();
    let others: Vec<&str> = answer.others.iter().map(String::as_str).collect();
    let unmatched = target.import.unmatched(&taken, Some(&others));
    let is_empty = taken.is_empty() && others.is_empty();
    let mut offer = Offer {
        tables: answer.tables,
        warnings: answer.warnings,
        ..Offer::default()
    };
    if !is_empty {
        offer.warnings.extend(unmatched);
    }
    if !answer.odd.is_empty() {
        let into = format!("{name}_odd");
        client.batch_execute(&sql::create_schema(&into)).await?;
        let (odd, _) = partial::import(session, target, name, &into, Some(&answer.odd)).await?;
        offer.tables.extend(odd.tables);
        offer.warnings.extend(odd.warnings);
        offer.notices.extend(odd.notices);
    }
    shape::normalize(&mut offer.tables, target.traits());
    // Of tables that connections share each may have another role.
    if target.dynamic && !offer.tables.is_empty() {
        let unreadable = privileges::warnings(client, name, target, &offer.tables).await?;
        offer.warnings.extend(unreadable);
    }
    Ok((offer != Offer::default()).then_some(offer))
}

async fn import(session: &Session, name: &str, target: &Target) -> Result<Offer, HubError> {
    let text = prepare(&session.client, name, target).await?;
    session.client.batch_execute(&text).await?;
    let (mut offer, others) = partial::import(session, target, name, name, None).await?;
    let taken: Vec<String> = offer.tables.iter().map(|t| t.name.clone()).collect();
    let taken: Vec<&str> = taken.iter().map(String::as_str).collect();
    let others: Option<Vec<&str>> =
        (others.as_ref()).map(|others| others.iter().map(String::as_str).collect());
    let unmatched = target.import.unmatched(&taken, others.as_deref());
    offer.warnings.extend(unmatched);
    let is_none = taken.is_empty() && others.is_none_or(|others| others.is_empty());
    let prefix = &target.import.schema;
    if is_none && target.wrapper == OGR && prefix != ALL_LAYERS {
        offer.warnings.push(format!(
            "no layer of the source has a name that begins with {prefix:?} (attribute `layers`)"
        ));
    }
    // Of tables that connections share each may have another role.
    if target.dynamic && target.wrapper == catalog::WRAPPER && !offer.tables.is_empty() {
        let unreadable = privileges::warnings(&session.client, name, target, &offer.tables).await?;
        offer.warnings.extend(unreadable);
    }
    Ok(offer)
}

/// The wrapper for all that GDAL reads, and its remote schema that means every layer.
const OGR: &str = "ogr_fdw";
const ALL_LAYERS: &str = "ogr_all";

/// Many wrappers say whatever is wrong with the code of an internal error, by which the server
/// itself means that the same may succeed a moment later.
fn of_wrapper(code: SqlState) -> SqlState {
    match code == SqlState::INTERNAL_ERROR {
        true => SqlState::FDW_ERROR,
        false => code,
    }
}

/// What to do about an error of a source, where that is known. It decides nothing else.
fn advice(code: &SqlState, text: &str, target: &Target) -> String {
    if target.wrapper != "postgres_fdw" {
        return since(code, target);
    }
    // A pooler's error has no code of its own once the wrapper has wrapped it.
    if let (true, Some(options)) = (
        text.contains("unsupported startup parameter"),
        target.server.get("options"),
    ) {
        let words = [
            ("default_transaction_read_only", "`read_only`"),
            ("statement_timeout", "`statement_timeout`"),
        ];
        let meant = words
            .iter()
            .filter(|(word, _)| options.value.contains(word));
        let mut meant: Vec<&str> = meant.map(|(_, attribute)| *attribute).collect();
        if meant.is_empty() {
            meant.push("`options`");
        }
        return format!(
            " ({} is sent as the parameter `options`, which this pooler refuses: remove it, or set \
             it for the role at the source)",
            meant.join(" and ")
        );
    }
    if code.code() == PASSWORD_REQUIRED {
        return " (write `password`, or, if spcd's role is a superuser, `password_required = false`)"
            .to_owned();
    }
    since(code, target)
}

/// postgres_fdw refuses to connect without a password on behalf of a role that is no superuser.
const PASSWORD_REQUIRED: &str = "2F003";

/// Where the wrapper refuses an option: from which version on it takes those that are given.
fn since(code: &SqlState, target: &Target) -> String {
    if *code != SqlState::FDW_INVALID_OPTION_NAME || target.since.is_empty() {
        return String::new();
    }
    let attributes: Vec<String> = (target.since.iter())
        .map(|(attribute, since)| format!("`{attribute}` is there from {since} on"))
        .collect();
    format!(" ({})", attributes.join(", "))
}

/// A text in which no value stands that is not public: wrappers repeat user names in their errors,
/// and what they were given to connect to.
pub(super) fn without(text: &str, target: &Target) -> String {
    let mut text = text.to_owned();
    let of_server = target.server.values().filter(|option| !option.public);
    let public = target.server.values().filter(|option| option.public);
    let mut values: Vec<&str> = (target.mapping.values().map(|value| value.expose()))
        .chain(of_server.map(|option| option.value.as_str()))
        .collect();
    // A wrapper may quote a part of what it was given.
    let parts: Vec<&str> = values
        .iter()
        .flat_map(|value| secret::parts(value))
        .collect();
    values.extend(parts);
    values.extend(public.flat_map(|option| secret::parts_of_public(&option.value)));
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        text = mask(&text, value);
    }
    without_users(&text)
}

/// A text in which no URL tells who connects: some wrappers say a part of what they were given.
fn without_users(text: &str) -> String {
    let mut parts = text.split("://");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let host = part.find(|c: char| "/?#\"'".contains(c) || c.is_whitespace());
        let rest = match part[..host.unwrap_or(part.len())].rfind('@') {
            Some(at) => format!("***{}", &part[at..]),
            None => part.to_owned(),
        };
        out.push_str("://");
        out.push_str(&rest);
    }
    out
}

/// Replaces a value where it stands as a word.
fn mask(text: &str, value: &str) -> String {
    if value.is_empty() {
        return text.to_owned();
    }
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(value) {
        let (before, after) = (&rest[..at], &rest[at + value.len()..]);
        let word = !in_word(
            before
                .chars()
                .next_back()
                .or_else(|| out.chars().next_back()),
        ) && !in_word(after.chars().next());
        out.push_str(before);
        out.push_str(if word { "***" } else { value });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{mask, without_users};

    #[test]
    fn a_value_is_masked_where_it_is_a_word() {
        assert_eq!(
            mask("password authentication failed for user \"a\" at a.b", "a"),
            "password authentication failed for user \"***\" at ***.b"
        );
        assert_eq!(mask("secret", "secret"), "***");
        assert_eq!(mask("nothing", ""), "nothing");
    }

    #[test]
    fn a_url_does_not_tell_who_connects() {
        assert_eq!(
            without_users("code on http://me:x@y@host/a?b=c@d: 0, ftp://host://me@h"),
            "code on http://***@host/a?b=c@d: 0, ftp://host://***@h"
        );
        assert_eq!(without_users("a@b: nothing://"), "a@b: nothing://");
    }
}
