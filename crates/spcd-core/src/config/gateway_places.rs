//! Reads the setting `gateway`: where wrappers run that must not run in the hub.

use crate::secret::Secret;

/// Words that stand alone.
const WORDS: [&str; 2] = ["private", "off"];

/// Where wrappers run that must not run in the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayPlace {
    /// In the hub.
    Off,
    /// In a private cluster.
    Private,
    /// In servers of the user's, at least one: URLs or keyword strings.
    Servers(Vec<Secret>),
}

impl GatewayPlace {
    /// Returns what is meant by a list of texts; `None` if it is empty.
    ///
    /// # Errors
    /// The error, without a text that may contain a password.
    pub fn of(texts: &[Secret]) -> Result<Option<Self>, &'static str> {
        let mut servers: Vec<Secret> = Vec::new();
        for text in texts.iter().flat_map(split) {
            if servers.contains(&text) {
                return Err("`gateway` has the same server twice: remove one");
            }
            servers.push(text);
        }
        let is_word = |text: &Secret| WORDS.contains(&text.expose());
        match servers.as_slice() {
            [] => Ok(None),
            [one] if one.expose() == "off" => Ok(Some(Self::Off)),
            [one] if one.expose() == "private" => Ok(Some(Self::Private)),
            many if many.iter().any(is_word) => {
                Err("`gateway` takes several servers, or one of \"private\" and \"off\" alone")
            }
            _ => Ok(Some(Self::Servers(servers))),
        }
    }
}

/// Returns the servers that a text names. Blanks separate URLs; a keyword string contains blanks, and
/// stands alone.
fn split(text: &Secret) -> Vec<Secret> {
    let is_url = |word: &str| {
        ["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| word.starts_with(scheme))
    };
    let text = text.expose().trim();
    match text.split_whitespace().all(is_url) {
        true => text.split_whitespace().map(Secret::new).collect(),
        false => vec![Secret::new(text)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(texts: &[&str]) -> Result<Option<GatewayPlace>, &'static str> {
        let texts: Vec<Secret> = texts.iter().map(|text| Secret::new(*text)).collect();
        GatewayPlace::of(&texts)
    }

    fn servers(texts: &[&str]) -> Result<Option<GatewayPlace>, &'static str> {
        let texts = texts.iter().map(|text| Secret::new(*text));
        Ok(Some(GatewayPlace::Servers(texts.collect())))
    }

    #[test]
    fn a_word_stands_alone_and_urls_may_be_several() {
        assert_eq!(place(&[]), Ok(None));
        assert_eq!(place(&[" "]), Ok(None));
        assert_eq!(place(&["off"]), Ok(Some(GatewayPlace::Off)));
        assert_eq!(place(&["", "private "]), Ok(Some(GatewayPlace::Private)));
        let (a, b) = ("postgres://a/x", "postgresql://b,c/y");
        assert_eq!(place(&[a, b]), servers(&[a, b]));
        assert_eq!(place(&[&format!("{a}\n {b}")]), servers(&[a, b]));
        // Keyword strings contain blanks.
        assert_eq!(place(&["host=a dbname=x"]), servers(&["host=a dbname=x"]));
        assert_eq!(
            place(&["host=a dbname=x", a]),
            servers(&["host=a dbname=x", a])
        );
    }

    #[test]
    fn words_among_servers_and_repetitions_are_refused() {
        let a = "postgres://a/x";
        for texts in [&["off", a][..], &[a, "private"], &["off", "private"]] {
            assert!(place(texts).unwrap_err().contains("alone"), "{texts:?}");
        }
        assert!(place(&[a, a]).unwrap_err().contains("twice"));
    }
}
