//! Hosts with their journals and daemons, what is between them, and time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use drover::moving::record::TargetPhase;
use drover::moving::source::{Event as SourceEvent, Source};
use drover::moving::target::{Action as TargetAction, Target};

use crate::guest::{Call, Feature, Guest, Id};
use crate::rng::Rng;

/// CPUs of each guest.
pub const GUEST_CPUS: f64 = 2.0;
/// CPUs that each feature uses.
pub const FEATURE_CPUS: f64 = 0.6;
/// Moves from a host, and to it, at a time.
pub const MOST_MOVES: usize = 2;
/// Guests of each host.
pub const GUESTS: usize = 2;

/// A place for features: host and guest.
pub type Place = (usize, usize);

/// What a daemon asks another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Offer { feature: Feature, guest: usize },
    AwaitRound(u16),
    GrantFreeze,
    Restore(u16),
    Resume,
    Discard,
    Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused,
    Busy,
    Ready,
    Running,
    Lost,
    Otherwise,
    Committed,
    Aborted,
    Pending,
}

/// A request on its way or awaited.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub number: u64,
    pub from: usize,
    pub to: usize,
    pub id: Id,
    pub ask: Ask,
}

/// Who waits for a guest's answer.
#[derive(Debug, Clone, Copy)]
pub enum Waiter {
    Source,
    Target(Option<Request>),
}

/// A durable write and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Commit,
    Revert,
    Renew,
    End,
    Ready,
    Adopted,
    Lost,
    Forgotten,
}

#[derive(Debug, Clone)]
pub enum Happening {
    Request(Request),
    Answer(Request, Answer),
    /// The caller waits no longer.
    GivesUp(Request),
    /// A round over the bulk stream.
    Bulk {
        to: usize,
        id: Id,
        round: u16,
    },
    /// A guest performs a call, and answers whoever waits still.
    Perform {
        place: Place,
        boot: u32,
        id: Id,
        call: Call,
        waiter: Option<(u32, Waiter)>,
    },
    /// A call has no answer.
    Silence {
        place: Place,
        id: Id,
        call: Call,
        life: u32,
        waiter: Waiter,
    },
    Written {
        host: usize,
        life: u32,
        id: Id,
        write: Write,
        reply: Option<Request>,
    },
    /// The driver hears that a write is done.
    Told {
        host: usize,
        life: u32,
        id: Id,
        write: Write,
        ok: bool,
        reply: Option<Request>,
    },
    Source {
        host: usize,
        life: u32,
        id: Id,
        event: SourceEvent,
    },
    /// An action is tried again after a pause.
    AskAgain {
        host: usize,
        life: u32,
        id: Id,
        ask: Ask,
    },
    ReleaseAgain {
        host: usize,
        life: u32,
        id: Id,
        commit: bool,
    },
    RetryTarget {
        host: usize,
        life: u32,
        id: Id,
        action: TargetAction,
    },
    Watch {
        host: usize,
        life: u32,
        id: Id,
    },
    Greet {
        host: usize,
        life: u32,
        guest: usize,
    },
    Crash(usize),
    Start(usize),
    GuestDies(Place),
    /// Hosts do not hear each other for a while.
    Cut(usize, usize, u64),
    Move(Feature),
    Cancel(usize),
}

#[derive(Debug, Clone, Copy)]
pub struct SourceRecord {
    pub feature: Feature,
    pub guest: usize,
    pub to: Place,
    pub committed: bool,
    pub reverted: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct TargetRecord {
    pub feature: Feature,
    pub guest: usize,
    pub from: usize,
    pub phase: TargetPhase,
    pub boot: u32,
}

/// What survives the daemon.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    pub source: BTreeMap<Id, SourceRecord>,
    pub target: BTreeMap<Id, TargetRecord>,
    pub registry: BTreeMap<Feature, usize>,
    /// Ended moves from here, and whether they are done.
    pub jobs: BTreeMap<Id, bool>,
}

/// A move from here.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub record: SourceRecord,
    pub machine: Source,
    pub queued: bool,
}

/// A move to here.
#[derive(Debug, Clone)]
pub struct Incoming {
    pub record: TargetRecord,
    pub machine: Target,
    /// Its lock is held.
    pub busy: bool,
    /// When its state last changed.
    pub since: u64,
    pub asking: bool,
}

/// What a daemon loses when it dies.
#[derive(Debug, Clone, Default)]
pub struct Daemon {
    pub outgoing: BTreeMap<Id, Outgoing>,
    pub incoming: BTreeMap<Id, Incoming>,
    pub reserved: BTreeMap<Id, (usize, f64)>,
    pub freeze: Option<Id>,
    pub calls: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub journal: Journal,
    pub daemon: Option<Daemon>,
    /// How often the daemon was started.
    pub life: u32,
    pub guests: Vec<Guest>,
}

/// How bad it is, per mille.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub lost: u64,
    pub doubled: u64,
    pub slow: u64,
    pub silent: u64,
    pub failed: u64,
    pub writes: u64,
}

impl Faults {
    pub const NONE: Self = Self {
        lost: 0,
        doubled: 0,
        slow: 0,
        silent: 0,
        failed: 0,
        writes: 0,
    };
}

