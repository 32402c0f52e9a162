//! Forwards requests about sources behind gateways. The hub answers them after the gateways have.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use spcd_core::gateway::HubParts;
use spcd_core::scheduler::{Action, Request};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::gateway_link::Links;

/// Requests that were forwarded to gateways, and their answers.
#[derive(Default)]
pub struct ForwardedRequests {
    answers: Arc<Mutex<BTreeMap<i64, Option<Answer>>>>,
    /// Not the watcher's waker, which is consumed while files settle, after requests were read.
    answered: Arc<Notify>,
}

type Answer = Option<String>;

impl ForwardedRequests {
    /// Keeps the requests that gateways have answered or that concern none, and forwards the others. `parts`
    /// are the connections behind gateways.
    pub fn defer_answers(
        &self,
        links: &Arc<Links>,
        parts: &HubParts,
        requests: &mut Vec<(i64, Request)>,
    ) {
        requests.retain(|(id, request)| {
            let concerned = parts.named(request.names.as_deref());
            concerned.is_empty() || self.is_answered(*id) || {
                self.forward(links, *id, request.action, &concerned);
                false
            }
        });
    }

    /// Removes the answer to a request, and returns its error.
    pub fn take_error(&self, id: i64) -> Option<String> {
        self.answers.lock().remove(&id)??
    }

    /// Waits for an answer.
    pub async fn answered(&self) {
        self.answered.notified().await;
    }

    fn is_answered(&self, id: i64) -> bool {
        matches!(self.answers.lock().get(&id), Some(Some(_)))
    }

    fn forward(&self, links: &Arc<Links>, id: i64, action: Action, names: &[String]) {
        if self.answers.lock().contains_key(&id) {
            return;
        }
        self.answers.lock().insert(id, None);
        let (answers, answered) = (self.answers.clone(), self.answered.clone());
        let mut asked = JoinSet::new();
        for (link, names) in links.split(names) {
            asked.spawn(async move {
                let answer = link.request(action, &names).await;
                answer.unwrap_or_else(|error| Some(format!("{}: {error:#}", link.title())))
            });
        }
        tokio::spawn(async move {
            let mut errors: Vec<String> = asked.join_all().await.into_iter().flatten().collect();
            errors.sort_unstable();
            let answer = (!errors.is_empty()).then(|| errors.join("; "));
            let mut answers = answers.lock();
            answers.insert(id, Some(answer));
            drop(answers);
            answered.notify_one();
        });
    }
}
