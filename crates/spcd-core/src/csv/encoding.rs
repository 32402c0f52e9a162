//! Encodings of files, by the server's names.

use std::borrow::Cow;

use encoding_rs as rs;

use super::error::{self, CsvError};

/// Encoding of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Name, as the option `encoding` of file_fdw takes it.
    pub name: &'static str,
    decoder: &'static rs::Encoding,
}

/// Known encodings, with the spelling of their standards. Spellings are compared without
/// punctuation and case.
const ENCODINGS: [(&str, &str, &rs::Encoding); 27] = [
    ("UTF8", "utf8", rs::UTF_8),
    ("LATIN1", "iso88591", rs::WINDOWS_1252),
    ("LATIN2", "iso88592", rs::ISO_8859_2),
    ("LATIN3", "iso88593", rs::ISO_8859_3),
    ("LATIN4", "iso88594", rs::ISO_8859_4),
    ("LATIN5", "iso88599", rs::WINDOWS_1254),
    ("LATIN7", "iso885913", rs::ISO_8859_13),
    ("LATIN8", "iso885914", rs::ISO_8859_14),
    ("LATIN9", "iso885915", rs::ISO_8859_15),
    ("LATIN10", "iso885916", rs::ISO_8859_16),
    ("ISO_8859_5", "iso88595", rs::ISO_8859_5),
    ("ISO_8859_7", "iso88597", rs::ISO_8859_7),
    ("WIN1250", "windows1250", rs::WINDOWS_1250),
    ("WIN1251", "windows1251", rs::WINDOWS_1251),
    ("WIN1252", "windows1252", rs::WINDOWS_1252),
    ("WIN1253", "windows1253", rs::WINDOWS_1253),
    ("WIN1254", "windows1254", rs::WINDOWS_1254),
    ("WIN1255", "windows1255", rs::WINDOWS_1255),
    ("WIN1256", "windows1256", rs::WINDOWS_1256),
    ("WIN1257", "windows1257", rs::WINDOWS_1257),
    ("WIN866", "ibm866", rs::IBM866),
    ("KOI8R", "koi8r", rs::KOI8_R),
    ("KOI8U", "koi8u", rs::KOI8_U),
    ("SJIS", "shiftjis", rs::SHIFT_JIS),
    ("EUC_JP", "eucjp", rs::EUC_JP),
    ("GB18030", "gb18030", rs::GB18030),
    ("BIG5", "big5", rs::BIG5),
];

impl Encoding {
    /// Returns the encoding of a name, as the server or the encoding's standard spells it.
    pub fn from_name(name: &str) -> Option<Self> {
        let plain = |name: &str| {
            let signs = name.chars().filter(char::is_ascii_alphanumeric);
            signs.collect::<String>().to_ascii_lowercase()
        };
        let plain_name = plain(name);
        let plain_name = match plain_name.strip_prefix("cp") {
            Some(page) => format!("win{page}"),
            None => plain_name,
        };
        ENCODINGS
            .iter()
            .find(|(name, standard, _)| plain(name) == plain_name || *standard == plain_name)
            .map(|(name, _, decoder)| Self { name, decoder })
    }

    /// Decodes bytes. In a part of a file, a truncated character at the end is left out.
    pub(super) fn decode(self, bytes: &[u8], whole: bool) -> Result<Cow<'_, str>, CsvError> {
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Err(CsvError::Utf16);
        }
        let text = match self.name {
            // The decoder for WIN1252 has printable characters where Latin 1 has control
            // characters.
            "LATIN1" => rs::mem::decode_latin1(bytes),
            "UTF8" => Cow::Borrowed(error::utf8(bytes, whole)?),
            _ => Cow::Owned(self.decoded(bytes, whole)?),
        };
        match text.bytes().position(|byte| byte == 0) {
            None => Ok(text),
            Some(at) => Err(CsvError::Nul {
                line: error::line_of(text.as_bytes(), at),
            }),
        }
    }

    fn decoded(self, bytes: &[u8], whole: bool) -> Result<String, CsvError> {
        let mut decoder = self.decoder.new_decoder_without_bom_handling();
        // One byte in these encodings becomes at most three bytes in UTF-8.
        let room = bytes.len().saturating_mul(3).saturating_add(16);
        let mut text = String::with_capacity(room);
        let (result, _) = decoder.decode_to_string_without_replacement(bytes, &mut text, whole);
        // Undefined bytes are decoded as control characters, which the server refuses.
        let control = text.find(|sign: char| matches!(sign, '\u{80}'..='\u{9f}'));
        let at = match (result, control) {
            (_, Some(at)) if self.name.starts_with("WIN") => at,
            (rs::DecoderResult::Malformed(..), _) => text.len(),
            _ => {
                text.shrink_to_fit();
                return Ok(text);
            }
        };
        Err(CsvError::NotEncoded {
            line: error::line_of(text.as_bytes(), at),
            encoding: self.name,
        })
    }
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            name: "UTF8",
            decoder: rs::UTF_8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_is_found_by_any_usual_spelling() {
        for (spelling, name) in [
            ("latin1", "LATIN1"),
            ("ISO-8859-1", "LATIN1"),
            ("iso_8859-15", "LATIN9"),
            ("cp1252", "WIN1252"),
            ("Windows-1252", "WIN1252"),
            ("UTF-8", "UTF8"),
            ("Shift_JIS", "SJIS"),
        ] {
            let found = Encoding::from_name(spelling).map(|encoding| encoding.name);
            assert_eq!(found, Some(name), "{spelling}");
        }
        for spelling in ["", "utf16", "klingon", "latin"] {
            assert_eq!(Encoding::from_name(spelling), None, "{spelling}");
        }
    }

    #[test]
    fn bytes_become_text_or_name_the_line_that_has_no_meaning() {
        let decode = |name: &str, bytes: &[u8], whole: bool| {
            let decoded = Encoding::from_name(name).unwrap().decode(bytes, whole);
            decoded
                .map(Cow::into_owned)
                .map_err(|fault| fault.to_string())
        };
        assert_eq!(decode("latin1", b"gr\xf6\xdfe", true), Ok("größe".into()));
        assert_eq!(decode("win1252", b"\x80", true), Ok("€".into()));
        assert_eq!(
            decode("win1252", b"a\n\x81", true),
            Err("line 2 is not WIN1252".into())
        );
        assert_eq!(decode("sjis", b"\x93\xfa", true), Ok("日".into()));
        assert_eq!(decode("sjis", b"a\x93", false), Ok("a".into()));
        assert!(decode("sjis", b"a\x93", true).is_err());
    }
}
