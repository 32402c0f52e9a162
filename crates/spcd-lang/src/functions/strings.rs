//! Functions of texts.

use super::{Arguments, Problem, Result, Value, fail};

pub(super) fn trimspace(arguments: &Arguments<'_>) -> Result<Value> {
    Ok(Value::String(arguments.text(0)?.trim().into()))
}

pub(super) fn lower(arguments: &Arguments<'_>) -> Result<Value> {
    Ok(Value::String(arguments.text(0)?.to_lowercase().into()))
}

pub(super) fn upper(arguments: &Arguments<'_>) -> Result<Value> {
    Ok(Value::String(arguments.text(0)?.to_uppercase().into()))
}

/// `replace(text, part, new)`. An empty part stands before each character and at the end. Terraform
/// takes a part between slashes for a regular expression, which this language does not have.
pub(super) fn replace(arguments: &Arguments<'_>) -> Result<Value> {
    let (text, part, new) = (arguments.text(0)?, arguments.text(1)?, arguments.text(2)?);
    if part.len() > 1 && part.starts_with('/') && part.ends_with('/') {
        let (_, span) = arguments.get(1);
        let message = "regular expressions are not supported: a text between slashes is one";
        return fail(Problem::new(span, message).hint("replace a text without slashes around it"));
    }
    let count = text.matches(&*part).count();
    arguments.check_size(text.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::String(text.replace(&*part, &new).into()))
}

/// `split(separator, text)`. An empty separator stands between the characters.
pub(super) fn split(arguments: &Arguments<'_>) -> Result<Value> {
    let (separator, text) = (arguments.text(0)?, arguments.text(1)?);
    let part = |part: &str| Value::String(part.into());
    Ok(Value::List(match separator.is_empty() {
        true => text
            .chars()
            .map(|character| part(character.encode_utf8(&mut [0; 4])))
            .collect(),
        false => text.split(&*separator).map(part).collect(),
    }))
}

/// `join(separator, list, …)`: the elements of all lists.
pub(super) fn join(arguments: &Arguments<'_>) -> Result<Value> {
    let separator = arguments.text(0)?;
    let mut joined = String::new();
    let mut is_first = true;
    for index in 1..arguments.list.len() {
        for value in arguments.list(index)? {
            let Some(text) = value.as_text() else {
                let (_, span) = arguments.get(index);
                return arguments.expected("lists of texts", value, span);
            };
            if !std::mem::take(&mut is_first) {
                joined.push_str(&separator);
            }
            joined.push_str(&text);
            arguments.check_size(joined.len())?;
        }
    }
    Ok(Value::String(joined.into()))
}

/// `base64decode(text)`: the text that is encoded, in the alphabet with `+` and `/`.
pub(super) fn base64decode(arguments: &Arguments<'_>) -> Result<Value> {
    let text = arguments.text(0)?;
    let (_, span) = arguments.get(0);
    let Some(bytes) = base64(&text) else {
        return fail(Problem::new(span, "`base64decode`: this is not base64"));
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Value::String(text.into())),
        Err(_) => fail(Problem::new(
            span,
            "`base64decode`: the decoded bytes are not UTF-8",
        )),
    }
}

/// Decodes base64 with padding (RFC 4648, section 4); line breaks are skipped. `None` if it is not
/// base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count, mut padding) = (0_u32, 0_usize, 0_usize);
    for byte in text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')) {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                0
            }
            _ => return None,
        };
        if padding > 0 && byte != b'=' {
            return None;
        }
        bits = bits << 6 | u32::from(digit);
        count += 1;
        if count % 4 == 0 {
            bytes.extend(bits.to_be_bytes().get(1..).unwrap_or_default());
            bits = 0;
        }
    }
    if count % 4 != 0 || padding > 2 || padding > count {
        return None;
    }
    bytes.truncate(bytes.len() - padding);
    Some(bytes)
}
