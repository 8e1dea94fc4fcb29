//! Passes a move's bulk messages from the guest on to the target's host, no faster than the
//! limits allow. While it waits, the guest's port fills up: nothing piles up here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::daemon::lock;
use crate::moving::bandwidth::Limit;
use crate::peer::BulkSender;
use crate::wire::bulk::Message;

/// Limits of a moment, MiB per second; 0: none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Of all moves from this host together.
    pub host: f64,
    /// Of one move.
    pub each: f64,
}

/// What all moves from this host have sent lately.
#[derive(Debug)]
pub struct Sending {
    begun: Instant,
    limit: Mutex<Limit>,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            limit: Mutex::new(Limit::new(0.0, 0.0)),
        }
    }
}

impl Sending {
    fn now_s(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// How long a move that sent `bytes` waits before it sends more.
    fn pause(&self, own: &mut Limit, limits: Limits, bytes: usize) -> Duration {
        let now = self.now_s();
        own.set(limits.each, now);
        let own = own.left(bytes, now);
        let mut all = lock(&self.limit);
        all.set(limits.host, now);
        Duration::from_secs_f64(all.left(bytes, now).max(own))
    }
}

/// A relay at work; it ends when this is dropped.
pub(super) struct Relay {
    task: JoinHandle<()>,
    bytes: Arc<AtomicU64>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Relays what comes to `host` until one side ends, which `ended` is told with the reason. `limits` are
    /// asked for anew with every message.
    pub(super) fn start<E, F>(
        mut incoming: mpsc::Receiver<Message>,
        mut sender: BulkSender,
        host: String,
        sending: Arc<Sending>,
        limits: impl Fn() -> Limits + Send + 'static,
        ended: E,
    ) -> Self
    where
        E: FnOnce(String) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            let mut own = Limit::new(0.0, sending.now_s());
            while let Some(message) = incoming.recv().await {
                match sender.send(&message).await {
                    Ok(sent) => {
                        counter.fetch_add(sent as u64, Ordering::Relaxed);
                        let pause = sending.pause(&mut own, limits(), sent);
                        if !pause.is_zero() {
                            tokio::time::sleep(pause).await;
                        }
                    }
                    Err(e) => return ended(format!("sending to {host}: {e}")).await,
                }
            }
            ended("the guest's bulk stream ended".into()).await;
        });
        Self { task, bytes }
    }

    /// Bytes sent so far, as they went over the network.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
