//! What the hub's loop and those of the gateways know of each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use spcd_core::gateway::{
    Address, Gateway, GatewayRow, GatewayView, Gateways, HubLanes, PresenceRecord, Standing,
};
use spcd_core::scheduler::Action;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use spcd_postgres::connection::Endpoint;
use spcd_postgres::gateway_reader::DatabaseIdentity;
use spcd_postgres::{gateway, gateway_reader};

/// How often to look whether the gateway has answered a request: no notification says so.
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// What the hub's loop and those of the gateways say to each other.
pub struct Links {
    /// Whether a connection needs a gateway.
    pub requested: watch::Sender<bool>,
    state: watch::Sender<Arc<Gateways>>,
    places: Vec<Place>,
    began: Instant,
    /// Has the hub's loop look again.
    waker: Arc<Notify>,
}

/// A gateway, as the program reaches it.
struct Place {
    /// Set as soon as sessions with it can be had.
    endpoint: watch::Sender<Option<Arc<Endpoint>>>,
    presence: Mutex<PresenceRecord>,
    identity: Mutex<Option<DatabaseIdentity>>,
}

/// One of the gateways.
#[derive(Clone)]
pub struct Link {
    links: Arc<Links>,
    index: usize,
}

impl Links {
    /// Gateways that no connection wants yet: their names, and the options by which servers lead to them.
    pub fn new(list: Vec<(String, BTreeMap<String, String>)>, waker: Arc<Notify>) -> Arc<Self> {
        let place = |_| Place {
            endpoint: watch::channel(None).0,
            presence: Mutex::new(PresenceRecord::new(0)),
            identity: Mutex::new(None),
        };
        let places = (0..list.len()).map(place).collect();
        let gateway = |(name, options)| Gateway {
            name,
            options,
            ..Gateway::default()
        };
        let gateways = Gateways {
            list: list.into_iter().map(gateway).collect(),
            hub: None,
        };
        Arc::new(Self {
            requested: watch::channel(false).0,
            state: watch::channel(Arc::new(gateways)).0,
            places,
            began: Instant::now(),
            waker,
        })
    }

    /// Returns each gateway, in the order of the settings.
    pub fn all(self: &Arc<Self>) -> Vec<Link> {
        let link = |index| Link {
            links: self.clone(),
            index,
        };
        (0..self.places.len()).map(link).collect()
    }

    /// All that is known now.
    pub fn gateways(&self) -> Arc<Gateways> {
        self.state.borrow().clone()
    }

    /// Takes note of what the hub reads. What it no longer reads may be dropped in the gateways.
    pub fn set_hub(&self, lanes: HubLanes) {
        self.change(|gateways| {
            let is_same = gateways.hub.as_deref() == Some(&lanes);
            if !is_same {
                gateways.hub = Some(Arc::new(lanes));
            }
        });
    }

    /// Has the gateways started, unless they are.
    pub fn request(&self) {
        self.requested
            .send_if_modified(|requested| !std::mem::replace(requested, true));
    }

    /// Forgets how long each gateway has been away or has answered.
    pub fn restart_presences(&self) {
        let now = self.now();
        for place in &self.places {
            place.presence.lock().restart(now);
        }
    }

    /// Takes note of the standing of each gateway.
    pub fn update_standings(&self, patience: Duration) {
        let now = self.now();
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let standings: Vec<Standing> = (self.places.iter())
            .map(|place| place.presence.lock().standing(now, patience))
            .collect();
        let before = self.gateways();
        let is_changed = self.change(|gateways| {
            for (gateway, standing) in gateways.list.iter_mut().zip(standings) {
                gateway.standing = standing;
            }
        });
        if is_changed {
            log_standings(&before, &self.gateways());
            self.waker.notify_one();
        }
    }

    /// Splits connections by the gateways in which the hub reads them.
    pub fn split(self: &Arc<Self>, names: &[String]) -> Vec<(Link, Vec<String>)> {
        let gateways = self.gateways();
        let mut split: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in names {
            for index in gateways.read_in(name) {
                split.entry(index).or_default().push(name.clone());
            }
        }
        let link = |(index, names)| {
            let links = self.clone();
            (Link { links, index }, names)
        };
        split.into_iter().map(link).collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn change(&self, change: impl FnOnce(&mut Gateways)) -> bool {
        self.state.send_if_modified(|state| {
            let mut other = Gateways::clone(state);
            change(&mut other);
            let is_other = other != **state;
            *state = Arc::new(other);
            is_other
        })
    }
}

fn log_standings(before: &Gateways, now: &Gateways) {
    for (before, now) in before.list.iter().zip(&now.list) {
        if before.standing == now.standing {
            continue;
        }
        let gateway = now.name.as_str();
        match now.standing {
            Standing::Away => {
                tracing::warn!(gateway, "away: its lanes are made on other gateways");
            }
            Standing::Returning => {
                tracing::info!(gateway, "answers again: its tables are made");
            }
            Standing::Settled if before.standing == Standing::Returning => {
                tracing::info!(gateway, "has settled: its lanes come back");
            }
            Standing::Settled | Standing::Present => {}
        }
    }
}

impl Link {
    /// Returns its place in the settings.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether there are others.
    pub fn has_others(&self) -> bool {
        self.links.places.len() > 1
    }

    /// All gateways.
    pub fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// Returns what tells it from others in metrics.
    pub fn label(&self) -> String {
        let gateways = self.links.gateways();
        let Some(gateway) = gateways.list.get(self.index) else {
            return String::new();
        };
        match (gateway.name.as_str(), gateway.options.is_empty()) {
            ("", true) => "private".to_owned(),
            ("", false) => place_name(&gateway.options),
            (name, _) => name.to_owned(),
        }
    }

