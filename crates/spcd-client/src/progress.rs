//! Progress of a wait, for display.

/// Progress of a wait.
///
/// ```
/// # use spcd_client::Progress;
/// let progress = Progress { waiting: vec!["sales"], ready: 2, total: 3 };
/// assert_eq!(progress.to_string(), "waiting for sales: 2 of 3 connections ready");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Names of connections that are not settled yet.
    pub waiting: Vec<&'a str>,
    /// Number of settled connections.
    pub ready: usize,
    /// Number of connections that the wait is for.
    pub total: usize,
}

impl std::fmt::Display for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text fits one line of a terminal, so it names only the first ones.
        let shown = self
            .waiting
            .iter()
            .take(3)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        let more = if self.waiting.len() > 3 { ", …" } else { "" };
        let noun = if self.total == 1 {
            "connection"
        } else {
            "connections"
        };
        write!(
            f,
            "waiting for {shown}{more}: {} of {} {noun} ready",
            self.ready, self.total
        )
    }
}
