//! Tasks of which there are many: one for each connection.
//!
//! What [`Supervisor::spawn`] keeps for each task is looked at whenever the task is woken, and
//! shared by all of them. Here a task is known by its handle alone, which is touched when it
//! begins and when it ends.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use futures_util::FutureExt;
use tokio::task::AbortHandle;

use super::{Criticality, Root, Shared, Supervisor, start};

/// The tasks of one supervisor, its groups' not included.
#[derive(Debug, Default)]
pub(super) struct Light {
    /// The root knows that there may be some.
    known: bool,
    last: u64,
    /// Empty until the task was started.
    handles: HashMap<u64, Option<AbortHandle>>,
}

#[cfg(test)]
impl Light {
    pub(super) fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }
}

/// A task that runs. Dropped with it, after its future.
struct Member {
    shared: Arc<Shared>,
    id: u64,
}

impl Member {
    fn enter(shared: &Arc<Shared>) -> Self {
        let mut light = shared.light();
        if !std::mem::replace(&mut light.known, true) {
            let mut all = shared
                .root
                .light
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.retain(|other: &Weak<Shared>| other.strong_count() > 0);
            all.push(Arc::downgrade(shared));
        }
        light.last = light.last.wrapping_add(1);
        let id = light.last;
        light.handles.insert(id, None);
        drop(light);
        shared.enter();
        Self {
            shared: Arc::clone(shared),
            id,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let handle = self.shared.light().handles.remove(&self.id);
        drop(handle);
        self.shared.leave();
    }
}

impl Supervisor {
    /// Starts a task like [`Supervisor::spawn`], an ordinary one of very many. It may end at any
    /// time; a panic is logged; it is waited for, and dropped when it has not ended by the end of
    /// the stop's grace.
    pub fn spawn_light<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.shared.drop_now.is_cancelled() {
            return;
        }
        let member = Member::enter(&self.shared);
        let id = member.id;
        let task = AssertUnwindSafe(future).catch_unwind().map(move |end| {
            let root = &member.shared.root;
            root.note_end(name, (Criticality::Ordinary, false), end);
        });
        let handle = start(task);
        if let Some(slot) = self.shared.light().handles.get_mut(&id) {
            *slot = Some(handle.clone());
        }
        if self.shared.drop_now.is_cancelled() {
            // The drop may have come before the handle was in its place.
            handle.abort();
        }
    }
}

impl Shared {
    fn light(&self) -> MutexGuard<'_, Light> {
        self.light.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Root {
    /// Drops the tasks of those supervisors whose tasks are to be dropped.
    pub(super) fn drop_light(&self) {
        let known = self.light.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Arc<Shared>> = known.iter().filter_map(Weak::upgrade).collect();
        // A task that begins holds its supervisor's lock when it takes this one.
        drop(known);
        for shared in all.iter().filter(|shared| shared.drop_now.is_cancelled()) {
            let light = shared.light();
            let handles: Vec<AbortHandle> = light.handles.values().flatten().cloned().collect();
            drop(light);
            handles.iter().for_each(AbortHandle::abort);
        }
    }
}
