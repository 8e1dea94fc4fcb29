//! A hung guest holds up nobody else: the real droverd with fifty guests on real sockets, one of
//! which stops. Told by counts; `make bench-fleet` measures times.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, dead_code)]

mod stage;

use std::sync::atomic::Ordering;

use stage::{Binaries, Result, Size, Stage};

const GUESTS: u64 = 50;
/// Frames that each guest sends while one is hung.
const FRAMES: u64 = 12;

#[test]
fn a_hung_guest_delays_nobody() -> Result<()> {
    let binaries = Binaries {
        droverd: env!("CARGO_BIN_EXE_droverd").into(),
        drover: env!("CARGO_BIN_EXE_drover").into(),
    };
    let size = Size {
        guests: GUESTS,
        features: 2,
        interval_s: 1,
    };
    let stage = Stage::set(&binaries, size)?;
    stage.wait_for(1..=GUESTS, 3)?;
    stage.guest(1).hung.store(true, Ordering::Relaxed);
    let hung_at = stage::guest::now_ms();
    stage.wait_for(2..=GUESTS, FRAMES)?;
    for guest in 2..=GUESTS {
        // The last frame may be under way, the first may have been sent before.
        let points = stage.times(guest)?.into_iter().filter(|t| *t > hung_at);
        assert!(
            points.count() as u64 >= FRAMES - 1,
            "guest {guest}\n{}",
            stage.log()?
        );
    }
    // What was in its socket when it stopped is all that came of it.
    let own = stage.times(1)?.into_iter().filter(|t| *t > hung_at);
    assert!(own.count() <= 1);
    // It goes on where it was.
    stage.guest(1).hung.store(false, Ordering::Relaxed);
    stage.wait_for(1..=1, 3)
}
