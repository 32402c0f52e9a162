use super::*;
use crate::config::{Cache, LoadContext, SourceFile, load};
use crate::model::HubUse;

pub(super) fn desired(text: &str) -> DesiredState {
    let source = SourceFile {
        path: "/a.spc".into(),
        text: Ok(text.into()),
    };
    let mut given = LoadContext {
        lookup: None,
        has_gateway: true,
    };
    load(&[source], &mut given, &mut Cache::default()).desired
}

const CLOUD: &str = "connection \"c\" {\n  plugin = \"cloud\"\n  token = \"t\"\n}\n";

fn cloud(token: &str) -> Arc<Connection> {
    let text = CLOUD.replace("\"t\"", &format!("\"{token}\""));
    desired(&text).connections["c"].clone()
}

fn view(rows: &[(&str, GatewayRow)]) -> GatewayView {
    let rows = rows
        .iter()
        .map(|(name, row)| ((*name).to_owned(), row.clone()));
    GatewayView {
        address: Some(Address {
            options: [("host".to_owned(), "g".to_owned())].into(),
            user: "r".into(),
            password: Secret::new("p"),
        }),
        rows: rows.collect(),
        error: None,
        write_error: None,
    }
}

/// What the hub has of a connection whose gateway is as in the view.
fn part_of(connection: &Connection, view: &GatewayView) -> Connection {
    let gateway = Gateway {
        view: Arc::new(view.clone()),
        ..Gateway::default()
    };
    hub_part(connection, &gateway, &LanesOf::default())
}

/// The row of an aggregator's lane with these members.
pub(super) fn lane_row(members: &[&str]) -> GatewayRow {
    let members: Vec<String> = members.iter().map(|name| (*name).to_owned()).collect();
    GatewayRow {
        status: Status::Ready,
        error: None,
        warnings: Vec::new(),
        left_out: Vec::new(),
        target_hash: Some("aggregator:x".into()),
        schema_hash: Some("shape".into()),
        connections: members.clone(),
        members: Some(members),
    }
}

fn row(connection: &Connection, status: Status) -> GatewayRow {
    GatewayRow {
        status,
        error: (status == Status::Error).then(|| "no such host".to_owned()),
        warnings: vec!["a table is left out".into()],
        left_out: vec![],
        target_hash: Some(connection.target_hash().to_owned()),
        schema_hash: Some("s".into()),
        connections: Vec::new(),
        members: None,
    }
}

#[test]
fn the_hub_waits_until_the_gateway_has_the_tables_of_this_configuration() {
    let (one, two) = (cloud("one"), cloud("two"));
    for view in [
        GatewayView::default(),
        view(&[]),
        view(&[("c", row(&two, Status::Ready))]),
        view(&[("c", row(&one, Status::Updating))]),
        view(&[("c", row(&one, Status::Pending))]),
    ] {
        let part = part_of(&one, &view);
        assert!(part.awaits_source, "{view:?}");
        // A probe in the hub would load the wrapper there, and show its options.
        let target = part.target.unwrap();
        assert_eq!(
            (target.wrapper.as_str(), target.probe),
            (LANE_WRAPPER, ProbeMethod::None)
        );
        assert!(
            target
                .server
                .values()
                .all(|option| !option.value.contains("one"))
        );
    }
    let part = part_of(&one, &view(&[("c", row(&one, Status::Ready))]));
    assert!(!part.awaits_source);
    assert_eq!(part.warnings, ["a table is left out"]);
    let target = part.target.unwrap();
    assert_eq!(
        (target.wrapper.as_str(), target.in_gateway),
        ("postgres_fdw", false)
    );
    assert_eq!(target.import.schema, "c");
    assert_eq!(target.server["host"].value, "g");
    assert_eq!(target.mapping["password"].expose(), "p");
    let shows = |value: &OptionValue| value.value.contains("one");
    assert!(!target.server.values().any(shows));
}

