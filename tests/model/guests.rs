//! The two guests as `src/helper/{source,target,moves}.rs` make them: what each request changes.
//! A guest outlives its host's daemon, and a request that it has taken may run late.

/// The feature's copy in the source's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Copy {
    /// It runs (during a pre-copy round too).
    Running,
    /// At criu's gate, in the freezer.
    Frozen,
    /// Killed.
    Gone,
}

/// `move.json` of the source's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Note {
    /// Nothing of the move is here.
    None,
    /// Last complete round.
    Copying(u16),
    /// A freeze has begun.
    Frozen,
}

/// Requests to the source's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceCall {
    Preflight,
    PreDump(u16),
    Freeze(u16),
    Release { commit: bool },
}

/// The source's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceGuest {
    pub copy: Copy,
    pub note: Note,
    /// A release of the move was asked for in this life of the helper.
    pub released: bool,
}

impl SourceGuest {
    pub fn new() -> Self {
        Self {
            copy: Copy::Running,
            note: Note::None,
            released: false,
        }
    }

    /// Does what is asked; the round it sent, if it is one. `Err`: refused, nothing changed.
    /// `forgetful`: a helper that takes rounds of a move that it has released.
    pub fn perform(&mut self, call: SourceCall, forgetful: bool) -> Result<Option<u16>, ()> {
        match call {
            SourceCall::Preflight => Ok(None),
            SourceCall::PreDump(round) | SourceCall::Freeze(round) => {
                let last = match self.note {
                    Note::None => 0,
                    Note::Copying(r) => r,
                    Note::Frozen => return Err(()),
                };
                let refused = self.released && !forgetful;
                if refused || self.copy != Copy::Running || last + 1 != round {
                    return Err(());
                }
                if matches!(call, SourceCall::Freeze(_)) {
                    self.note = Note::Frozen;
                    self.copy = Copy::Frozen;
                } else {
                    self.note = Note::Copying(round);
                }
                Ok(Some(round))
            }
            SourceCall::Release { commit } => {
                self.released = true;
                match (self.note, commit) {
                    (Note::Frozen, true) => self.copy = Copy::Gone,
                    (Note::Frozen, false) => self.copy = Copy::Running,
                    (Note::Copying(_), true) => return Err(()),
                    (Note::Copying(_), false) | (Note::None, _) => {}
                }
                self.note = Note::None;
                Ok(None)
            }
        }
    }
}

/// What the target's guest holds of the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    Nothing,
    /// Prepared; this many rounds are complete.
    Receiving {
        rounds: u16,
    },
    /// Restored up to the gate, or (when resuming failed) its images only: they are kept.
    Ready,
    /// It runs.
    Running,
}

/// Requests to the target's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetCall {
    Receive,
    Restore(u16),
    Resume,
    Discard,
    /// Discard, also when resuming was asked for.
    Destroy,
}

/// Why a call came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It cannot be done.
    No,
    /// What was to be destroyed runs.
    Runs,
}

/// The target's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TargetGuest {
    pub held: Held,
    /// A resume was asked for: it discards no more.
    pub decided: bool,
    /// A discard was asked for: it receives no more.
    pub given_up: bool,
    /// How often it was booted anew: its boot id.
    pub boot: u8,
    /// What it holds is of the attempt before.
    pub stale: bool,
    /// That attempt was discarded here.
    pub stale_given_up: bool,
}

impl TargetGuest {
    pub fn new() -> Self {
        Self {
            held: Held::Nothing,
            decided: false,
            given_up: false,
            boot: 0,
            stale: false,
            stale_given_up: false,
        }
    }

    /// Another attempt begins: what is here, and what was asked, is of the one before.
    pub fn renewed(&mut self) {
        self.stale = self.held != Held::Nothing;
        self.stale_given_up = self.given_up;
        (self.given_up, self.decided) = (false, false);
    }

    /// Does what is asked of the attempt before, or refuses: nothing of the present one is touched.
    pub fn perform_stale(&mut self, call: TargetCall) -> Result<(), Refusal> {
        match (call, self.held) {
            (TargetCall::Receive, Held::Nothing) if !self.stale_given_up => {
                self.held = Held::Receiving { rounds: 0 };
                self.stale = true;
                Ok(())
            }
            (TargetCall::Discard, _) => {
                self.stale_given_up = true;
                if self.stale {
                    self.held = Held::Nothing;
                    self.stale = false;
                }
                Ok(())
            }
            (TargetCall::Restore(round), Held::Receiving { rounds })
                if self.stale && rounds >= round =>
            {
                self.held = Held::Ready;
                Ok(())
            }
            _ => Err(Refusal::No),
        }
    }

    /// Loses its memory and boots anew.
    pub fn dies(&mut self) {
        *self = Self {
            boot: self.boot + 1,
            ..Self::new()
        };
    }

    /// A round came in over the bulk stream.
    pub fn take(&mut self, round: u16) {
        if let Held::Receiving { rounds } = &mut self.held
            && !self.stale
            && *rounds + 1 == round
        {
            *rounds = round;
        }
    }

    /// Whether a round is complete here.
    pub fn has(self, round: u16) -> bool {
        match self.held {
            _ if self.stale => false,
            Held::Receiving { rounds } => rounds >= round,
            Held::Ready | Held::Running => true,
            Held::Nothing => false,
        }
    }

    /// Does what is asked, or refuses. `forgetful`: a helper that takes a move that it has
    /// discarded.
    pub fn perform(&mut self, call: TargetCall, forgetful: bool) -> Result<(), Refusal> {
        self.given_up |= call == TargetCall::Discard && !self.decided;
        // Nothing of this attempt is here.
        let held = if self.stale && call != TargetCall::Receive {
            Held::Nothing
        } else {
            self.held
        };
        match (call, held) {
            (TargetCall::Receive, Held::Nothing) if forgetful || !self.given_up => {
                // The note of an earlier arrival is dropped first.
                self.decided = false;
                self.held = Held::Receiving { rounds: 0 };
                Ok(())
            }
            (TargetCall::Restore(round), Held::Receiving { rounds }) if rounds >= round => {
                self.held = Held::Ready;
                Ok(())
            }
            (TargetCall::Destroy, Held::Running) => Err(Refusal::Runs),
            (TargetCall::Destroy, _) => {
                self.given_up = true;
                if !self.stale {
                    self.held = Held::Nothing;
                }
                Ok(())
            }
            (TargetCall::Resume, Held::Ready) => {
                self.decided = true;
                self.held = Held::Running;
                Ok(())
            }
            // What is done already.
            (TargetCall::Restore(_), Held::Ready | Held::Running)
            | (TargetCall::Resume, Held::Running)
            | (TargetCall::Discard, Held::Nothing) => Ok(()),
            (TargetCall::Discard, Held::Receiving { .. } | Held::Ready) if !self.decided => {
                self.held = Held::Nothing;
                Ok(())
            }
            _ => Err(Refusal::No),
        }
    }

    /// Fails at what is asked after it has begun.
    pub fn fail(&mut self, call: TargetCall) {
        if call == TargetCall::Resume && self.held == Held::Ready {
            self.decided = true;
        }
    }
}
