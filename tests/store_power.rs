//! Registry and journal when the power goes: images of a file system taken under a running writer,
//! as a disk would have them, and opened again.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod power_support;

use drover::store::{Change, Side, Store};
use power_support::{Cuts, ROUNDS, acknowledge};

const NAME: &str = "a_power_cut_loses_no_record";

/// Number `n` of the journal, and its twin in another table: one transaction.
fn write(s: &Store, n: i64) {
    let record = n.to_le_bytes().to_vec();
    s.transaction(vec![
        Change::PutMove {
            side: Side::Source,
            id: "current".into(),
            record: record.clone(),
        },
        Change::PutSetting {
            key: "twin".into(),
            value: record,
        },
    ])
    .unwrap();
}

#[test]
fn a_power_cut_loses_no_record() {
    if let Some(dir) = power_support::writer() {
        let s = Store::open(&dir).unwrap();
        for n in 0.. {
            write(&s, n);
            acknowledge(n);
        }
    }
    let Some(cuts) = Cuts::of(NAME, 48, |round| 50 + round * 97 % 300) else {
        return;
    };
    for (round, (image, last)) in cuts.images.iter().enumerate() {
        let (_mounted, dir) = cuts.look(image);
        let s = Store::open(&dir).unwrap();
        let moves = s.moves(Side::Source).unwrap();
        let journal = i64::from_le_bytes(moves[0].1.as_slice().try_into().unwrap());
        assert!(journal >= *last, "round {round}: {journal} of {last}");
        // A transaction is there as a whole or not at all.
        assert_eq!(s.get("twin").unwrap().unwrap(), journal.to_le_bytes());
        assert_eq!(s.problems(), Vec::<String>::new(), "round {round}");
        // And it goes on from there.
        write(&s, journal + 1);
        assert_eq!(
            s.moves(Side::Source).unwrap()[0].1,
            (journal + 1).to_le_bytes()
        );
    }
    let last = cuts.last();
    println!("{ROUNDS} power cuts, the last after {last} transactions");
    assert!(
        last > 20,
        "only {last} transactions: too few to show anything"
    );
}
