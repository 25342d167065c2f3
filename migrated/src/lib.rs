//! `migrated`: owns the volumes and containers of its host, converges them to the deployment,
//! runs migrations, and tells `proxyd` what is true.
//!
//! | module | does |
//! |---|---|
//! | [`host`] | holds what the parts share |
//! | [`ledger`] | the journal: who owns what, durably |
//! | [`desired`] | the deployment in force |
//! | [`reconcile`] | makes this host what it should be |
//! | [`applications`], [`health`] | starts an application until it is healthy, and stops it |
//! | [`clearance`], [`fence`] | asks before it starts, and gives way to a newer owner |
//! | [`failover`] | takes over from an owner that an operator fenced |
//! | [`birth`] | the first owner of an application |
//! | [`migrations`], [`source`] | moves that this host coordinates |
//! | [`destination`] | moves that come to this host |
//! | [`throttle`] | holds back an application whose rounds do not shrink |
//! | [`deploy`], [`files`] | takes a deployment for the cluster |
//! | [`garbage`] | finds and removes what an accident left |
//! | [`status`] | what this host, and all hosts together, say |
//! | [`prediction`] | what a move would take |
//! | [`routes`], [`proxy`] | what `proxyd` is told |
//! | [`peers`] | the other hosts |
//! | [`api`] | HTTP |
//! | [`storage`], [`runtime`] | volumes and instances, each behind a trait |
//! | [`stream`], [`clock`], [`incarnation`], [`metrics`] | small helpers of the above |

#![forbid(unsafe_code)]

pub mod api;
pub mod applications;
pub mod birth;
pub mod clearance;
pub mod clock;
pub mod deploy;
pub mod desired;
pub mod destination;
pub mod failover;
pub mod fence;
pub mod files;
#[cfg(test)]
mod fixtures;
pub mod garbage;
pub mod health;
pub mod host;
pub mod incarnation;
pub mod ledger;
pub mod metrics;
pub mod migrations;
pub mod peers;
pub mod prediction;
pub mod proxy;
pub mod rebuild;
pub mod reconcile;
pub mod routes;
pub mod runtime;
pub mod service;
pub mod source;
pub mod status;
pub mod storage;
pub mod stream;
pub mod throttle;
