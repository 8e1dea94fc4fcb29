//! Turns: at most so many at a time, the most urgent first, else in the order of asking.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Who waits, most urgent first.
type Waiting = BTreeMap<(Reverse<i64>, u64), oneshot::Sender<Turn>>;

/// A queue for turns. Clones share it.
#[derive(Debug, Clone)]
pub struct Queue(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    most: usize,
    taken: usize,
    asked: u64,
    waiting: Waiting,
}

/// A turn; dropping it gives it to the next.
#[derive(Debug)]
pub struct Turn(Option<Queue>);

impl Queue {
    /// A queue for `most` turns at a time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            most: most.max(1),
            taken: 0,
            asked: 0,
            waiting: BTreeMap::new(),
        })))
    }

    /// Changes how many turns there are at a time; those that are taken stay so.
    pub fn allow(&self, most: usize) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.most = most.max(1);
        inner.fill(self);
    }

    /// Waits for a turn; a higher `urgency` comes first. Dropping the future leaves the queue.
    pub async fn turn(&self, urgency: i64) -> Turn {
        loop {
            let ours = {
                let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if inner.taken < inner.most && !inner.anyone_waits() {
                    inner.taken += 1;
                    return Turn(Some(self.clone()));
                }
                let (tx, rx) = oneshot::channel();
                inner.asked += 1;
                let key = (Reverse(urgency), inner.asked);
                inner.waiting.insert(key, tx);
                rx
            };
            if let Ok(turn) = ours.await {
                return turn;
            }
        }
    }

    fn give(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.taken -= 1;
        inner.fill(self);
    }
}

impl Inner {
    /// Gives turns to those that wait.
    fn fill(&mut self, queue: &Queue) {
        while self.taken < self.most {
            let Some((_, next)) = self.waiting.pop_first() else {
                return;
            };
            self.taken += 1;
            // Who has left the queue is passed over; its turn must not give back in here.
            if let Err(mut turn) = next.send(Turn(Some(queue.clone()))) {
                self.taken -= 1;
                turn.0 = None;
            }
        }
    }

    fn anyone_waits(&mut self) -> bool {
        self.waiting.retain(|_, w| !w.is_closed());
        !self.waiting.is_empty()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn the_urgent_first_then_in_order() {
        let queue = Queue::new(1);
        let first = queue.turn(0).await;
        let mut second = pin!(queue.turn(0));
        let mut third = pin!(queue.turn(0));
        let mut urgent = pin!(queue.turn(9));
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending());
        assert!(poll(urgent.as_mut()).is_pending());
        drop(first);
        assert!(poll(second.as_mut()).is_pending());
        let turn = urgent.await;
        drop(turn);
        let turn = second.await;
        assert!(poll(third.as_mut()).is_pending());
        drop(turn);
        drop(third.await);
    }

    #[tokio::test]
    async fn more_may_be_allowed() {
        let queue = Queue::new(1);
        let first = queue.turn(0).await;
        let mut second = pin!(queue.turn(0));
        assert!(poll(second.as_mut()).is_pending());
        queue.allow(2);
        let second = second.await;
        queue.allow(1);
        drop(first);
        assert!(poll(pin!(queue.turn(0))).is_pending());
        drop(second);
        drop(queue.turn(0).await);
    }

    #[tokio::test]
    async fn who_leaves_the_queue_blocks_nobody() {
        let queue = Queue::new(2);
        let (a, b) = (queue.turn(0).await, queue.turn(0).await);
        {
            let mut gone = Box::pin(queue.turn(5));
            assert!(poll(gone.as_mut()).is_pending());
            // Given its turn, and dropped with it unseen.
            drop(a);
        }
        let mut c = pin!(queue.turn(0));
        let c = match poll(c.as_mut()) {
            Poll::Ready(turn) => turn,
            Poll::Pending => panic!("a turn was lost"),
        };
        drop((b, c));
        drop(queue.turn(0).await);
        assert_eq!(queue.0.lock().unwrap().taken, 0);
    }
}