#[test]
fn another_configuration_or_other_tables_are_another_server() {
    let hash = |connection: &Connection, row: GatewayRow| {
        part_of(connection, &view(&[("c", row)]))
            .target_hash()
            .to_owned()
    };
    let (one, two) = (cloud("one"), cloud("two"));
    let first = hash(&one, row(&one, Status::Ready));
    assert_eq!(first, hash(&one, row(&one, Status::Pending)));
    assert_ne!(first, hash(&two, row(&two, Status::Ready)));
    let other_tables = GatewayRow {
        schema_hash: Some("other".into()),
        ..row(&one, Status::Ready)
    };
    assert_ne!(first, hash(&one, other_tables));
    let left_out = TableWarning {
        table: Some("tree".into()),
        text: "its type ltree is nowhere".into(),
    };
    let less = GatewayRow {
        left_out: vec![left_out.clone()],
        ..row(&one, Status::Ready)
    };
    assert_ne!(first, hash(&one, less.clone()));
    assert_eq!(part_of(&one, &view(&[("c", less)])).left_out, [left_out]);
}

#[test]
fn what_fails_in_the_gateway_or_keeps_the_hub_from_it_is_the_error() {
    let one = cloud("one");
    let part = part_of(&one, &view(&[("c", row(&one, Status::Error))]));
    assert_eq!(part.target.unwrap_err(), "no such host");
    let away = GatewayView {
        error: Some("refused".into()),
        ..view(&[("c", row(&one, Status::Ready))])
    };
    assert_eq!(
        part_of(&one, &away).target.unwrap_err(),
        "the gateway: refused"
    );
}

#[test]
fn a_gateway_that_cannot_write_is_the_error_of_what_it_does_not_have() {
    let (one, two) = (cloud("one"), cloud("two"));
    let full = GatewayView {
        write_error: Some("no space left".into()),
        ..view(&[("c", row(&one, Status::Ready))])
    };
    assert_eq!(part_of(&one, &full).target.unwrap().wrapper, LANE_WRAPPER);
    let error = "the gateway cannot write: no space left";
    assert_eq!(part_of(&two, &full).target.unwrap_err(), error);
    let empty = GatewayView {
        rows: BTreeMap::new(),
        ..full
    };
    assert_eq!(part_of(&one, &empty).target.unwrap_err(), error);
}

#[test]
fn each_side_holds_its_own() {
    let text = [
        CLOUD,
        "connection \"d\" {\n  plugin = \"cloud\"\n  import_schema = \"disabled\"\n}\n",
        "connection \"h\" {\n  plugin = \"cloud\"\n  gateway = false\n}\n",
        "connection \"p\" {\n  plugin = \"postgres\"\n  dbname = \"x\"\n}\n",
        "connection \"q\" {\n  plugin = \"postgres\"\n  dbname = \"x\"\n  gateway = true\n}\n",
        "connection \"all\" {\n  plugin = \"cloud\"\n  type = \"aggregator\"\n  \
         connections = [\"*\"]\n}\n",
    ]
    .concat();
    let mut gateway = desired(&text);
    keep_gateway_part(&mut gateway, &Gateways::default(), 0);
    assert_eq!(gateway.hub_use, HubUse::Unknown);
    let names: Vec<&str> = gateway.connections.keys().map(String::as_str).collect();
    assert_eq!(names, ["c", "q"]);

    let mut hub = desired(&text);
    let mut parts = HubParts::default();
    assert!(parts.apply(&mut hub, &Arc::default()));
    assert_eq!(parts.names().collect::<Vec<_>>(), ["c", "d", "q"]);
    let is_waiting = |name: &str| hub.connections[name].awaits_source;
    assert!(is_waiting("c") && is_waiting("q") && !is_waiting("p") && !is_waiting("h"));
}

