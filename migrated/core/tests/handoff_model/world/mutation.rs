//! Guards that are taken out, and what is broken then.

/// A guard that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The final snapshot does not wait for the page cache.
    NoFlush,
    /// The final snapshot does not wait for the last process.
    Straggler,
    /// Messages are not told apart by their migration.
    AnyMigration,
    /// The source calls it off after C1.
    AbortAfterRelease,
    /// The destination starts on a promise.
    EarlyStart,
    /// The runtime starts the instance when its host boots.
    RestartPolicy,
    /// The destination gives it back after clients were served.
    ReturnAfterServing,
    /// The grant is sent before the release is durable.
    GrantBeforeRecord,
    /// The way back after a return rolls the volume back, each time it is tried.
    ReclaimRollsBack,
    /// The destination forgets a return before the source knows of it.
    ForgetsReturned,
    /// The destination drops a promise that nobody asked for in a while.
    PromiseExpires,
    /// The destination opens its gate before it is durable that it serves.
    GateBeforeServing,
    /// The destination opens its gate on a promise.
    GateBeforeAdopted,
    /// A restarted daemon goes on with one open migration only.
    ResumesOne,
    /// A proxy takes what it is told, however old.
    ProxyTakesAnything,
    /// A proxy whose park was not renewed leads to the old target again.
    LeaseOpens,
    /// A daemon that remembers no generation does not ask its proxy which one it has.
    NoOvertake,
}

impl Mutation {
    /// The seven mutants of the first model of the handoff, by their names there.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "noflush" => Self::NoFlush,
            "nostopcheck" => Self::Straggler,
            // What was an attempt there is a migration of its own here.
            "noattempt" => Self::AnyMigration,
            "abortafter" => Self::AbortAfterRelease,
            "earlystart" => Self::EarlyStart,
            "restartpolicy" => Self::RestartPolicy,
            "returnserved" => Self::ReturnAfterServing,
            _ => panic!("no mutant is named {name}"),
        }
    }
}

/// An invariant that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// 1: two instances run.
    TwoInstances,
    /// 2: two hosts own it, or have owned it at the same epoch.
    TwoOwners,
    /// 3: an instance runs on a volume without an acknowledged write.
    WriteLost,
    /// 4: a gate is open where nobody is the owner.
    GateWithoutOwner,
    /// 4: a proxy went back in (epoch, generation).
    RouteWentBack,
}
