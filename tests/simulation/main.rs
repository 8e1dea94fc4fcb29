//! Whole clusters from a seed: hosts with several guests, several features that move at once, and
//! faults of the network, daemons, guests and journals. The machines of `moving` and the target's
//! check of an offer are Drover's own; around them stands what the drivers do.
//!
//! At every step: no feature runs twice; none is gone unless its guest died; at most one host has
//! it registered; no guest is promised more CPU than it has. When the faults have ceased: every
//! move has ended, every feature runs once, where it is registered, and nothing of any move is left.
//!
//! `DROVER_SEEDS=N` seeds (10,000 by default); `DROVER_SEED=N` replays one and tells every step.

mod guest;
mod rng;
mod source;
mod target;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use drover::moving::record::TargetPhase;

use guest::{Call, Copy};
use rng::Rng;
use world::{Answer, Ask, Daemon, Faults, GUEST_CPUS, GUESTS, Happening, Waiter, World, Write};

/// How long there are moves and faults, milliseconds.
const TROUBLE: u64 = 60_000;
/// By when everything is quiet again.
const QUIET: u64 = TROUBLE + 300_000;

/// What is planned to happen.
fn plan(w: &mut World) {
    let r = &mut Rng::new(w.rng.below(u64::MAX));
    for _ in 0..r.range(4, 16) {
        let feature = r.index(w.features);
        w.after(r.below(TROUBLE), Happening::Move(feature));
    }
    // One seed in five has no faults at all, so that order and turns are seen undisturbed.
    if r.chance(200) {
        return;
    }
    w.faults = Faults {
        lost: r.below(80),
        doubled: r.below(80),
        slow: r.below(80),
        silent: r.below(50),
        failed: r.below(50),
        writes: r.below(50),
    };
    for _ in 0..r.below(6) {
        let host = r.index(w.hosts.len());
        w.after(r.below(TROUBLE), Happening::Crash(host));
    }
    for _ in 0..r.below(3) {
        let place = (r.index(w.hosts.len()), r.index(GUESTS));
        w.after(r.below(TROUBLE), Happening::GuestDies(place));
    }
    for _ in 0..r.below(3) {
        let (a, b) = (r.index(w.hosts.len()), r.index(w.hosts.len()));
        w.after(r.below(TROUBLE), Happening::Cut(a, b, r.range(500, 15_000)));
    }
    for _ in 0..r.below(3) {
        let host = r.index(w.hosts.len());
        w.after(r.below(TROUBLE), Happening::Cancel(host));
    }
}

