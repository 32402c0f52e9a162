//! Chooses one of several hosts: the first that answers and has the attributes that are required.

use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::Endpoint;
use super::error::ConnectError;
use super::hosts::{Host, HostName};
use super::session::{self, Session, SessionAttributes};

/// Time after which a host that has not answered delays the next ones no longer. A server that is well
/// answers within milliseconds, over a slow network within a fraction of it.
const HEAD_START: Duration = Duration::from_secs(1);

/// A host and its index in the list.
pub(super) type Candidate<'a> = (usize, &'a Host);

/// A running attempt to connect.
type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Session, ConnectError>> + Send + 'a>>;

impl Endpoint {
    /// Opens a session with one of the hosts. Returns the most useful of their errors.
    pub(super) async fn connect_any(&self, purpose: &str) -> Result<Session, ConnectError> {
        let mut hosts: Vec<Candidate<'_>> = self.hosts.iter().enumerate().collect();
        if self.load_balance {
            let seed = std::hash::RandomState::new().build_hasher().finish();
            let offset = usize::try_from(seed % (hosts.len().max(1) as u64)).unwrap_or(0);
            hosts.rotate_left(offset);
        } else {
            // After a failover the former primary may be silent, and would delay each session.
            let last = self.last_host.load(Ordering::Relaxed);
            hosts.sort_by_key(|(index, _)| *index != last);
        }
        let passes: &[SessionAttributes] = match self.attributes {
            SessionAttributes::PreferStandby => {
                &[SessionAttributes::Standby, SessionAttributes::Any]
            }
            _ => std::slice::from_ref(&self.attributes),
        };
        let mut error = None;
        for required in passes {
            match self.connect_first(&hosts, *required, purpose).await {
                Ok(session) => return Ok(session),
                Err(later) => error = Some(more_useful(error, later)),
            }
        }
        Err(error.unwrap_or_else(no_host))
    }

    /// Tries hosts in their order, and returns the first session. Tries the next ones beside a host
    /// that is silent.
    fn connect_first<'a>(
        &'a self,
        hosts: &'a [Candidate<'a>],
        required: SessionAttributes,
        purpose: &'a str,
    ) -> Attempt<'a> {
        Box::pin(async move {
            let Some((host, others)) = hosts.split_first() else {
                return Err(no_host());
            };
            let mut attempt: Attempt<'_> = Box::pin(self.connect_host(*host, required, purpose));
            if others.is_empty() {
                return attempt.await;
            }
            let early = tokio::time::timeout(HEAD_START, &mut attempt).await;
            let others = self.connect_first(others, required, purpose);
            match early {
                Ok(Ok(session)) => Ok(session),
                Ok(Err(error @ ConnectError::Configuration(_))) => Err(error),
                Ok(Err(error)) => others
                    .await
                    .map_err(|later| more_useful(Some(error), later)),
                Err(_) => match select(attempt, others).await {
                    Either::Left((Ok(session), _)) | Either::Right((Ok(session), _)) => Ok(session),
                    Either::Left((Err(error), other)) | Either::Right((Err(error), other)) => {
                        other.await.map_err(|later| more_useful(Some(error), later))
                    }
                },
            }
        })
    }

    async fn connect_host(
        &self,
        (index, host): Candidate<'_>,
        required: SessionAttributes,
        purpose: &str,
    ) -> Result<Session, ConnectError> {
        let attempt = async {
            let mut session = self.open(host, purpose).await?;
            self.check_direct((index, host), &session).await?;
            let tcp = matches!(host.name, HostName::Tcp(_));
            let state = session::prepare(&mut session, tcp, self.context.settings())
                .await
                .map_err(|error| self.classify_error(host, error))?;
            match state.mismatch(required) {
                None => Ok(session),
                Some(why) => Err(self.refused(host, "give the host of another server", why.into())),
            }
        };
        match tokio::time::timeout(self.connect_timeout, attempt).await {
            Ok(Ok(session)) => {
                self.last_host.store(index, Ordering::Relaxed);
                Ok(session)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ConnectError::Unreachable {
                target: host.to_string(),
                source: format!("no answer within {} s", self.connect_timeout.as_secs()).into(),
            }),
        }
    }
}

/// Returns the error of a host that answers rather than that of one that does not; else the later one.
fn more_useful(earlier: Option<ConnectError>, later: ConnectError) -> ConnectError {
    match (earlier, &later) {
        (Some(earlier @ ConnectError::Refused { .. }), ConnectError::Unreachable { .. }) => earlier,
        _ => later,
    }
}

fn no_host() -> ConnectError {
    ConnectError::Configuration("no host is given".to_owned())
}
