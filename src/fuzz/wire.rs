//! The pure decoders of `wire`.

use super::{Target, joined, pieces};
use crate::wire::bulk::{Body, Message};
use crate::wire::frame::{self, Decoder, Frame, Kind, MAX_PAYLOAD};
use crate::wire::state::{Meta, State, What, valid_component, valid_path};

/// Frames in a stream that is cut anywhere.
pub(super) const FRAME: Target = Target {
    name: "frame",
    run: frames,
    seeds: || {
        let mut one = Vec::new();
        let _ = frame::encode(Kind::Control, 7, b"{}", &mut one);
        let mut two = one[5..].to_vec();
        let _ = frame::encode(Kind::Bulk, 8, &[1; 40], &mut two);
        let _ = frame::encode(Kind::Control, 9, &one, &mut two);
        vec![one, two]
    },
};

fn all(bytes: &[u8], cut: usize) -> (Vec<Frame>, u64) {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    for part in bytes.chunks(cut) {
        decoder.push(part);
        found.extend(std::iter::from_fn(|| decoder.next()));
    }
    (found, decoder.skipped())
}

fn frames(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let (found, skipped) = all(bytes, usize::from(*cut) + 1);
    assert_eq!((found.clone(), skipped), all(bytes, MAX_PAYLOAD));
    let sizes: usize = found.iter().map(|f| f.payload.len() + frame::HEADER).sum();
    assert!(sizes + skipped as usize <= bytes.len());
    for f in found {
        let mut again = Vec::new();
        frame::encode(f.kind, f.session, &f.payload, &mut again).expect("what was read fits");
        assert_eq!(all(&again, 1 << 20), (vec![f], 0));
    }
}

/// One bulk message.
pub(super) const BULK: Target = Target {
    name: "bulk",
    run: |input| {
        if let Ok(message) = Message::decode(input) {
            checked(&message);
        }
    },
    seeds: || bodies().into_iter().map(message).collect(),
};

/// State messages in a row.
pub(super) const STATE: Target = Target {
    name: "state",
    run: |input| {
        for piece in pieces(input) {
            let bytes = [&[5, 0, 0, 0, 0], piece].concat();
            if let Ok(message) = Message::decode(&bytes) {
                checked(&message);
            }
        }
    },
    seeds: || {
        let states = |b| match b {
            Body::State(s) => Some(message(Body::State(s))[5..].to_vec()),
            _ => None,
        };
        vec![joined::<Vec<u8>>(
            &bodies().into_iter().filter_map(states).collect::<Vec<_>>(),
        )]
    },
};

fn checked(message: &Message) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert_eq!(Message::decode(&bytes).as_ref(), Ok(message));
    assert!(message.body.content() <= bytes.len());
    match &message.body {
        Body::Open { name, .. } => assert!(!name.contains('/') && !name.starts_with('.')),
        Body::State(State::Enter { path, .. } | State::Entry { path, .. }) => inside(path),
        Body::State(State::Names { path, names, .. }) => {
            inside(path);
            assert!(names.iter().all(|n| valid_component(n)));
        }
        _ => {}
    }
}

fn inside(path: &[u8]) {
    assert!(valid_path(path) && !path.starts_with(b"/"));
    assert!(path.split(|b| *b == b'/').all(|c| c != b".."));
}

/// A message as it travels.
pub(crate) fn message(body: Body) -> Vec<u8> {
    let mut out = Vec::new();
    Message { stream: 7, body }.encode(&mut out);
    out
}

/// The messages of a round that fit each other: one image file, and a directory with an entry of
/// each kind.
pub(crate) fn bodies() -> Vec<Body> {
    let content = b"some bytes of a file".to_vec();
    let sum = crate::wire::sum::of(&content);
    let size = content.len() as u64;
    let entry = |path: &[u8], what| {
        Body::State(State::Entry {
            dir: 0,
            path: path.to_vec(),
            meta: Meta {
                mode: 0o644,
                mtime_s: 1_700_000_000,
                xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
                ..Meta::default()
            },
            what,
        })
    };
    vec![
        Body::Open {
            round: 1,
            file: 1,
            size,
            name: "pages-1.img".into(),
        },
        Body::Data {
            file: 1,
            offset: 0,
            bytes: content.clone(),
        },
        Body::Close { file: 1, sum },
        Body::State(State::Enter {
            dir: 0,
            path: Vec::new(),
        }),
        entry(b"f", What::File { size, fresh: true }),
        Body::State(State::Data {
            offset: 0,
            bytes: content,
        }),
        Body::State(State::Hole {
            offset: 4,
            length: 4,
        }),
        Body::State(State::End { sum }),
        entry(b"link", What::Link(b"../outside/mine".to_vec())),
        entry(b"pipe", What::Fifo),
        entry(
            b"same",
            What::Same {
                dir: 0,
                path: b"f".to_vec(),
            },
        ),
        Body::State(State::Names {
            dir: 0,
            path: Vec::new(),
            last: true,
            names: vec![
                b"f".to_vec(),
                b"link".to_vec(),
                b"pipe".to_vec(),
                b"same".to_vec(),
            ],
        }),
        entry(b"", What::Dir),
        Body::State(State::Pass { entries: 5, sum: 1 }),
        Body::RoundEnd {
            round: 1,
            files: 1,
            bytes: size,
        },
    ]
}