fn happens(w: &mut World, what: Happening) {
    match what {
        Happening::Request(r) => w.target_takes(r),
        Happening::Answer(r, answer) => hears(w, r, Some(answer)),
        Happening::GivesUp(r) => hears(w, r, None),
        Happening::Bulk { to, id, round } => {
            let h = &mut w.hosts[to];
            let guest = h
                .daemon
                .as_ref()
                .and_then(|d| d.incoming.get(&id))
                .map(|i| i.record.guest);
            if let Some(g) = guest {
                h.guests[g].take(id, round);
            }
        }
        Happening::Perform {
            place,
            boot,
            id,
            call,
            waiter,
        } => performs(w, place, boot, id, call, waiter),
        Happening::Silence {
            place,
            id,
            call,
            life,
            waiter,
        } => {
            guest_answers(w, place, id, call, life, waiter, false);
        }
        Happening::Written {
            host,
            life,
            id,
            write,
            reply,
        } => {
            if w.daemon(host, life).is_none() {
                return;
            }
            let ok = !w.rng.chance(w.faults.writes);
            if ok {
                w.source_writes_or_target(host, id, write);
            }
            let ms = w.rng.below(20);
            w.after(
                ms,
                Happening::Told {
                    host,
                    life,
                    id,
                    write,
                    ok,
                    reply,
                },
            );
        }
        Happening::Told {
            host,
            life,
            id,
            write,
            ok,
            reply,
        } => {
            if w.daemon(host, life).is_none() {
                return;
            }
            match write {
                Write::Commit | Write::Revert | Write::Renew | Write::End => {
                    w.source_is_told(host, life, id, write, ok);
                }
                _ => w.target_is_told(host, id, write, ok, reply),
            }
        }
        Happening::Source {
            host,
            life,
            id,
            event,
        } => w.source_event(host, life, id, event),
        Happening::AskAgain {
            host,
            life,
            id,
            ask,
        } => {
            if let Some(o) = w.daemon(host, life).and_then(|d| d.outgoing.get(&id)) {
                let to = o.record.to.0;
                w.ask(host, to, id, ask, 20_000);
            }
        }
        Happening::ReleaseAgain {
            host,
            life,
            id,
            commit,
        } => {
            if let Some(o) = w.daemon(host, life).and_then(|d| d.outgoing.get(&id)) {
                let (place, feature) = ((host, o.record.guest), o.record.feature);
                w.call(place, id, Call::Release { feature, commit }, Waiter::Source);
            }
        }
        Happening::RetryTarget {
            host,
            life,
            id,
            action,
        } => w.target_retries(host, life, id, action),
        Happening::Watch { host, life, id } => w.target_watches(host, life, id),
        Happening::Greet { host, life, guest } => w.greets(host, life, guest),
        Happening::Crash(host) => {
            if w.hosts[host].daemon.take().is_some() {
                let down = w.rng.range(200, 8_000);
                w.after(down, Happening::Start(host));
                peers_lose(w, host);
            }
        }
        Happening::Start(host) => starts(w, host),
        Happening::GuestDies(place) => dies(w, place),
        Happening::Cut(a, b, ms) => {
            let until = w.now + ms;
            w.cuts.insert((a.min(b), a.max(b)), until);
            if ms > 5_000 {
                lose(w, a, b);
            }
        }
        Happening::Move(feature) => w.begin_move(feature),
        Happening::Cancel(host) => {
            let ids: Vec<_> = w.hosts[host]
                .daemon
                .iter()
                .flat_map(|d| d.outgoing.keys())
                .copied()
                .collect();
            for id in ids {
                w.tell(host, id, drover::moving::source::Event::Cancel);
            }
        }
    }
}

impl World {
    fn source_writes_or_target(&mut self, host: usize, id: guest::Id, write: Write) {
        match write {
            Write::Commit | Write::Revert | Write::Renew | Write::End => {
                self.source_writes(host, id, write);
            }
            _ => self.target_writes(host, id, write),
        }
    }
}

fn hears(w: &mut World, r: world::Request, answer: Option<Answer>) {
    let awaited = w.hosts[r.from]
        .daemon
        .as_mut()
        .is_some_and(|d| d.calls.remove(&r.number));
    if !awaited {
        return;
    }
    if r.ask == Ask::Verdict {
        w.target_hears_verdict(r.from, r.id, answer);
    } else {
        w.source_hears(r.from, r.id, r.ask, answer);
    }
}

fn performs(
    w: &mut World,
    place: world::Place,
    boot: u32,
    id: guest::Id,
    call: Call,
    waiter: Option<(u32, Waiter)>,
) {
    let g = &mut w.hosts[place.0].guests[place.1];
    // The restore waits for its round.
    if let (Call::Restore(round), true) = (call, g.boot == boot)
        && g.arriving.get(&id).is_some_and(|a| a.rounds < round)
        && w.rng.chance(970)
    {
        return w.after(
            20,
            Happening::Perform {
                place,
                boot,
                id,
                call,
                waiter,
            },
        );
    }
    let fails = waiter.is_some() && w.rng.chance(w.faults.failed);
    let g = &mut w.hosts[place.0].guests[place.1];
    let done = if g.boot == boot && !fails {
        g.perform(id, call)
    } else {
        Err(())
    };
    if let Ok(Some(round)) = done
        && let Some(o) = w.hosts[place.0]
            .daemon
            .as_ref()
            .and_then(|d| d.outgoing.get(&id))
    {
        // The bulk connection keeps the order and loses all or nothing.
        let to = o.record.to.0;
        if w.rng.chance(w.faults.lost / 4) {
            lose(w, place.0, to);
        } else {
            w.after(5, Happening::Bulk { to, id, round });
        }
    }
    if let Some((life, waiter)) = waiter {
        guest_answers(w, place, id, call, life, waiter, done.is_ok());
    }
}

