//! Blocking calls on threads, bounded, with a timeout that the caller sees.
//!
//! A worker is a thread that lives for one call: calls are a few per second, a thread costs tens
//! of microseconds, and a thread that libvirt never gives back is then nobody's loss but its
//! permit's. A domain's calls of one lane run one after the other, so that a domain that libvirt
//! is stuck on holds one worker at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Semaphore, oneshot};

use super::HypervisorError;

/// A set of workers for one kind of call.
#[derive(Debug)]
pub(super) struct Lane {
    permits: Arc<Semaphore>,
    domains: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

impl Lane {
    /// A lane of at most `workers` calls at a time.
    pub fn new(workers: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(workers)),
            domains: Mutex::default(),
        }
    }

    fn domain(&self, name: &str) -> Arc<AsyncMutex<()>> {
        let mut map = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds or waits for are of no use; domains come and go.
        map.retain(|_, lock| Arc::strong_count(lock) > 1);
        map.entry(name.to_owned()).or_default().clone()
    }

    /// Runs `f` on a thread. `what` is for messages. After `timeout`, waiting for a worker
    /// included, the caller gets [`HypervisorError::Timeout`] while the thread goes on.
    pub async fn run<T: Send + 'static>(
        &self,
        domain: Option<&str>,
        what: &str,
        timeout: Duration,
        f: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let work = async {
            let lock = match domain {
                Some(name) => Some(self.domain(name).lock_owned().await),
                None => None,
            };
            let permit = self.permits.clone().acquire_owned().await;
            let (tx, rx) = oneshot::channel();
            std::thread::Builder::new()
                .name("libvirt-call".into())
                .spawn(move || {
                    let result = f();
                    drop((permit, lock));
                    // The caller may have given up.
                    let _ = tx.send(result);
                })
                .map_err(HypervisorError::Thread)?;
            rx.await.map_err(|_| HypervisorError::Answer {
                what: what.to_owned(),
                message: "the call's thread ended without a result".into(),
            })?
        };
        tokio::time::timeout(timeout, work)
            .await
            .unwrap_or_else(|_| {
                Err(HypervisorError::Timeout {
                    what: what.to_owned(),
                    seconds: timeout.as_secs(),
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_stuck_domain_holds_one_worker_and_nobody_else_up() {
        let lane = Arc::new(Lane::new(2));
        let (release, stuck) = std::sync::mpsc::channel::<()>();
        let e = lane
            .run(Some("a"), "stuck", Duration::from_millis(50), move || {
                let _ = stuck.recv();
                Ok(())
            })
            .await
            .unwrap_err();
        assert!(matches!(e, HypervisorError::Timeout { .. }), "{e}");
        // Further calls for the domain wait outside of the pool ...
        for _ in 0..5 {
            let e = lane
                .run(Some("a"), "next", Duration::from_millis(20), || Ok(()))
                .await
                .unwrap_err();
            assert!(matches!(e, HypervisorError::Timeout { .. }), "{e}");
        }
        // ... so that the second worker is free for others.
        let start = Instant::now();
        lane.run(Some("b"), "other", LONG, || Ok(())).await.unwrap();
        lane.run(None, "host", LONG, || Ok(())).await.unwrap();
        assert!(start.elapsed() < LONG / 2);
        release.send(()).unwrap();
        lane.run(Some("a"), "again", LONG, || Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_panicking_call_is_an_error_and_frees_its_worker() {
        let lane = Lane::new(1);
        let e = lane
            .run::<()>(Some("a"), "bad", LONG, || panic!("on purpose"))
            .await
            .unwrap_err();
        assert!(matches!(e, HypervisorError::Answer { .. }), "{e}");
        lane.run(Some("a"), "good", LONG, || Ok(())).await.unwrap();
    }
}
