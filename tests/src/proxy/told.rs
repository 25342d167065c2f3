//! What a proxy is told: routes and the verbs of its gates.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Proxy, TRUNK, address};
use crate::http::Answer;

/// The version of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64, pub u64);

impl Version {
    fn json(self) -> Value {
        json!({"epoch": self.0, "generation": self.1})
    }

    fn read(value: &Value) -> Option<Self> {
        Some(Self(
            value["epoch"].as_u64()?,
            value["generation"].as_u64()?,
        ))
    }
}

/// Limits of a parked gate that no test comes near.
#[must_use]
pub fn park_limits(limit: u32, timeout: Duration) -> Value {
    json!({"park_limit": limit, "park_timeout": timeout.as_secs_f64()})
}

fn usual() -> Value {
    park_limits(20_000, Duration::from_mins(1))
}

/// A target on the host of the proxy.
#[must_use]
pub fn local(at: SocketAddr) -> Value {
    json!({"local": {"addr": at.to_string()}})
}

/// A target on the host of another proxy.
#[must_use]
pub fn remote(number: u8) -> Value {
    let host = address(number);
    json!({"remote": {"host": host.to_string(), "trunk": format!("{host}:{TRUNK}")}})
}

/// A route of an application that is open.
#[must_use]
pub fn route(port: u16, application: &str, at: Version, target: &Value) -> Value {
    json!({
        "key": format!("{port}/tcp"),
        "application": application,
        "version": at.json(),
        "intent": {"open": target},
        "limits": usual(),
    })
}

impl Proxy {
    /// Tells it all its routes, and that the hosts 1 to 4 are its peers.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn set(&self, routes: &[Value]) -> anyhow::Result<Value> {
        self.try_set(routes)?.ok()
    }

    /// As [`Self::set`], whatever it answers.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_set(&self, routes: &[Value]) -> anyhow::Result<Answer> {
        let peers: Vec<String> = (1..=4).map(|peer| address(peer).to_string()).collect();
        let body = json!({"host": self.address().to_string(), "peers": peers, "routes": routes});
        self.send(("PUT", "/v1/routes"), Some(&body))
    }

    /// Holds new connections of an application.
    ///
    /// # Errors
    /// When it does not.
    pub fn prepare(&self, application: &str, at: Version) -> anyhow::Result<Value> {
        self.try_prepare(application, at, &usual())?.ok()
    }

    /// As [`Self::prepare`], with limits, whatever it answers.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_prepare(
        &self,
        application: &str,
        at: Version,
        limits: &Value,
    ) -> anyhow::Result<Answer> {
        let body = json!({
            "application": application,
            "version": at.json(),
            "lease": 30.0,
            "limits": limits,
        });
        self.send(("POST", "/v1/gates/prepare"), Some(&body))
    }

    /// Lets what flows finish.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_drain(
        &self,
        application: &str,
        at: Version,
        deadline: Duration,
    ) -> anyhow::Result<Answer> {
        let body = json!({
            "application": application,
            "version": at.json(),
            "deadline": deadline.as_secs_f64(),
        });
        self.send(("POST", "/v1/gates/drain"), Some(&body))
    }

    /// Resets what still flows.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_freeze(&self, application: &str, at: Version) -> anyhow::Result<Answer> {
        let body = json!({"application": application, "version": at.json()});
        self.send(("POST", "/v1/gates/freeze"), Some(&body))
    }

    /// Opens to the old target.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_rollback(&self, application: &str, at: Version) -> anyhow::Result<Answer> {
        let body = json!({"application": application, "version": at.json()});
        self.send(("POST", "/v1/gates/rollback"), Some(&body))
    }

    /// Leads one port somewhere else.
    ///
    /// # Errors
    /// When it does not.
    pub fn commit(
        &self,
        application: &str,
        at: Version,
        port: u16,
        target: &Value,
    ) -> anyhow::Result<Value> {
        self.try_commit(application, at, port, target)?.ok()
    }

    /// As [`Self::commit`], whatever it answers.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_commit(
        &self,
        application: &str,
        at: Version,
        port: u16,
        target: &Value,
    ) -> anyhow::Result<Answer> {
        let body = json!({
            "application": application,
            "version": at.json(),
            "targets": [{"key": format!("{port}/tcp"), "target": target}],
        });
        self.send(("POST", "/v1/gates/commit"), Some(&body))
    }

    /// A route as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn route(&self, port: u16) -> anyhow::Result<Value> {
        let reply = self.send(("GET", "/v1/routes"), None)?.ok()?;
        let routes = reply["routes"].as_array().context("no routes")?;
        let key = format!("{port}/tcp");
        let mut found = routes.iter().filter(|route| route["key"] == key.as_str());
        Ok(found.next().context("no such route")?.clone())
    }

    /// The version of a route that is in force, and its gate.
    ///
    /// # Errors
    /// When there is none.
    pub fn gate(&self, port: u16) -> anyhow::Result<(Version, String)> {
        let route = self.route(port)?;
        let gate = route["gate"].as_str().context("no gate")?.to_owned();
        Ok((
            Version::read(&route["version"]).context("no version")?,
            gate,
        ))
    }

    /// How many connections of a route are held.
    ///
    /// # Errors
    /// When there is no such route.
    pub fn parked(&self, port: u16) -> anyhow::Result<u64> {
        self.route(port)?["parked"].as_u64().context("no count")
    }

    /// How many connections of a route are relayed.
    ///
    /// # Errors
    /// When there is no such route.
    pub fn active(&self, port: u16) -> anyhow::Result<u64> {
        self.route(port)?["active"].as_u64().context("no count")
    }
}