fn guest_answers(
    w: &mut World,
    place: world::Place,
    id: guest::Id,
    call: Call,
    life: u32,
    waiter: Waiter,
    ok: bool,
) {
    if w.daemon(place.0, life).is_none() {
        return;
    }
    match waiter {
        Waiter::Source => w.source_guest_answers(place.0, id, call, ok),
        Waiter::Target(reply) => w.target_guest_answers(place.0, id, call, ok, reply),
    }
}

/// Two hosts take each other for lost.
fn lose(w: &mut World, a: usize, b: usize) {
    for (host, peer) in [(a, b), (b, a)] {
        w.source_loses_peer(host, peer);
        w.target_loses_peer(host, peer);
    }
}

fn peers_lose(w: &mut World, host: usize) {
    for peer in 0..w.hosts.len() {
        if peer != host && w.rng.chance(900) {
            w.source_loses_peer(peer, host);
            w.target_loses_peer(peer, host);
        }
    }
}

fn starts(w: &mut World, host: usize) {
    let h = &mut w.hosts[host];
    h.life += 1;
    h.daemon = Some(Daemon::default());
    let life = h.life;
    w.source_recovers(host);
    w.target_recovers(host);
    for guest in 0..GUESTS {
        let ms = w.rng.range(10, 500);
        w.after(ms, Happening::Greet { host, life, guest });
    }
}

fn dies(w: &mut World, place: world::Place) {
    let (host, guest) = place;
    let held: Vec<_> = w.hosts[host].guests[guest].copies.keys().copied().collect();
    w.hosts[host].guests[guest].dies();
    for f in held {
        // What a target holds of a move that is not committed is nobody's last copy.
        let committed = w
            .hosts
            .iter()
            .flat_map(|h| h.journal.source.values())
            .any(|r| r.feature == f && r.committed);
        // Nor is what a source still holds of a move that has arrived.
        let arrived = w.hosts[host].journal.registry.get(&f) == Some(&guest);
        if arrived
            || copies(w, f)
                .iter()
                .all(|c| c.2 == Copy::Ready && !committed)
        {
            w.died.insert(f);
        }
    }
    let (life, ms) = (w.life(host), w.rng.range(500, 5_000));
    w.after(ms, Happening::Greet { host, life, guest });
}

fn copies(w: &World, feature: usize) -> Vec<(usize, usize, Copy)> {
    let mut all = Vec::new();
    for (h, host) in w.hosts.iter().enumerate() {
        for (g, guest) in host.guests.iter().enumerate() {
            if let Some(copy) = guest.copies.get(&feature) {
                all.push((h, g, *copy));
            }
        }
    }
    all
}

/// What holds at every moment.
fn check(w: &World) -> Result<(), String> {
    for f in 0..w.features {
        let all = copies(w, f);
        let running = all.iter().filter(|c| c.2 == Copy::Running).count();
        if running > 1 {
            return Err(format!("feature {f} runs twice: {all:?}"));
        }
        if all.is_empty() && !w.died.contains(&f) {
            return Err(format!("feature {f} is gone"));
        }
        let registered = w
            .hosts
            .iter()
            .filter(|h| h.journal.registry.contains_key(&f))
            .count();
        if registered > 1 {
            return Err(format!("feature {f} is registered {registered} times"));
        }
    }
    for (h, host) in w.hosts.iter().enumerate() {
        for guest in 0..GUESTS {
            let promised = w.promised(h, guest);
            if promised > GUEST_CPUS * 1.1 + 1e-9 && w.reverted == 0 && host.daemon.is_some() {
                return Err(format!(
                    "guest {guest} of host {h} is promised {promised} CPUs"
                ));
            }
        }
    }
    Ok(())
}

