//! The demonstration: three applications on a lab, and the stateful one moves under load.

pub(crate) mod images;
