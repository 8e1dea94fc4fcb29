//! The whole of a move: both daemons with their journals, both guests, and what is between them.
//!
//! The machines are Drover's own. Around them stands what the driver does: which requests an
//! action makes, which event an answer becomes, and which steps are durable writes.

use std::collections::BTreeSet;

use drover::moving::convergence::Limits;
use drover::moving::record::TargetPhase;
use drover::moving::source::Source;
use drover::moving::target::Target;

use crate::guests::{SourceCall, SourceGuest, TargetCall, TargetGuest};

/// What a daemon asks the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ask {
    Offer,
    AwaitRound(u16),
    GrantFreeze,
    Restore(u16),
    Resume,
    Discard,
    GiveUp,
    /// Of the target, in doubt.
    Verdict,
}

/// Answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    Done,
    Refused,
    Ready,
    Running,
    /// The restored copy is lost, durably.
    Lost,
    /// Any other status.
    Otherwise,
    Committed,
    Aborted,
    Pending,
}

/// What is under way between the daemons, in no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    /// Somebody waits for the answer.
    Request(Ask),
    /// Nobody does: a duplicate, or the caller has given up or died.
    Late(Ask),
    /// An offer of the attempt before this one; its other requests find nothing.
    StaleOffer,
    Answer(Ask, Answer),
}

/// A task of the source's driver that will yield one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    Guest(SourceCall),
    Peer(Ask),
    Commit {
        /// Durable already; the driver has not heard.
        written: bool,
    },
    /// Takes the commit back.
    Revert {
        /// Durable already; the driver has not heard.
        written: bool,
    },
    /// Puts the next attempt's record in place of this one's.
    Renew,
    /// Records the end.
    End,
}

/// A move in `outgoing`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outgoing {
    pub machine: Source,
    pub tasks: BTreeSet<Task>,
}

/// What the source's daemon loses when it dies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceDaemon {
    /// The journal was taken up; peers are heard before that.
    pub recovered: bool,
    /// libvirt has listed its domains. Drover waits for that before anything else.
    pub listed: bool,
    /// The guest was greeted and brought in line since the start.
    pub greeted: bool,
    pub outgoing: Option<Outgoing>,
}

/// What the target's driver is at while it holds a move's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    Guest(TargetCall),
    WriteReady,
    WriteAdopted,
    WriteGiveUp,
    WriteLost,
    WriteForgotten,
}

/// A request (or the watch) that holds a move's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Op {
    pub work: Work,
    /// Who waits for the answer.
    pub reply: Option<Ask>,
}

/// A move in `incoming`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    pub machine: Target,
    pub op: Option<Op>,
    /// Will be tried again after a pause.
    pub retry: Option<TargetCall>,
    /// `forget_arrival` waits for the source to have no record.
    pub forgetting: bool,
    /// Boot of the guest that holds what this move has there; from READY on it is in the record.
    pub boot: u8,
    /// Of the attempt before the present one.
    pub stale: bool,
}

/// What the target's daemon loses when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TargetDaemon {
    /// The journal was taken up; peers are heard before that.
    pub recovered: bool,
    pub slot: Option<Slot>,
    /// The watch waits for a verdict.
    pub asking: bool,
    pub greeted: bool,
}

/// Faults that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// In all.
    pub total: u8,
    pub source_crashes: u8,
    pub target_crashes: u8,
    /// Requests duplicated, or given up while they may still be performed.
    pub late: u8,
    /// Steps that a guest fails at.
    pub failures: u8,
    /// Journal writes that return an error.
    pub writes: u8,
    /// Times a side takes the other, or its bulk connection, for lost.
    pub losses: u8,
    pub cancels: u8,
    /// Times the feature leaves the target again, to elsewhere, after it arrived.
    pub departures: u8,
    /// Guests that lose their memory and boot anew.
    pub guest_losses: u8,
    /// Times an administrator gives a committed move up.
    pub give_ups: u8,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub budget: Budget,
    /// The commit record was written, and not taken back. Not reset when the ended move's record
    /// goes.
    pub committed: bool,
    /// The commit was taken back.
    pub reverted: bool,
    /// The arrival was recorded at the target.
    pub arrived: bool,
    /// The source's guest lost its memory, and with it the feature's copy.
    pub source_lost: bool,
    /// The feature has left the target again.
    pub left: bool,
    /// The target's guest destroyed the copy that was given up.
    pub destroyed: bool,
    /// Attempts that were begun after the first.
    pub renewed: u8,

    /// Source's journal: whether the record says committed.
    pub source_journal: Option<bool>,
    pub source_registered: bool,
    pub source: Option<SourceDaemon>,
    pub source_guest: SourceGuest,
    /// Calls of which the answer is awaited no more.
    pub source_late: BTreeSet<SourceCall>,

    pub target_journal: Option<TargetPhase>,
    /// That record is of the attempt before.
    pub target_journal_stale: bool,
    /// Boot id in the target's record.
    pub target_boot: u8,
    pub target_registered: bool,
    pub target: Option<TargetDaemon>,
    pub target_guest: TargetGuest,
    pub target_late: BTreeSet<TargetCall>,
    /// The same, of the attempt before.
    pub target_stale: BTreeSet<TargetCall>,

    pub net: BTreeSet<Message>,
}

impl World {
    /// A feature that runs on the source, its move just recorded and begun.
    pub fn new(budget: Budget, limits: Limits) -> Self {
        let mut world = Self {
            budget,
            committed: false,
            reverted: false,
            arrived: false,
            source_lost: false,
            left: false,
            destroyed: false,
            renewed: 0,
            source_journal: Some(false),
            source_registered: true,
            source: Some(SourceDaemon {
                recovered: true,
                listed: true,
                greeted: true,
                outgoing: Some(Outgoing {
                    machine: Source::new(limits),
                    tasks: BTreeSet::new(),
                }),
            }),
            source_guest: SourceGuest::new(),
            source_late: BTreeSet::new(),
            target_journal: None,
            target_journal_stale: false,
            target_boot: 0,
            target_registered: false,
            target: Some(TargetDaemon {
                recovered: true,
                slot: None,
                asking: false,
                greeted: true,
            }),
            target_guest: TargetGuest::new(),
            target_late: BTreeSet::new(),
            target_stale: BTreeSet::new(),
            net: BTreeSet::new(),
        };
        world.source_event(drover::moving::source::Event::Start, None);
        world
    }

    pub fn outgoing(&self) -> Option<&Outgoing> {
        self.source.as_ref()?.outgoing.as_ref()
    }

    pub fn slot(&self) -> Option<&Slot> {
        self.target.as_ref()?.slot.as_ref()
    }

    /// Whether a request still can bring its caller an answer.
    pub fn answer_may_come(&self, ask: Ask) -> bool {
        self.net.iter().any(|m| match m {
            Message::Request(a) | Message::Answer(a, _) => *a == ask,
            Message::Late(_) | Message::StaleOffer => false,
        }) || self
            .slot()
            .is_some_and(|s| s.op.is_some_and(|o| o.reply == Some(ask)))
    }

    /// The caller of a request waits no more. With `late` the request itself goes on.
    pub fn give_up(&mut self, ask: Ask, late: bool) {
        self.net
            .retain(|m| !matches!(m, Message::Answer(a, _) if *a == ask));
        if self.net.remove(&Message::Request(ask)) && late {
            self.net.insert(Message::Late(ask));
        }
        if let Some(op) = self
            .target
            .as_mut()
            .and_then(|t| t.slot.as_mut()?.op.as_mut())
            && op.reply == Some(ask)
        {
            op.reply = None;
        }
    }
}
