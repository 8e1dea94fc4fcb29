//! libvirt's event callbacks, which the `virt` crate lacks, turned into [`HypervisorEvent`]s.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use virt::connect::Connect;
use virt::error::Error;

use super::{Change, HypervisorEvent, MonitorEvent};

/// Where events go. Never blocks: it is used on libvirt's event loop.
#[derive(Debug)]
pub(super) struct Sink {
    events: mpsc::Sender<HypervisorEvent>,
    missed: AtomicBool,
    monitors: Option<mpsc::Sender<MonitorEvent>>,
}

impl Sink {
    /// A sink into `events`, and into `monitors` for QEMU's own events, if they are wanted.
    pub fn new(
        events: mpsc::Sender<HypervisorEvent>,
        monitors: Option<mpsc::Sender<MonitorEvent>>,
    ) -> Self {
        Self {
            events,
            missed: AtomicBool::new(false),
            monitors,
        }
    }

    /// Where QEMU's own events go.
    pub fn monitors(&self) -> Option<&mpsc::Sender<MonitorEvent>> {
        self.monitors.as_ref()
    }

    /// Sends an event; when nobody takes events fast enough, it is dropped and made up for by a
    /// `Reconnected` as soon as there is room.
    pub fn send(&self, event: HypervisorEvent) {
        self.catch_up();
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            tracing::warn!(?event, "hypervisor event dropped: the queue is full");
            self.missed.store(true, Ordering::Release);
        }
    }

    /// Tells that events were missed, if so and if there is room now.
    pub fn catch_up(&self) {
        if self.missed.swap(false, Ordering::AcqRel)
            && let Err(mpsc::error::TrySendError::Full(_)) =
                self.events.try_send(HypervisorEvent::Reconnected)
        {
            self.missed.store(true, Ordering::Release);
        }
    }
}

/// What a callback is given. Weak, because a driver without close callbacks accepts one and then
/// neither calls nor frees it.
struct Context {
    sink: Weak<Sink>,
    closed: Box<dyn Fn() + Send + Sync>,
}

impl Context {
    fn send(&self, event: HypervisorEvent) {
        if let Some(sink) = self.sink.upgrade() {
            sink.send(event);
        }
    }
}

/// Registered callbacks of one connection; dropping deregisters them.
pub(super) struct Registration {
    conn: Connect,
    events: Vec<c_int>,
    close: bool,
}

impl Registration {
    /// Registers for life-cycle and agent events of all domains, and for the connection's end.
    /// `closed` is called on libvirt's threads and must not block. A driver that lacks the agent
    /// event or the close callback (the test driver) does without.
    pub fn new(
        conn: &Connect,
        sink: &Arc<Sink>,
        closed: impl Fn() + Send + Sync + Clone + 'static,
    ) -> Result<Self, Error> {
        let context = || {
            Box::into_raw(Box::new(Context {
                sink: Arc::downgrade(sink),
                closed: Box::new(closed.clone()),
            }))
            .cast::<c_void>()
        };
        let mut this = Self {
            conn: conn.clone(),
            events: Vec::new(),
            close: false,
        };
        // SAFETY: libvirt calls a callback with the signature that belongs to the event id; the
        // generic type is only how the C interface passes it (VIR_DOMAIN_EVENT_CALLBACK).
        let lifecycle: unsafe extern "C" fn(_, _, *mut c_void) =
            unsafe { std::mem::transmute(on_lifecycle as LifecycleFn) };
        // SAFETY: as above.
        let agent: unsafe extern "C" fn(_, _, *mut c_void) =
            unsafe { std::mem::transmute(on_agent as AgentFn) };
        let reboot: unsafe extern "C" fn(_, _, *mut c_void) = on_reboot;
        for (id, callback, needed) in [
            (virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, true),
            (virt_sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent, false),
            (virt_sys::VIR_DOMAIN_EVENT_ID_REBOOT, reboot, false),
        ] {
            let opaque = context();
            // SAFETY: the connection is open; a null domain means all; `opaque` lives until
            // libvirt calls `free_context` with it, which it does once and only after success.
            let number = unsafe {
                virt_sys::virConnectDomainEventRegisterAny(
                    conn.as_ptr(),
                    std::ptr::null_mut(),
                    id.cast_signed(),
                    Some(callback),
                    opaque,
                    Some(free_context),
                )
            };
            if number >= 0 {
                this.events.push(number);
                continue;
            }
            let e = Error::last_error();
            // SAFETY: registration failed, so libvirt has not kept `opaque`.
            unsafe { free_context(opaque) };
            if needed {
                return Err(e);
            }
            tracing::debug!(event = id, error = %e.message(), "event not available");
        }
        let opaque = context();
        // SAFETY: as for the events.
        let done = unsafe {
            virt_sys::virConnectRegisterCloseCallback(
                conn.as_ptr(),
                Some(on_close),
                opaque,
                Some(free_context),
            )
        };
        if done == 0 {
            this.close = true;
        } else {
            let e = Error::last_error();
            // SAFETY: registration failed, so libvirt has not kept `opaque`.
            unsafe { free_context(opaque) };
            tracing::debug!(error = %e.message(), "close callback not available");
        }
        Ok(this)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for number in &self.events {
            // SAFETY: the number came from this connection, which is still referenced. It fails
            // on a dead connection, whose callbacks libvirt drops with the connection.
            unsafe { virt_sys::virConnectDomainEventDeregisterAny(self.conn.as_ptr(), *number) };
        }
        if self.close {
            // SAFETY: the callback was registered with this connection.
            unsafe {
                virt_sys::virConnectUnregisterCloseCallback(self.conn.as_ptr(), Some(on_close))
            };
        }
    }
}

