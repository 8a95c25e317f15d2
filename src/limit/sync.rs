//! The atomics and locks the gate is built from: `std`'s, or loom's look-alikes when the model
//! checker runs (`--cfg tidegate_loom`; not plain `loom`, which tokio would take as meant for it).

#[cfg(tidegate_loom)]
pub(super) use loom::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(tidegate_loom))]
pub(super) use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Locks, also after a panic elsewhere: every change made under our locks is complete before anything
/// that can panic runs, and a gate that stopped answering would take the whole port with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
