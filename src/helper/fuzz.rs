//! Fuzz targets: what reaches the helper in a guest, and what criu and the kernel answer it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use prost::Message as _;

use super::criu::{rpc, stats};
use super::images::Receiver;
use super::state::store::Store;
use super::{daemon, netns};
use crate::fuzz::{Target, joined, json, pieces, same_as_json, wire};
use crate::wire::bulk::Message;
use crate::wire::guest::{Call, PROTOCOL, Request};

/// Requests of the host.
pub(crate) const REQUESTS: Target = Target {
    name: "helper_requests",
    run: |input| {
        let id = daemon::request_id(input);
        if let Ok(request) = serde_json::from_slice::<Request>(input) {
            assert!(id.is_none_or(|id| id == request.id));
            same_as_json(&request);
        }
    },
    seeds: || {
        let calls = [
            Call::Hello { protocol: PROTOCOL },
            Call::Status,
            Call::Capabilities,
            Call::Meter { interval_ms: 5000 },
        ];
        json(&calls.map(|call| Request { id: 3, call }))
    },
};

/// Bulk messages of a move in a row, as pieces: images and state directories. Nothing outside of
/// the two directories may change, and no more room may be taken than was given.
pub(crate) const IMAGES: Target = Target {
    name: "helper_images",
    run: images,
    seeds: || {
        let all: Vec<_> = wire::bodies().into_iter().map(wire::message).collect();
        vec![joined(&all), joined(&all[..3]), joined(&all[3..])]
    },
};

/// Room for images, bytes.
const ROOM: u64 = 1 << 20;

fn images(input: &[u8]) {
    let place = place();
    let (rounds, state, outside) = (
        place.join("rounds"),
        place.join("state"),
        place.join("outside"),
    );
    for dir in [&rounds, &state, &outside] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).expect("a directory");
    }
    fs::write(outside.join("mine"), b"mine").expect("a file");
    symlink(&outside, state.join("out")).expect("a link");
    symlink(outside.join("mine"), state.join("file")).expect("a link");
    let store = Store::new(std::slice::from_ref(&state)).expect("a store");
    let receiver = Receiver::new(rounds.clone(), ROOM).expect("a receiver");
    let receiver = receiver.with_store(store);
    for piece in pieces(input) {
        if let Ok(message) = Message::decode(piece) {
            receiver.take(message.body);
        }
    }
    receiver.discard();
    let mine = fs::read(outside.join("mine")).expect("the file is there");
    assert_eq!(mine, b"mine");
    assert_eq!(entries(&outside), ["mine"]);
    assert_eq!(entries(place), ["outside", "rounds", "state"]);
    assert!(size(&rounds) <= ROOM);
}

fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        base.join(format!("drover-fuzz-{}", std::process::id()))
    })
}

fn entries(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).expect("a directory");
    let name = |e: std::io::Result<fs::DirEntry>| e.ok()?.file_name().into_string().ok();
    let mut names: Vec<String> = all.filter_map(name).collect();
    names.sort();
    names
}

fn size(dir: &Path) -> u64 {
    let all = fs::read_dir(dir)
        .expect("a directory")
        .filter_map(Result::ok);
    all.map(|e| match e.metadata() {
        Ok(m) if m.is_dir() => size(&e.path()),
        Ok(m) if m.is_file() => m.len(),
        _ => 0,
    })
    .sum()
}

/// Answers of criu, its image files, and the kernel's answers to netlink requests.
pub(crate) const CRIU: Target = Target {
    name: "criu",
    run: |input| {
        let _ = (stats::parse(input), stats::count_pages(input));
        let _ = netns::packets::netlink_error(input);
        if let Ok(r) = rpc::Response::decode(input) {
            let again = rpc::Response::decode(r.encode_to_vec().as_slice());
            assert_eq!(again.as_ref(), Ok(&r));
        }
    },
    seeds: || {
        let response = rpc::Response {
            kind: rpc::Kind::Notify as i32,
            success: true,
            notify: Some(rpc::Notify {
                script: Some("post-dump".into()),
                pid: Some(5),
            }),
            ..rpc::Response::default()
        };
        let head = |magic: [u32; 2]| magic.map(u32::to_le_bytes).concat();
        let mut pages = head([0x5456_4319, 0x5608_4025]);
        pages.extend_from_slice(&[2, 0, 0, 0, 8, 1, 6, 0, 0, 0, 8, 0, 16, 10, 32, 4]);
        let mut dump = head([0x5510_5940, 0x5709_3306]);
        let one = [10, 14, 8, 1, 16, 2, 24, 3, 32, 4, 40, 5, 48, 6, 56, 7];
        dump.extend_from_slice(&[one.len() as u8, 0, 0, 0]);
        dump.extend_from_slice(&one);
        vec![response.encode_to_vec(), pages, dump]
    },
};