/// What holds when the faults have ceased.
fn check_quiet(w: &World) -> Result<(), String> {
    for f in 0..w.features {
        let all = copies(w, f);
        let [(h, g, Copy::Running)] = all[..] else {
            return Err(format!("feature {f} does not run once: {all:?}"));
        };
        if w.hosts[h].journal.registry.get(&f) != Some(&g) {
            return Err(format!("feature {f} runs where it is not registered"));
        }
    }
    for (h, host) in w.hosts.iter().enumerate() {
        let open = |what: &str| Err(format!("host {h} is left with {what}: {host:#?}"));
        let Some(d) = &host.daemon else {
            return open("no daemon");
        };
        if !host.journal.source.is_empty() || !d.outgoing.is_empty() {
            return open("a move from it");
        }
        if host
            .journal
            .target
            .values()
            .any(|r| r.phase != TargetPhase::Running)
        {
            return open("a move to it");
        }
        if !host.journal.target.is_empty() || !d.incoming.is_empty() {
            return open("the record of an arrival");
        }
        if !d.reserved.is_empty() || d.freeze.is_some() {
            return open("a reservation or a turn to freeze");
        }
        if host
            .guests
            .iter()
            .any(|g| !g.leaving.is_empty() || g.arriving.values().any(|a| !a.running))
        {
            return open("something of a move in a guest");
        }
    }
    Ok(())
}

/// Runs a seed: moves done, moves taken back, attempts after the first; or what is wrong.
fn run(seed: u64, tell: bool, broken: bool) -> Result<[u64; 3], String> {
    let mut w = World::new(seed);
    w.broken = broken;
    plan(&mut w);
    while let Some(what) = w.next(QUIET) {
        if w.now > TROUBLE {
            w.faults = Faults::NONE;
        }
        if tell {
            println!("{:>7} {what:?}", w.now);
        }
        happens(&mut w, what);
        if !w.died.is_empty() {
            let died = std::mem::take(&mut w.died);
            let runs = |f: &usize| copies(&w, *f).iter().any(|c| c.2 == Copy::Running);
            w.died = died.into_iter().filter(|f| !runs(f)).collect();
        }
        check(&w).map_err(|e| format!("at {} ms: {e}", w.now))?;
    }
    check_quiet(&w).map_err(|e| format!("at the end: {e}"))?;
    Ok([w.done, w.reverted, w.renewed])
}

#[test]
fn clusters_keep_every_feature_running_once() {
    if let Ok(seed) = std::env::var("DROVER_SEED") {
        let seed = seed.parse().expect("DROVER_SEED is a number");
        if let Err(e) = run(seed, true, false) {
            panic!("seed {seed}: {e}");
        }
        return;
    }
    let seeds = std::env::var("DROVER_SEEDS")
        .map_or(10_000, |s| s.parse().expect("DROVER_SEEDS is a number"));
    let next = AtomicU64::new(0);
    let sums: [AtomicU64; 3] = Default::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let failed = std::thread::scope(|s| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                s.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds {
                            return None;
                        }
                        // One that panics is a seed to replay as well.
                        let ran = std::panic::catch_unwind(|| run(seed, false, false));
                        match ran.unwrap_or_else(|_| Err("it panicked, see above".into())) {
                            Ok(counts) => {
                                for (sum, n) in sums.iter().zip(counts) {
                                    sum.fetch_add(n, Ordering::Relaxed);
                                }
                            }
                            Err(e) => {
                                next.store(seeds, Ordering::Relaxed);
                                return Some((seed, e));
                            }
                        }
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .find_map(|w| w.join().expect("a worker"))
    });
    if let Some((seed, e)) = failed {
        panic!(
            "seed {seed}: {e}\nreplay it: DROVER_SEED={seed} cargo test --test simulation -- --nocapture"
        );
    }
    let [done, reverted, renewed] = sums.map(AtomicU64::into_inner);
    println!(
        "{seeds} seeds: {done} moves done, {reverted} taken back after the commit, {renewed} more \
         attempts"
    );
    // A simulation in which nothing happens proves nothing.
    assert!(done > seeds && renewed > 0 && (reverted > 0 || seeds < 1_000));
}

#[test]
fn a_broken_design_is_found_out() {
    let found = (0..2_000).find_map(|seed| run(seed, false, true).err().map(|e| (seed, e)));
    let (seed, e) = found.expect("a verdict that is not true breaks something");
    println!("seed {seed}: {}", e.lines().next().unwrap_or_default());
}
