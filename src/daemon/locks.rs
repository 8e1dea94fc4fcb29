//! Locks by name: what concerns one domain or one feature's name holds up no other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A lock for each name, made when it is asked for.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<String, Arc<AsyncMutex<()>>>>);

impl Locks {
    /// Waits for the lock of a name. Taken in turn.
    pub async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        let one = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are of no use.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(all.entry(name.to_owned()).or_default())
        };
        one.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_name_holds_up_no_other() {
        let locks = Locks::default();
        let held = locks.lock("hung").await;
        drop(locks.lock("other").await);
        let mut same = std::pin::pin!(locks.lock("hung"));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(same.as_mut().poll(&mut context).is_pending());
        drop(locks.lock("other").await);
        drop(held);
        drop(same.await);
        drop(locks.lock("x").await);
        assert_eq!(locks.0.lock().unwrap().len(), 1, "unused ones go");
    }
}
