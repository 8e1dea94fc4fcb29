//! Events: what QEMU tells by itself.

use serde::Deserialize;
use serde_json::Value;

/// An event with its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Host's wall clock when QEMU raised it, microseconds since the epoch; `None` when QEMU did
    /// not tell.
    pub at_us: Option<u64>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// `BLOCK_IO_ERROR`: a disk operation failed.
    BlockIoError {
        /// Device name, possibly empty.
        device: String,
        /// `read` or `write`.
        operation: String,
        /// What QEMU does: `ignore`, `report` or `stop`.
        action: String,
        /// The host's error, in words; for people only.
        reason: String,
    },
    /// `VSERPORT_CHANGE`: a virtio-serial port was opened or closed in the guest.
    VserportChange {
        /// Alias of the port's device.
        id: String,
        /// Whether it is open now.
        open: bool,
    },
    /// `GUEST_PANICKED`.
    GuestPanicked {
        /// What QEMU does: `pause`, `poweroff` or `run`.
        action: String,
    },
    /// `BALLOON_CHANGE`: the guest's memory has another size.
    BalloonChange {
        /// Bytes now.
        actual: u64,
    },
    /// Any other event, or one of another form than expected.
    Unknown {
        /// Its name.
        name: String,
        /// Its data.
        data: Value,
    },
}

#[derive(Deserialize)]
struct BlockIoError {
    #[serde(default)]
    device: String,
    operation: String,
    action: String,
    #[serde(default)]
    reason: String,
}
#[derive(Deserialize)]
struct VserportChange {
    id: String,
    open: bool,
}
#[derive(Deserialize)]
struct GuestPanicked {
    action: String,
}
#[derive(Deserialize)]
struct BalloonChange {
    actual: u64,
}

impl Event {
    /// Names of the events that have a kind of their own.
    pub const NAMES: &[&str] = &[
        "BLOCK_IO_ERROR",
        "VSERPORT_CHANGE",
        "GUEST_PANICKED",
        "BALLOON_CHANGE",
    ];

    /// An event of this name and with these data, as whoever holds the monitor passes it on. `at_us`:
    /// host's wall clock, microseconds since the epoch.
    pub fn new(name: &str, at_us: Option<u64>, data: Value) -> Self {
        Self {
            at_us,
            kind: EventKind::parse(name, data),
        }
    }

    /// Takes an event out of a message; `None` when the message is none.
    pub fn parse(message: &Value) -> Option<Self> {
        let name = message.get("event")?.as_str()?;
        let data = message.get("data").cloned().unwrap_or(Value::Null);
        let at_us = message.get("timestamp").and_then(|t| {
            // QEMU writes -1 when it has no time.
            let part = |key| t.get(key).and_then(Value::as_u64);
            part("seconds")?
                .checked_mul(1_000_000)?
                .checked_add(part("microseconds")?)
        });
        Some(Self::new(name, at_us, data))
    }
}

impl EventKind {
    /// The name that QEMU has for it.
    pub fn name(&self) -> &str {
        match self {
            Self::BlockIoError { .. } => "BLOCK_IO_ERROR",
            Self::VserportChange { .. } => "VSERPORT_CHANGE",
            Self::GuestPanicked { .. } => "GUEST_PANICKED",
            Self::BalloonChange { .. } => "BALLOON_CHANGE",
            Self::Unknown { name, .. } => name,
        }
    }

    fn parse(name: &str, data: Value) -> Self {
        let known = match name {
            "BLOCK_IO_ERROR" => BlockIoError::deserialize(&data)
                .ok()
                .map(|e| Self::BlockIoError {
                    device: e.device,
                    operation: e.operation,
                    action: e.action,
                    reason: e.reason,
                }),
            "VSERPORT_CHANGE" => {
                VserportChange::deserialize(&data)
                    .ok()
                    .map(|e| Self::VserportChange {
                        id: e.id,
                        open: e.open,
                    })
            }
            "GUEST_PANICKED" => GuestPanicked::deserialize(&data)
                .ok()
                .map(|e| Self::GuestPanicked { action: e.action }),
            "BALLOON_CHANGE" => BalloonChange::deserialize(&data)
                .ok()
                .map(|e| Self::BalloonChange { actual: e.actual }),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Unknown {
            name: name.to_owned(),
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events() {
        let e = Event::parse(&json!({
            "timestamp": {"seconds": 2, "microseconds": 5},
            "event": "VSERPORT_CHANGE", "data": {"id": "channel1", "open": true}}))
        .unwrap();
        assert_eq!(e.at_us, Some(2_000_005));
        assert_eq!(
            e.kind,
            EventKind::VserportChange {
                id: "channel1".into(),
                open: true
            }
        );
        let e = Event::parse(&json!({
            "timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}))
        .unwrap();
        assert_eq!(e.at_us, None);
        assert!(matches!(e.kind, EventKind::Unknown { name, .. } if name == "STOP"));
        // An event of an unexpected form is still an event.
        let e = Event::parse(&json!({"event": "BALLOON_CHANGE", "data": {"actual": "x"}})).unwrap();
        assert!(matches!(e.kind, EventKind::Unknown { .. }));
        let e = Event::parse(&json!({"event": "BALLOON_CHANGE", "data": {"actual": 7}})).unwrap();
        assert_eq!(e.kind, EventKind::BalloonChange { actual: 7 });
        assert_eq!(Event::parse(&json!({"return": {}})), None);
        // As QEMU writes them.
        let io = json!({"device": "", "node-name": "libvirt-1-format", "operation": "write",
            "action": "stop", "nospace": true, "reason": "No space left on device",
            "qom-path": "/machine/peripheral/virtio-disk0/virtio-backend"});
        let data = [
            io,
            json!({"id": "channel1", "open": false}),
            json!({"action": "pause", "info": {"type": "hyper-v"}}),
            json!({"actual": 1}),
        ];
        for (name, data) in Event::NAMES.iter().zip(data) {
            let e = Event::new(name, None, data);
            assert!(!matches!(e.kind, EventKind::Unknown { .. }), "{name}");
            assert_eq!(e.kind.name(), *name);
        }
    }
}
