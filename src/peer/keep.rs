//! Keeps one peer's control connection up and watches whether the peer answers.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{debug, info, warn};
use zbus::MessageStream;

use super::slot::{Control, Shared, Slot, control};
use super::{INTERFACE, PATH, PeerError, PeerEvent};
use crate::host::HostState;
use crate::transport::{Protocol, dial};

/// First pause before dialling again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause before dialling again.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What is known of a peer's health.
struct Health {
    /// Last answer, or the start.
    answered: Instant,
    /// Whether it is up; unknown before the first event.
    up: Option<bool>,
    /// Latest failure, in words.
    reason: String,
}

/// Dials, asks for the state every `refresh`, dials again. Never ends.
pub(super) async fn keep(shared: Arc<Shared>, slot: Arc<Slot>, events: mpsc::Sender<PeerEvent>) {
    let health = Mutex::new(Health {
        answered: Instant::now(),
        up: None,
        reason: "no connection yet".into(),
    });
    let keeper = Keeper {
        shared,
        slot,
        events,
        health,
    };
    tokio::join!(keeper.dial(), keeper.watch());
}

/// A connection that ends when this is dropped, also for calls under way.
struct Held(Arc<Control>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.cut.cut();
    }
}

/// A connection on which the peer has answered.
struct Open {
    held: Held,
    news: MessageStream,
    state: HostState,
}

/// Why there is no answer; the host is named beside it.
fn why(e: PeerError) -> String {
    match e {
        PeerError::Unreachable { reason, .. } => reason,
        PeerError::Protocol { message, .. } => message,
        other => other.to_string(),
    }
}

/// The peer's announcements.
async fn news(control: &Control) -> zbus::Result<MessageStream> {
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .path(PATH)
        .interface(INTERFACE)
        .member("HostStateChanged")
        .build()?;
    MessageStream::for_match_rule(rule, &control.bus, Some(NonZeroUsize::MIN)).await
}

struct Keeper {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    events: mpsc::Sender<PeerEvent>,
    health: Mutex<Health>,
}

impl Keeper {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self) {
        let mut pause = BACKOFF_MIN;
        loop {
            let reason = match self.connect().await {
                Ok(open) => {
                    pause = BACKOFF_MIN;
                    self.slot.set(Ok(open.held.0.clone()));
                    self.answered(open.state).await;
                    self.use_up(&open.held.0, open.news).await
                }
                Err(why) => why,
            };
            debug!(host = self.slot.name, "no connection: {reason}");
            self.health().reason.clone_from(&reason);
            self.slot.set(Err(reason));
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// A connection counts only once the peer has told its state on it.
    async fn connect(&self) -> Result<Open, String> {
        let (shared, slot) = (&self.shared, &self.slot);
        let link = dial(
            shared.pki.as_ref(),
            &slot.route,
            Protocol::Control,
            shared.timeout,
        )
        .await
        .map_err(|e| e.to_string())?;
        let held = Held(Arc::new(control(link).await.map_err(|e| e.to_string())?));
        // Announcements from the first on; they must be taken while the answer is awaited.
        let mut news = news(&held.0).await.map_err(|e| e.to_string())?;
        let mut announced = None;
        let control = held.0.clone();
        let mut ask = std::pin::pin!(self.ask(&control));
        let state = loop {
            tokio::select! {
                answer = &mut ask => break answer.map_err(why)?,
                message = news.next() => match message {
                    Some(Ok(message)) => announced = self.announced(&message).or(announced),
                    _ => return Err("the connection ended".into()),
                }
            }
        };
        let state = match announced {
            Some(newer) if newer.at_ms > state.at_ms => newer,
            _ => state,
        };
        Ok(Open { held, news, state })
    }

    async fn ask(&self, control: &Arc<Control>) -> Result<HostState, PeerError> {
        let timeout = self.shared.timeout;
        let text: String = self
            .slot
            .call(control.clone(), "HostState", (), timeout, None)
            .await?;
        self.slot.parse_state(&text)
    }

    /// Asks again and again until the connection ends; returns why it did.
    async fn use_up(&self, control: &Arc<Control>, news: MessageStream) -> String {
        let polls = async {
            let mut ticks = interval(self.shared.refresh);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                match self.ask(control).await {
                    Ok(state) => self.answered(state).await,
                    // Too much to do there is an answer of its own kind.
                    Err(PeerError::Refused { message, .. }) => {
                        debug!(host = self.slot.name, "no state: {message}");
                    }
                    Err(e) => return why(e),
                }
            }
        };
        tokio::select! {
            why = polls => why,
            () = self.listen(news) => "the connection ended".into(),
            () = control.bus.closed() => "the connection ended".into(),
        }
    }

    /// Takes announcements until the connection ends.
    async fn listen(&self, mut news: MessageStream) {
        while let Some(Ok(message)) = news.next().await {
            if let Some(state) = self.announced(&message) {
                self.state(state);
            }
        }
    }

    fn announced(&self, message: &zbus::Message) -> Option<HostState> {
        let body = message.body();
        let text = body.deserialize::<&str>().map_err(|e| e.to_string());
        let state = text.and_then(|t| self.slot.parse_state(t).map_err(|e| e.to_string()));
        state
            .inspect_err(|e| warn!(host = self.slot.name, "ignored an announcement: {e}"))
            .ok()
    }

    fn state(&self, state: HostState) {
        // A daemon that lags gets the next one.
        let _ = self.events.try_send(PeerEvent::State(state));
    }

    async fn answered(&self, state: HostState) {
        let came_up = {
            let mut health = self.health();
            health.answered = Instant::now();
            health.reason = "it stopped answering".into();
            health.up.replace(true) != Some(true)
        };
        if came_up {
            let (host, version) = (state.name.clone(), state.version.clone());
            info!(host, version, "peer is up");
            let _ = self.events.send(PeerEvent::Up { host, version }).await;
        }
        self.state(state);
    }

    /// Tells when no answer came for too long.
    async fn watch(&self) {
        loop {
            let deadline = self.health().answered + self.shared.timeout;
            if Instant::now() < deadline {
                sleep_until(deadline).await;
                continue;
            }
            let down = {
                let mut health = self.health();
                let changed = health.up.replace(false) != Some(false);
                changed.then(|| health.reason.clone())
            };
            if let Some(reason) = down {
                let host = self.slot.name.clone();
                warn!(host, reason, "peer is down");
                self.slot.cut_bulks();
                let _ = self.events.send(PeerEvent::Down { host, reason }).await;
            }
            sleep(self.shared.timeout.min(Duration::from_millis(250))).await;
        }
    }
}