type LifecycleFn = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    c_int,
    c_int,
    *mut c_void,
) -> c_int;
type AgentFn = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    c_int,
    c_int,
    *mut c_void,
);

unsafe extern "C" fn on_lifecycle(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: `opaque` is the `Context` given at registration and not freed yet.
    let context = unsafe { &*opaque.cast::<Context>() };
    // SAFETY: libvirt passes a valid domain for the time of the callback.
    if let Some((domain, uuid)) = unsafe { identity(domain) } {
        let change = change(event, detail);
        context.send(HypervisorEvent::Lifecycle {
            domain,
            uuid,
            change,
        });
    }
    0
}

unsafe extern "C" fn on_agent(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: `opaque` is the `Context` given at registration and not freed yet.
    let context = unsafe { &*opaque.cast::<Context>() };
    // SAFETY: libvirt passes a valid domain for the time of the callback.
    if let Some((domain, _)) = unsafe { identity(domain) } {
        let connected =
            state as u32 == virt_sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED;
        context.send(HypervisorEvent::AgentConnected { domain, connected });
    }
}

unsafe extern "C" fn on_reboot(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    opaque: *mut c_void,
) {
    // SAFETY: `opaque` is the `Context` given at registration and not freed yet.
    let context = unsafe { &*opaque.cast::<Context>() };
    // SAFETY: libvirt passes a valid domain for the time of the callback.
    if let Some((domain, uuid)) = unsafe { identity(domain) } {
        context.send(HypervisorEvent::Lifecycle {
            domain,
            uuid,
            change: Change::Rebooted,
        });
    }
}

unsafe extern "C" fn on_close(_: virt_sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `Context` given at registration and not freed yet.
    let context = unsafe { &*opaque.cast::<Context>() };
    tracing::debug!(reason, "libvirt closed the connection");
    (context.closed)();
}

unsafe extern "C" fn free_context(opaque: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `Registration::new`, and freed once.
    drop(unsafe { Box::from_raw(opaque.cast::<Context>()) });
}

/// Name and UUID of a domain.
///
/// # Safety
/// `domain` must be a valid domain.
pub(super) unsafe fn identity(domain: virt_sys::virDomainPtr) -> Option<(String, String)> {
    // SAFETY: by the contract `domain` is valid; the name lives as long as it.
    let name = unsafe { virt_sys::virDomainGetName(domain) };
    if name.is_null() {
        return None;
    }
    let mut uuid = [0; virt_sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the buffer has the size that libvirt asks for and comes back terminated.
    if unsafe { virt_sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) } < 0 {
        return None;
    }
    // SAFETY: both are terminated strings that outlive the copies made here.
    let text = |p| {
        unsafe { std::ffi::CStr::from_ptr(p) }
            .to_string_lossy()
            .into_owned()
    };
    Some((text(name), text(uuid.as_ptr())))
}

fn change(event: c_int, detail: c_int) -> Change {
    use virt_sys as v;
    match (event as u32, detail as u32) {
        (v::VIR_DOMAIN_EVENT_DEFINED, _) => Change::Defined,
        (v::VIR_DOMAIN_EVENT_UNDEFINED, _) => Change::Undefined,
        (v::VIR_DOMAIN_EVENT_STARTED, v::VIR_DOMAIN_EVENT_STARTED_MIGRATED) => Change::MigratedHere,
        (v::VIR_DOMAIN_EVENT_STARTED, _) => Change::Started,
        (v::VIR_DOMAIN_EVENT_SUSPENDED | v::VIR_DOMAIN_EVENT_PMSUSPENDED, _) => Change::Suspended,
        (v::VIR_DOMAIN_EVENT_RESUMED, _) => Change::Resumed,
        (v::VIR_DOMAIN_EVENT_STOPPED, v::VIR_DOMAIN_EVENT_STOPPED_MIGRATED) => Change::MigratedAway,
        (
            v::VIR_DOMAIN_EVENT_STOPPED,
            v::VIR_DOMAIN_EVENT_STOPPED_SAVED | v::VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT,
        ) => Change::Saved,
        (v::VIR_DOMAIN_EVENT_STOPPED, v::VIR_DOMAIN_EVENT_STOPPED_CRASHED)
        | (v::VIR_DOMAIN_EVENT_CRASHED, _) => Change::Crashed,
        (v::VIR_DOMAIN_EVENT_STOPPED, _) => Change::Stopped,
        (v::VIR_DOMAIN_EVENT_SHUTDOWN, _) => Change::Shutdown,
        _ => Change::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn missed_events_are_made_up_for() {
        let (tx, mut rx) = mpsc::channel(1);
        let sink = Sink::new(tx, None);
        sink.send(HypervisorEvent::Lost);
        sink.send(HypervisorEvent::Lost);
        sink.catch_up();
        assert_eq!(rx.recv().await, Some(HypervisorEvent::Lost));
        sink.catch_up();
        assert_eq!(rx.recv().await, Some(HypervisorEvent::Reconnected));
        sink.catch_up();
        assert!(rx.try_recv().is_err());
    }
}
