//! The pauses between the attempts of one retry.

/// Exponential back-off: each pause is twice as long as the one before, up to a ceiling. Times are
/// milliseconds.
///
/// ```
/// use spcd_protocol::Backoff;
///
/// const RECONNECT: Backoff = Backoff::new(500, 30_000);
/// assert_eq!(RECONNECT.pause(1), 500);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: u64,
    longest: u64,
}

impl Backoff {
    /// Returns a back-off from its first pause and its ceiling.
    ///
    /// ```
    /// # use spcd_protocol::Backoff;
    /// const RETRY: Backoff = Backoff::new(1_000, 15_000);
    /// ```
    pub const fn new(first: u64, longest: u64) -> Self {
        Self { first, longest }
    }

    /// Returns the pause after this many failures in a row; after none it is zero.
    ///
    /// ```
    /// # use spcd_protocol::Backoff;
    /// let backoff = Backoff::new(1_000, 15_000);
    /// assert_eq!([0, 1, 2, 9].map(|failures| backoff.pause(failures)), [0, 1_000, 2_000, 15_000]);
    /// ```
    pub fn pause(self, failures: u32) -> u64 {
        let Some(doublings) = failures.checked_sub(1) else {
            return 0;
        };
        let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Returns the pause with jitter: between half of it and all of it, by a `share` from 0 to 1.
    ///
    /// ```
    /// # use spcd_protocol::Backoff;
    /// // Many clients that lost one server do not come back in the same millisecond.
    /// assert_eq!(Backoff::new(1_000, 15_000).jittered(2, 0.5), 1_500);
    /// ```
    pub fn jittered(self, failures: u32, share: f64) -> u64 {
        (self.pause(failures) as f64 * (0.5 + share / 2.0)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;

    #[test]
    fn pauses_double_up_to_the_ceiling() {
        let backoff = Backoff::new(1_000, 15_000);
        let pauses: Vec<u64> = (0..7).map(|failures| backoff.pause(failures)).collect();
        assert_eq!(pauses, [0, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        for failures in [63, 64, 65, 66, u32::MAX] {
            assert_eq!(Backoff::new(3, 300).pause(failures), 300);
            assert_eq!(
                Backoff::new(3, u64::MAX).pause(failures),
                match failures {
                    63 => 3 << 62,
                    _ => u64::MAX,
                }
            );
        }
        assert_eq!(Backoff::new(500, 100).pause(1), 100);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        let backoff = Backoff::new(1_000, 15_000);
        assert_eq!(backoff.jittered(2, 0.0), 1_000);
        assert_eq!(backoff.jittered(2, 0.5), 1_500);
        assert_eq!(backoff.jittered(2, 1.0), 2_000);
        assert_eq!(backoff.jittered(0, 1.0), 0);
    }
}
