//! Moves as objects: `/org/drover1/move/ID`, interface `org.drover1.Move`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use zbus::fdo::Properties;
use zbus::message::Header;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, Variant};

use super::access::{Access, Verb};
use super::error::Error;
use super::{MOVE, move_path};
use crate::api::{Api, Job, JobResult};
use crate::wire::guest::MoveId;

/// Most ended moves that keep their object.
const MAX_ENDED: usize = 100;

/// A result in systemd's words.
pub(super) fn result_word(result: JobResult) -> &'static str {
    match result {
        JobResult::Done => "done",
        JobResult::Canceled => "canceled",
        JobResult::Timeout => "timeout",
        JobResult::Failed => "failed",
        JobResult::Skipped => "skipped",
    }
}

/// The table of the moves of this run.
pub(super) struct Moves {
    api: Arc<dyn Api>,
    access: Access,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    jobs: HashMap<MoveId, Arc<RwLock<Job>>>,
    ended: VecDeque<MoveId>,
}

impl Moves {
    pub(super) fn new(api: Arc<dyn Api>, access: Access) -> Self {
        Self {
            api,
            access,
            table: Mutex::default(),
        }
    }

    /// Makes the object of a move unless it is there: what the events told since is newer.
    pub(super) async fn add(
        &self,
        connection: &Connection,
        job: &Job,
    ) -> zbus::Result<ObjectPath<'static>> {
        let path = move_path(&job.id)?;
        let mut table = self.table.lock().await;
        if !table.jobs.contains_key(&job.id) {
            self.insert(&mut table, connection, &path, job).await?;
        }
        Ok(path)
    }

    /// Whether the move has an object and has not ended.
    pub(super) async fn open(&self, id: &str) -> bool {
        let table = self.table.lock().await;
        table.jobs.get(id).is_some_and(|j| read(j).result.is_none())
    }

    /// Makes or updates the object of a move and tells what changed. An ended move stays as it
    /// ended.
    pub(super) async fn update(
        &self,
        connection: &Connection,
        job: &Job,
    ) -> zbus::Result<ObjectPath<'static>> {
        let path = move_path(&job.id)?;
        let mut table = self.table.lock().await;
        let Some(slot) = table.jobs.get(&job.id).cloned() else {
            self.insert(&mut table, connection, &path, job).await?;
            return Ok(path);
        };
        let before = read(&slot);
        if before.result.is_some() || before == *job {
            return Ok(path);
        }
        *slot.write().unwrap_or_else(PoisonError::into_inner) = job.clone();
        let old = properties(&before);
        let changed: HashMap<&str, Variant<'_>> = properties(job)
            .into_iter()
            .filter(|p| !old.contains(p))
            .collect();
        let emitter = SignalEmitter::new(connection, path.clone())?;
        let interface = InterfaceName::from_static_str(MOVE)?;
        Properties::properties_changed(&emitter, interface, changed, (&[][..]).into()).await?;
        if let Some(result) = job.result {
            let reason = job.reason.as_deref().unwrap_or_default();
            Move::ended(&emitter, result_word(result), reason).await?;
            table.ended.push_back(job.id.clone());
            trim(&mut table, connection).await?;
        }
        Ok(path)
    }

    async fn insert(
        &self,
        table: &mut Table,
        connection: &Connection,
        path: &ObjectPath<'static>,
        job: &Job,
    ) -> zbus::Result<()> {
        let slot = Arc::new(RwLock::new(job.clone()));
        let object = Move {
            id: job.id.clone(),
            job: Arc::clone(&slot),
            api: Arc::clone(&self.api),
            access: self.access.clone(),
        };
        connection.object_server().at(path.clone(), object).await?;
        table.jobs.insert(job.id.clone(), slot);
        if job.result.is_some() {
            table.ended.push_back(job.id.clone());
            trim(table, connection).await?;
        }
        Ok(())
    }
}

/// Removes the objects of the moves that ended first, beyond [`MAX_ENDED`].
async fn trim(table: &mut Table, connection: &Connection) -> zbus::Result<()> {
    while table.ended.len() > MAX_ENDED {
        let Some(id) = table.ended.pop_front() else {
            break;
        };
        table.jobs.remove(&id);
        connection
            .object_server()
            .remove::<Move, _>(move_path(&id)?)
            .await?;
    }
    Ok(())
}

fn read(slot: &RwLock<Job>) -> Job {
    slot.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn result(job: &Job) -> &'static str {
    job.result.map_or("", result_word)
}

fn freeze_ms(job: &Job) -> i64 {
    job.freeze_ms
        .map_or(-1, |ms| i64::try_from(ms).unwrap_or(i64::MAX))
}

fn text(job: &Job) -> String {
    // Job is plain data: its JSON cannot fail; should it ever, the reader sees it as text.
    serde_json::to_string(job).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

/// The properties that change, as [`Move`] shows them.
fn properties(job: &Job) -> Vec<(&'static str, Variant<'static>)> {
    vec![
        ("State", job.state.clone().into()),
        ("Result", result(job).into()),
        ("Reason", job.reason.clone().unwrap_or_default().into()),
        ("Rounds", job.rounds.into()),
        ("BytesSent", job.bytes_sent.into()),
        ("FreezeMs", freeze_ms(job).into()),
        ("ToHost", job.to_host.clone().into()),
        ("ToDomain", job.to_domain.clone().into()),
        ("Json", text(job).into()),
    ]
}

/// A move's object.
struct Move {
    id: MoveId,
    job: Arc<RwLock<Job>>,
    api: Arc<dyn Api>,
    access: Access,
}

impl Move {
    /// Refuses who may not end moves.
    async fn may_end(&self, connection: &Connection, header: &Header<'_>) -> Result<(), Error> {
        let details = [("move", self.id.as_str())];
        self.access
            .sender(connection, header, Verb::Cancel, &details)
            .await
    }
}

#[zbus::interface(name = "org.drover1.Move", introspection_docs = false)]
impl Move {
    async fn abort(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        self.may_end(connection, &header).await?;
        Ok(self.api.abort(&self.id).await?)
    }

    async fn give_up(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        self.may_end(connection, &header).await?;
        Ok(self.api.give_up(&self.id).await?)
    }

    #[zbus(signal)]
    async fn ended(emitter: &SignalEmitter<'_>, result: &str, reason: &str) -> zbus::Result<()>;

    #[zbus(property)]
    fn state(&self) -> String {
        read(&self.job).state
    }

    #[zbus(property)]
    fn result(&self) -> &'static str {
        result(&read(&self.job))
    }

    #[zbus(property)]
    fn reason(&self) -> String {
        read(&self.job).reason.unwrap_or_default()
    }

    #[zbus(property)]
    fn rounds(&self) -> u32 {
        read(&self.job).rounds
    }

    #[zbus(property)]
    fn bytes_sent(&self) -> u64 {
        read(&self.job).bytes_sent
    }

    #[zbus(property)]
    fn freeze_ms(&self) -> i64 {
        freeze_ms(&read(&self.job))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn feature(&self) -> String {
        read(&self.job).feature.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"), name = "FromHost")]
    fn source_host(&self) -> String {
        read(&self.job).from_host
    }

    #[zbus(property(emits_changed_signal = "const"), name = "FromDomain")]
    fn source_domain(&self) -> String {
        read(&self.job).from_domain
    }

    #[zbus(property)]
    fn to_host(&self) -> String {
        read(&self.job).to_host
    }

    #[zbus(property)]
    fn to_domain(&self) -> String {
        read(&self.job).to_domain
    }

    #[zbus(property)]
    fn json(&self) -> String {
        text(&read(&self.job))
    }
}
