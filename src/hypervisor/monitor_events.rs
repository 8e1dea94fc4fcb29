//! What QEMU tells by itself (QMP events), by way of libvirt, which hears it in any case: nothing is
//! sent to QEMU, and the domain is not marked as tainted.

use std::ffi::{CStr, CString, c_char, c_int, c_longlong, c_uint, c_void};

use drover_qmp::Event;
use tokio::sync::mpsc;
use virt::connect::Connect;
use virt::error::Error;

use super::events::identity;

/// Longest data of an event that is looked at, bytes: a guest has a part in some of it.
const MAX_DATA: usize = 16 * 1024;

/// An event of a domain's QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct MonitorEvent {
    /// Domain's name.
    pub domain: String,
    /// What QEMU told.
    pub event: Event,
}

/// Callbacks of one connection; dropping deregisters them.
pub(super) struct MonitorRegistration {
    conn: Connect,
    numbers: Vec<c_int>,
}

impl MonitorRegistration {
    /// Registers for the events that Drover understands, of all domains. One that the driver does not
    /// have is left out. Events for which there is no room in `events` are dropped: libvirt's event
    /// loop never waits for anybody.
    pub fn new(conn: &Connect, events: &mpsc::Sender<MonitorEvent>) -> Self {
        let mut numbers = Vec::new();
        for name in Event::NAMES {
            let Ok(event) = CString::new(*name) else {
                continue;
            };
            let opaque = Box::into_raw(Box::new(events.clone())).cast::<c_void>();
            // SAFETY: the connection is open; a null domain means all; `event` outlives the call, and
            // `opaque` lives until libvirt calls `free_sender` with it, once and only after success.
            let number = unsafe {
                virt_sys::virConnectDomainQemuMonitorEventRegister(
                    conn.as_ptr(),
                    std::ptr::null_mut(),
                    event.as_ptr(),
                    Some(on_event),
                    opaque,
                    Some(free_sender),
                    0,
                )
            };
            if number >= 0 {
                numbers.push(number);
                continue;
            }
            let e = Error::last_error();
            // SAFETY: registration failed, so libvirt has not kept `opaque`.
            unsafe { free_sender(opaque) };
            tracing::debug!(event = name, error = %e.message(), "QEMU's event not available");
        }
        Self {
            conn: conn.clone(),
            numbers,
        }
    }
}

impl Drop for MonitorRegistration {
    fn drop(&mut self) {
        for number in &self.numbers {
            // SAFETY: the number came from this connection, which is still referenced. It fails on a
            // dead connection, whose callbacks libvirt drops with the connection.
            unsafe {
                virt_sys::virConnectDomainQemuMonitorEventDeregister(self.conn.as_ptr(), *number)
            };
        }
    }
}

unsafe extern "C" fn on_event(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    name: *const c_char,
    seconds: c_longlong,
    micros: c_uint,
    details: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: `opaque` is the sender given at registration and not freed yet.
    let events = unsafe { &*opaque.cast::<mpsc::Sender<MonitorEvent>>() };
    if name.is_null() {
        return;
    }
    // SAFETY: libvirt passes a terminated name, and terminated details or null.
    let (name, details) = unsafe {
        (
            CStr::from_ptr(name).to_string_lossy(),
            (!details.is_null()).then(|| CStr::from_ptr(details)),
        )
    };
    // SAFETY: libvirt passes a valid domain for the time of the callback.
    let Some((domain, _)) = (unsafe { identity(domain) }) else {
        return;
    };
    let event = event(&name, seconds, micros, details.map(CStr::to_bytes));
    let _ = events.try_send(MonitorEvent { domain, event });
}

unsafe extern "C" fn free_sender(opaque: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `MonitorRegistration::new`, and freed once.
    drop(unsafe { Box::from_raw(opaque.cast::<mpsc::Sender<MonitorEvent>>()) });
}

/// The event that libvirt describes so; data that is too long or no JSON counts as none.
fn event(name: &str, seconds: i64, micros: u32, details: Option<&[u8]>) -> Event {
    let data = details
        .filter(|d| d.len() <= MAX_DATA)
        .and_then(|d| serde_json::from_slice(d).ok())
        .unwrap_or(serde_json::Value::Null);
    // QEMU writes -1 when it has no time.
    let at_us = u64::try_from(seconds)
        .ok()
        .and_then(|s| s.checked_mul(1_000_000)?.checked_add(micros.into()));
    Event::new(name, at_us, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_qmp::EventKind;

    #[test]
    fn what_libvirt_passes_on() {
        let e = event("BALLOON_CHANGE", 2, 5, Some(br#"{"actual":7}"#));
        assert_eq!(e.at_us, Some(2_000_005));
        assert_eq!(e.kind, EventKind::BalloonChange { actual: 7 });
        // Cut off, none, endless: an event all the same, of which the data are not known.
        let endless = format!("\"{}\"", "x".repeat(MAX_DATA));
        for details in [Some(&b"{\"act"[..]), None, Some(endless.as_bytes())] {
            let e = event("BALLOON_CHANGE", -1, 0, details);
            assert_eq!(e.at_us, None);
            assert!(matches!(e.kind, EventKind::Unknown { data, .. } if data.is_null()));
        }
    }
}