    /// Returns how messages call it.
    pub fn title(&self) -> String {
        let gateways = self.links.gateways();
        let gateway = gateways.list.get(self.index);
        gateway.map(Gateway::title).unwrap_or_default()
    }

    /// The gateway as it is known now.
    pub fn view(&self) -> Arc<GatewayView> {
        let gateways = self.links.gateways();
        let gateway = gateways.list.get(self.index);
        gateway
            .map(|gateway| gateway.view.clone())
            .unwrap_or_default()
    }

    /// Whether the gateway answers; `None` while no connection wants it.
    pub fn is_up(&self) -> Option<bool> {
        let view = self.view();
        (*self.links.requested.borrow()).then(|| view.address.is_some() && view.error.is_none())
    }

    /// Returns its standing among several.
    pub fn standing(&self) -> Standing {
        let gateways = self.links.gateways();
        let gateway = gateways.list.get(self.index);
        gateway.map(|gateway| gateway.standing).unwrap_or_default()
    }

    /// Takes note of how sessions with it can be had.
    pub fn set_endpoint(&self, endpoint: Option<Arc<Endpoint>>) {
        if let Some(place) = self.place() {
            place.endpoint.send_replace(endpoint);
        }
    }

    /// Takes note of whether it answers.
    pub fn set_answers(&self, answers: bool) {
        if let Some(place) = self.place() {
            place.presence.lock().set(answers, self.links.now());
        }
    }

    /// Takes note of which database it is. Returns the name of another gateway that is the same one.
    pub fn set_identity(&self, identity: DatabaseIdentity) -> Option<String> {
        let mut others = self.links.places.iter().enumerate();
        let same = others.find(|(index, place)| {
            *index != self.index && place.identity.lock().as_ref() == Some(&identity)
        });
        let Some((index, _)) = same else {
            if let Some(place) = self.place() {
                *place.identity.lock() = Some(identity);
            }
            return None;
        };
        let gateways = self.links.gateways();
        gateways.list.get(index).map(|gateway| gateway.name.clone())
    }

    /// Returns the number of sessions in which hubs read the gateway.
    ///
    /// # Errors
    /// A gateway that cannot be reached.
    pub async fn sessions(&self) -> anyhow::Result<i64> {
        let session = self.endpoint()?.connect("metrics").await?;
        Ok(gateway_reader::sessions(&session.client).await?)
    }

    /// Has the gateway's daemon do something with sources, and waits for its answer: the errors, or
    /// `None`.
    ///
    /// # Errors
    /// A gateway that cannot be reached.
    pub async fn request(
        &self,
        action: Action,
        names: &[String],
    ) -> anyhow::Result<Option<String>> {
        let session = self.endpoint()?.connect("gateway request").await?;
        let id = gateway::request(&session.client, action, names).await?;
        loop {
            if let Some(answer) = gateway::answer(&session.client, id).await? {
                return Ok(answer);
            }
            tokio::time::sleep(ANSWER_POLL).await;
        }
    }

    /// Takes note of what the gateway has.
    pub fn set(&self, address: Address, rows: BTreeMap<String, GatewayRow>) {
        self.change(|view| {
            *view = GatewayView {
                address: Some(address),
                rows,
                error: None,
                write_error: view.write_error.take(),
            };
        });
    }

    /// Changes the view; has the hub's loop look again where that makes a difference.
    pub fn change(&self, change: impl FnOnce(&mut GatewayView)) {
        let mut is_news = false;
        self.links.change(|gateways| {
            if let Some(gateway) = gateways.list.get_mut(self.index) {
                let mut view = GatewayView::clone(&gateway.view);
                change(&mut view);
                is_news = view.is_news_after(&gateway.view);
                gateway.view = Arc::new(view);
            }
        });
        if is_news {
            self.links.waker.notify_one();
        }
    }

    /// Notifies whenever another part of the connections may be this gateway's.
    pub async fn wake_on_changes(&self, waker: Arc<Notify>) {
        let mut state = self.links.state.subscribe();
        let mut known = placement(&state.borrow_and_update());
        // The links hold the sender.
        while state.changed().await.is_ok() {
            let now = placement(&state.borrow_and_update());
            if now != known {
                known = now;
                waker.notify_one();
            }
        }
    }

    /// Waits until it is known what the hub reads.
    pub async fn until_hub_is_known(&self) {
        let mut state = self.links.state.subscribe();
        let _ = state.wait_for(|gateways| gateways.hub.is_some()).await;
    }

    fn endpoint(&self) -> anyhow::Result<Arc<Endpoint>> {
        let endpoint = self
            .place()
            .and_then(|place| place.endpoint.borrow().clone());
        endpoint.context("it has not started yet")
    }

    fn place(&self) -> Option<&Place> {
        self.links.places.get(self.index)
    }
}

/// Returns host, port and database: the name of the gateway to which a server with these options leads.
pub fn place_name(options: &BTreeMap<String, String>) -> String {
    let option = |name: &str| options.get(name).map_or("", String::as_str);
    let (host, port, dbname) = (option("host"), option("port"), option("dbname"));
    format!("{host}:{port}/{dbname}")
}

/// What decides which connections a gateway has.
fn placement(gateways: &Gateways) -> (Vec<Standing>, Option<Arc<HubLanes>>) {
    let standings = gateways.list.iter().map(|gateway| gateway.standing);
    (standings.collect(), gateways.hub.clone())
}