/// What happens, and when.
struct Due {
    at: u64,
    number: u64,
    what: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Everything.
pub struct World {
    pub rng: Rng,
    pub now: u64,
    pub hosts: Vec<Host>,
    pub features: usize,
    pub faults: Faults,
    /// Until when two hosts do not hear each other.
    pub cuts: BTreeMap<(usize, usize), u64>,
    /// Features whose last copy died with a guest.
    pub died: BTreeSet<Feature>,
    pub next_id: Id,
    /// The source says of a move under way that it is given up: what must be found out.
    pub broken: bool,
    /// How many moves were done, and given back after the commit.
    pub done: u64,
    pub reverted: u64,
    /// Attempts that were begun after the first.
    pub renewed: u64,
    queue: BinaryHeap<Reverse<Due>>,
    number: u64,
}

impl World {
    /// Features spread over the first guests, everything up.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let hosts = rng.range(2, 4) as usize;
        let features = rng.range(2, 5) as usize;
        let mut world = Self {
            hosts: (0..hosts)
                .map(|_| Host {
                    journal: Journal::default(),
                    daemon: Some(Daemon::default()),
                    life: 1,
                    guests: vec![Guest::default(); GUESTS],
                })
                .collect(),
            rng,
            now: 0,
            features,
            faults: Faults::NONE,
            cuts: BTreeMap::new(),
            died: BTreeSet::new(),
            next_id: 0,
            broken: false,
            done: 0,
            reverted: 0,
            renewed: 0,
            queue: BinaryHeap::new(),
            number: 0,
        };
        for f in 0..features {
            let host = f % hosts;
            let guest = (f / hosts) % GUESTS;
            world.hosts[host].journal.registry.insert(f, guest);
            world.hosts[host].guests[guest]
                .copies
                .insert(f, crate::guest::Copy::Running);
        }
        world
    }

    pub fn after(&mut self, ms: u64, what: Happening) {
        self.number += 1;
        self.queue.push(Reverse(Due {
            at: self.now + ms,
            number: self.number,
            what,
        }));
    }

    /// The next thing that happens by `until`.
    pub fn next(&mut self, until: u64) -> Option<Happening> {
        if self.queue.peek().is_none_or(|d| d.0.at > until) {
            return None;
        }
        let due = self.queue.pop()?.0;
        self.now = due.at;
        Some(due.what)
    }

    /// The daemon, if it is still in the life in which something was begun.
    pub fn daemon(&mut self, host: usize, life: u32) -> Option<&mut Daemon> {
        let h = &mut self.hosts[host];
        h.daemon.as_mut().filter(|_| h.life == life)
    }

    pub fn life(&self, host: usize) -> u32 {
        self.hosts[host].life
    }

    fn travel(&mut self) -> u64 {
        if self.rng.chance(self.faults.slow) {
            self.rng.range(200, 8_000)
        } else {
            self.rng.range(1, 20)
        }
    }

    fn cut(&self, a: usize, b: usize) -> bool {
        self.cuts
            .get(&(a.min(b), a.max(b)))
            .is_some_and(|until| *until > self.now)
    }

    /// Sends something from one host to another: it may be lost, doubled, late, out of order.
    pub fn send(&mut self, from: usize, to: usize, what: Happening) {
        if self.cut(from, to) || self.rng.chance(self.faults.lost) {
            return;
        }
        let ms = self.travel();
        if self.rng.chance(self.faults.doubled) {
            let later = self.travel();
            self.after(later, what.clone());
        }
        self.after(ms, what);
    }

    /// Asks another daemon, and waits for at most `limit` milliseconds.
    pub fn ask(&mut self, from: usize, to: usize, id: Id, ask: Ask, limit: u64) {
        self.number += 1;
        let request = Request {
            number: self.number,
            from,
            to,
            id,
            ask,
        };
        let Some(daemon) = self.hosts[from].daemon.as_mut() else {
            return;
        };
        daemon.calls.insert(request.number);
        self.send(from, to, Happening::Request(request));
        self.after(limit, Happening::GivesUp(request));
    }

    pub fn answer(&mut self, reply: Option<Request>, answer: Answer) {
        if let Some(r) = reply {
            self.send(r.to, r.from, Happening::Answer(r, answer));
        }
    }

    /// Has a guest perform a call.
    pub fn call(&mut self, place: Place, id: Id, call: Call, waiter: Waiter) {
        let (life, boot) = (self.life(place.0), self.hosts[place.0].guests[place.1].boot);
        let ms = self.rng.range(2, 60);
        if self.rng.chance(self.faults.silent) {
            // It is taken, and performed who knows when.
            let later = self.rng.range(100, 20_000);
            let limit = self.rng.range(50, 3_000);
            self.after(
                later,
                Happening::Perform {
                    place,
                    boot,
                    id,
                    call,
                    waiter: None,
                },
            );
            self.after(
                limit,
                Happening::Silence {
                    place,
                    id,
                    call,
                    life,
                    waiter,
                },
            );
            return;
        }
        self.after(
            ms,
            Happening::Perform {
                place,
                boot,
                id,
                call,
                waiter: Some((life, waiter)),
            },
        );
    }

    /// Begins a durable write.
    pub fn write(&mut self, host: usize, id: Id, write: Write, reply: Option<Request>) {
        let (life, ms) = (self.life(host), self.rng.range(1, 30));
        self.after(
            ms,
            Happening::Written {
                host,
                life,
                id,
                write,
                reply,
            },
        );
    }

    /// Feeds a source's machine a little later.
    pub fn tell(&mut self, host: usize, id: Id, event: SourceEvent) {
        let life = self.life(host);
        self.after(
            0,
            Happening::Source {
                host,
                life,
                id,
                event,
            },
        );
    }
}
