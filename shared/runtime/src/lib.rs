//! What the daemons and the command share at run time. No business logic lives here.
//!
//! | module | holds |
//! |---|---|
//! | [`supervise`] | tasks with a name, an owner and an orderly end |
//! | [`signals`] | SIGTERM and SIGINT stop, SIGHUP reloads |
//! | [`http_server`] | HTTP over Unix sockets, plain TCP and mutual TLS |
//! | [`http_client`] | the other side: JSON requests and streamed bodies |
//! | [`tls`] | certificates of hosts, loaded and reloaded |
//! | [`telemetry`] | logs, metrics, `/metrics`, `/healthz`, `/readyz` |
//! | [`store`] | files that are replaced whole and read with a checksum |
//! | [`notify`] | what systemd is told |
//! | [`descriptor_store`] | sockets that systemd keeps for the next start |
//! | [`command`] | external programs with a deadline |
//! | [`failpoint`] | where tests of crashes stop or kill a daemon |
//! | [`backoff`] | how long to wait before the next try |
//! | [`report`] | an error and its causes on one line |

#![forbid(unsafe_code)]

pub mod backoff;
pub mod command;
pub mod descriptor_store;
pub mod failpoint;
pub mod http_client;
pub mod http_server;
pub mod notify;
pub mod report;
pub mod signals;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod tls;
