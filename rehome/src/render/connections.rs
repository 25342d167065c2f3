//! The live connections of one `proxyd`.

use rehome_shared::api::proxy::{ConnectionInfo, ConnectionsReply};
use rehome_shared::units::Bytes;

use super::{NOTHING, or_nothing, seconds, table};

/// The table of connections, oldest first, and how many there are where not all are in it.
pub(crate) fn connections(reply: &ConnectionsReply) -> String {
    const HEADER: [&str; 8] = [
        "ROUTE", "CLIENT", "STATE", "GOES TO", "AGE", "IN", "OUT", "REQUESTS",
    ];
    if reply.connections.is_empty() {
        return "no connections\n".to_owned();
    }
    let mut ordered: Vec<_> = reply.connections.iter().collect();
    ordered.sort_by(|a, b| b.age.cmp(&a.age).then(a.id.cmp(&b.id)));
    let rows: Vec<_> = ordered.into_iter().map(row).collect();
    let table = table(&HEADER, &rows);
    let shown = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    if reply.total > shown {
        return format!("{table}the oldest {shown} of {}\n", reply.total);
    }
    table
}

fn row(connection: &ConnectionInfo) -> Vec<String> {
    let state = if connection.state.is_empty() {
        NOTHING
    } else {
        connection.state.as_str()
    };
    vec![
        connection.route.to_string(),
        connection.client.to_string(),
        state.to_owned(),
        or_nothing(connection.upstream.as_ref()),
        seconds(connection.age.as_secs_f64()),
        Bytes(connection.bytes_in).to_string(),
        Bytes(connection.bytes_out).to_string(),
        or_nothing(connection.requests.as_ref()),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_parked_connection_goes_nowhere_yet() {
        let connection = |id, state: &str, age, upstream: Option<&str>| ConnectionInfo {
            id,
            route: "5432/tcp".parse().unwrap(),
            client: "10.0.0.9:40000".parse().unwrap(),
            state: state.to_owned(),
            upstream: upstream.map(str::to_owned),
            age: Duration::from_secs(age),
            bytes_in: 10,
            bytes_out: 2048,
            requests: upstream.map(|_| 7),
        };
        let mut reply = ConnectionsReply {
            connections: vec![
                connection(2, "parked", 1, None),
                connection(1, "relaying", 5, Some("172.18.0.2:5432")),
            ],
            total: 2,
        };
        let text = connections(&reply);
        assert_eq!(
            text,
            "ROUTE     CLIENT          STATE     GOES TO          AGE     IN    OUT       REQUESTS\n\
             5432/tcp  10.0.0.9:40000  relaying  172.18.0.2:5432  5.00 s  10 B  2.00 KiB  7\n\
             5432/tcp  10.0.0.9:40000  parked    -                1.00 s  10 B  2.00 KiB  -\n"
        );
        reply.total = 12_345;
        assert!(connections(&reply).ends_with("\nthe oldest 2 of 12345\n"));
    }

    #[test]
    fn none_is_said_in_words() {
        let none = ConnectionsReply {
            connections: Vec::new(),
            total: 0,
        };
        assert_eq!(connections(&none), "no connections\n");
    }
}