#[test]
fn a_part_is_made_anew_only_where_something_differs() {
    let one = desired(CLOUD);
    let view = Arc::new(view(&[("c", row(&one.connections["c"], Status::Ready))]));
    let mut parts = HubParts::default();
    let mut apply = |view: &Arc<GatewayView>| {
        let mut hub = one.clone();
        parts.apply(&mut hub, &Arc::new(Gateways::single(view.clone())));
        hub.connections["c"].clone()
    };
    let first = apply(&view);
    assert!(Arc::ptr_eq(&first, &apply(&view)));
    let mut other = GatewayView::clone(&view);
    other.rows.get_mut("c").unwrap().schema_hash = Some("other".into());
    assert!(!Arc::ptr_eq(&first, &apply(&Arc::new(other))));
}

#[test]
fn a_row_that_is_under_way_is_no_news_and_its_end_is() {
    let one = cloud("one");
    let with = |status| view(&[("c", row(&one, status))]);
    let (empty, ready) = (view(&[]), with(Status::Ready));
    for status in [Status::Pending, Status::Updating, Status::Deleting] {
        assert!(!with(status).differs_for_hub(&empty), "{status}");
        assert!(!with(status).differs_for_hub(&ready), "{status}");
        assert!(ready.differs_for_hub(&with(status)), "{status}");
    }
    assert!(with(Status::Error).differs_for_hub(&ready));
    assert!(empty.differs_for_hub(&ready));
    assert!(!ready.differs_for_hub(&ready));
    let full = GatewayView {
        write_error: Some("no space left".into()),
        ..ready.clone()
    };
    assert!(full.differs_for_hub(&ready) && ready.differs_for_hub(&full));
}

#[test]
fn a_request_for_an_aggregator_concerns_its_members() {
    let text = [
        CLOUD,
        "connection \"d\" {\n  plugin = \"cloud\"\n}\n",
        "connection \"p\" {\n  plugin = \"postgres\"\n  dbname = \"x\"\n}\n",
        "connection \"all\" {\n  plugin = \"cloud\"\n  type = \"aggregator\"\n  \
         connections = [\"*\"]\n}\n",
        "connection \"more\" {\n  plugin = \"cloud\"\n  type = \"aggregator\"\n  \
         connections = [\"all\"]\n}\n",
    ]
    .concat();
    let mut parts = HubParts::default();
    parts.apply(&mut desired(&text), &Arc::default());
    let named = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        parts.named(Some(&names))
    };
    assert_eq!(parts.named(None), ["c", "d"]);
    assert_eq!(named(&["all"]), ["c", "d"]);
    assert_eq!(named(&["d", "more", "p", "unknown"]), ["c", "d"]);
    assert_eq!(named(&["d", "p"]), ["d"]);
    assert_eq!(named(&["p", "unknown"]), [""; 0]);
}

#[test]
fn connections_of_a_static_plugin_share_the_tables_of_the_gateway() {
    let shape = |mode: &str| {
        let plugin = format!("plugin \"cloud\" {{\n  schema_mode = \"{mode}\"\n}}\n");
        let c = desired(&(plugin + CLOUD)).connections["c"].clone();
        let part = part_of(&c, &view(&[("c", row(&c, Status::Ready))]));
        part.target.unwrap().shared_shape
    };
    assert_eq!(shape("static").as_deref(), Some("s"));
    assert_eq!(shape("dynamic"), None);
}

#[test]
fn the_gateway_keeps_the_names_of_the_source_and_the_hub_renames() {
    let with = |more: &str| {
        let text = CLOUD.replace("\"t\"", &format!("\"t\"\n{more}"));
        desired(&text).connections["c"].clone()
    };
    let plain = with("");
    let named = with("  import {\n    names = \"lower\"\n  }\n");
    assert_eq!(plain.target_hash(), named.target_hash());
    let parts = [&plain, &named].map(|connection| {
        let view = view(&[("c", row(connection, Status::Ready))]);
        part_of(connection, &view)
    });
    assert_ne!(parts[0].target_hash(), parts[1].target_hash());
    assert!(named.target.as_ref().unwrap().naming().is_none());
    assert!(parts[1].target.as_ref().unwrap().naming().is_some());
}
