//! Libraries that panic on bytes they did not expect: here that is an error, for the bytes are somebody else's.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a library's code over foreign bytes; a panic in it is an `Err` of its message.
///
/// What `run` changes is not to be used after an `Err`. Not nested.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    IS_GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IS_GUARDED.set(false);
    outcome.map_err(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().map_or("it panics", |message| message).to_string(),
    })
}

/// Whether a panic on this thread is expected: a panic hook that ends the process, or tells of a bug, passes over it.
pub fn panic_is_expected() -> bool {
    IS_GUARDED.get()
}
