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
    /// What is cut over is stamped when it was released, not before.
    StampAfterRelease,
    /// What came back is stamped when it runs again, not before.
    StampAfterStart,
    /// A destination says that it gave it back before its stamps do.
    SaysReturnedUnstamped,
    /// What failed to start is dropped before it is stamped as given back.
    RetiresBeforeStamp,
    /// What was called off runs when the destination has let go of its promise, and is stamped
    /// later.
    StampsLater,
    /// A journal is made again without asking about what was perhaps released.
    TrustsMoving,
    /// A journal is made again without the word of the other host.
    RebuildsAlone,
    /// A host starts what it owns without asking.
    NoAsking,
    /// What was adopted is started without asking.
    StartsAdoptedUncleared,
    /// A daemon that does not answer is taken for a host that is down.
    TakesRefusalForSilence,
    /// A host that comes back goes on alone when the new owner's whole host is down.
    GoesOnAlone,
    /// A host that hears of a newer owner goes on with its migration.
    DriverGoesOn,
    /// What an operator gave to a host is returned to the host that is fenced.
    ReturnsToFenced,
    /// A host that never owned it does not write down that it heard of a newer owner.
    ForgetsWhatItHeard,
    /// A promise to take over is taken for ownership.
    TakesPromiseForOwner,
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
