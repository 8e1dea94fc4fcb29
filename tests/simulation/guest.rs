//! A guest as `src/helper/{source,target,moves}.rs` make it: what each request changes. It
//! outlives its host's daemon, and a request that it has taken may run late.

use std::collections::{BTreeMap, BTreeSet};

/// A move.
pub type Id = u32;
/// A feature.
pub type Feature = usize;

/// A feature's copy here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    Running,
    /// Left by a move that is not committed, or not known to have arrived.
    Frozen,
    /// Restored, at the gate.
    Ready,
}

/// Requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Preflight(Feature),
    PreDump(Feature, u16),
    Freeze(Feature, u16),
    Release { feature: Feature, commit: bool },
    Receive(Feature),
    Restore(u16),
    Resume,
    Discard,
}

#[derive(Debug, Clone, Copy)]
pub struct Leaving {
    pub feature: Feature,
    rounds: u16,
    pub frozen: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Arriving {
    pub feature: Feature,
    pub rounds: u16,
    decided: bool,
    pub running: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// How often it was booted: its boot id.
    pub boot: u32,
    pub copies: BTreeMap<Feature, Copy>,
    pub leaving: BTreeMap<Id, Leaving>,
    pub arriving: BTreeMap<Id, Arriving>,
    ended: BTreeSet<Id>,
}

impl Guest {
    /// Loses its memory and boots anew.
    pub fn dies(&mut self) {
        *self = Self {
            boot: self.boot + 1,
            ..Self::default()
        };
    }

    /// A round came in over the bulk stream.
    pub fn take(&mut self, id: Id, round: u16) {
        if let Some(a) = self.arriving.get_mut(&id)
            && a.rounds + 1 == round
        {
            a.rounds = round;
        }
    }

    pub fn has(&self, id: Id, round: u16) -> bool {
        self.arriving.get(&id).is_some_and(|a| a.rounds >= round)
    }

    fn part_of_a_move(&self, feature: Feature, id: Id) -> bool {
        self.leaving
            .iter()
            .any(|(i, l)| *i != id && l.feature == feature)
            || self
                .arriving
                .iter()
                .any(|(i, a)| *i != id && a.feature == feature)
    }

    /// Does what is asked; the round it sent, if it is one. `Err`: refused, nothing changed.
    pub fn perform(&mut self, id: Id, call: Call) -> Result<Option<u16>, ()> {
        if matches!(call, Call::Release { .. } | Call::Discard) {
            self.ended.insert(id);
        }
        match call {
            Call::Preflight(_) => Ok(None),
            Call::PreDump(feature, round) | Call::Freeze(feature, round) => {
                let last = match self.leaving.get(&id) {
                    None => 0,
                    Some(l) if !l.frozen => l.rounds,
                    Some(_) => return Err(()),
                };
                let runs = self.copies.get(&feature) == Some(&Copy::Running);
                let other = self
                    .leaving
                    .iter()
                    .any(|(i, l)| *i != id && l.feature == feature);
                if self.ended.contains(&id) || !runs || other || last + 1 != round {
                    return Err(());
                }
                let frozen = matches!(call, Call::Freeze(..));
                if frozen {
                    self.copies.insert(feature, Copy::Frozen);
                }
                self.leaving.insert(
                    id,
                    Leaving {
                        feature,
                        rounds: round,
                        frozen,
                    },
                );
                Ok(Some(round))
            }
            Call::Release { feature, commit } => self.release(id, feature, commit),
            Call::Receive(feature) => {
                // The note of an earlier arrival is dropped first.
                if !self.copies.contains_key(&feature) {
                    self.arriving
                        .retain(|_, a| !(a.feature == feature && a.running));
                }
                let taken = self.copies.contains_key(&feature)
                    || self.arriving.contains_key(&id)
                    || self.part_of_a_move(feature, id);
                if self.ended.contains(&id) || taken {
                    return Err(());
                }
                self.arriving.insert(
                    id,
                    Arriving {
                        feature,
                        rounds: 0,
                        decided: false,
                        running: false,
                    },
                );
                Ok(None)
            }
            Call::Restore(round) => {
                let a = self.arriving.get(&id).ok_or(())?;
                if a.rounds < round || a.running {
                    return Err(());
                }
                self.copies.entry(a.feature).or_insert(Copy::Ready);
                Ok(None)
            }
            Call::Resume => {
                let a = self.arriving.get_mut(&id).ok_or(())?;
                let copy = self.copies.get_mut(&a.feature).ok_or(())?;
                a.decided = true;
                if !a.running {
                    *copy = Copy::Running;
                    a.running = true;
                }
                Ok(None)
            }
            Call::Discard => {
                let Some(a) = self.arriving.get(&id).copied() else {
                    return Ok(None);
                };
                if a.decided {
                    return Err(());
                }
                self.arriving.remove(&id);
                if self.copies.get(&a.feature) == Some(&Copy::Ready) {
                    self.copies.remove(&a.feature);
                }
                Ok(None)
            }
        }
    }

    fn release(&mut self, id: Id, feature: Feature, commit: bool) -> Result<Option<u16>, ()> {
        if let Some(a) = self.arriving.get(&id) {
            // The books of an arrival are closed.
            if !a.running {
                return Err(());
            }
            self.arriving.remove(&id);
            return Ok(None);
        }
        match (self.leaving.get(&id).copied(), commit) {
            (Some(l), true) if !l.frozen => return Err(()),
            (Some(_), true) => {
                self.copies.remove(&feature);
            }
            (Some(l), false) if l.frozen => {
                self.copies.insert(feature, Copy::Running);
            }
            _ => {}
        }
        self.leaving.remove(&id);
        Ok(None)
    }
}
