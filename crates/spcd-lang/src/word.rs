//! Identifiers of HCL.

/// Returns the length in bytes of the identifier at the start of `text`; 0 if there is none.
pub fn identifier_length(text: &str) -> usize {
    let mut length = 0;
    for character in text.chars() {
        let belongs = match character {
            'a'..='z' | 'A'..='Z' | '_' => true,
            '0'..='9' | '-' => length > 0,
            other if other.is_ascii() => false,
            other => other.is_alphabetic() || (length > 0 && other.is_alphanumeric()),
        };
        if !belongs {
            break;
        }
        length += character.len_utf8();
    }
    length
}
