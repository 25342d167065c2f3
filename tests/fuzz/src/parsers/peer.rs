//! What `migrated` hears from other hosts and from people, as JSON: a line for each message.

use rehome_shared::api::cluster::{
    DeployRequest, Desired, DrainRequest, FailoverRequest, MoveRequest, Status,
};
use rehome_shared::api::peer::{
    Gossip, HandoffRef, HandoffView, HostReport, Offer, PreflightReply, Ready, StreamProgress,
    VerifyRequest, VolumesQuery, VolumesReply,
};

use super::document;

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        document::<HostReport>(line);
        document::<Gossip>(line);
        document::<Offer>(line);
        document::<Ready>(line);
        document::<VerifyRequest>(line);
        document::<HandoffRef>(line);
        document::<HandoffView>(line);
        document::<StreamProgress>(line);
        document::<VolumesQuery>(line);
        document::<VolumesReply>(line);
        document::<PreflightReply>(line);
        document::<Desired>(line);
        document::<DeployRequest>(line);
        document::<MoveRequest>(line);
        document::<DrainRequest>(line);
        document::<FailoverRequest>(line);
        document::<Status>(line);
    }
}
