//! Real sockets: two or three proxies in this process, each the host of a loopback address.

mod announce;
mod app;
mod binary;
mod certificates;
mod control;
mod ends;
mod forward;
mod handoff;
mod host;
mod http;
mod http_plain;
mod http_trunk;
mod kept;
mod limits;
mod ready;
mod reload;
mod restart;
mod sealed;
mod signals;
mod storm;
mod trunk;
mod udp;
mod upgrade;
mod web;
