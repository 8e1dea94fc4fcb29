//! What runs while a feature stands still goes before everything else in the guest.
//!
//! criu mounts and unmounts in the guest's mount namespace, so systemd wakes up and looks at all
//! mounts in the middle of a freeze; journald and timers come along. On one virtual CPU all of that
//! is downtime. A real-time class, the lowest, keeps it waiting; the kernel leaves others a
//! twentieth of the time whatever happens. Where it is not allowed nothing changes.

use std::marker::PhantomData;

use nix::libc;

/// The calling thread goes first while this lives.
#[derive(Debug)]
pub struct Urgent {
    // Of one thread: it must not be dropped in another.
    here: PhantomData<*const ()>,
}

impl Urgent {
    /// From now on.
    pub fn here() -> Self {
        set(0, true);
        Self { here: PhantomData }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        usual();
    }
}

/// The calling thread, and what it starts from now on, goes with all others again: threads and
/// processes inherit the class of who started them.
pub fn usual() {
    set(0, false);
}

/// Lets a process, and what it starts from now on, go first. Tasks that criu restores get the class
/// back that they had.
pub fn process(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        set(pid, true);
    }
}

fn set(pid: i32, urgent: bool) {
    let (policy, priority) = if urgent {
        (libc::SCHED_RR, 1)
    } else {
        (libc::SCHED_OTHER, 0)
    };
    // SAFETY: sched_param is plain data, and the call reads it only.
    let done = unsafe {
        let mut param: libc::sched_param = std::mem::zeroed();
        param.sched_priority = priority;
        libc::sched_setscheduler(pid, policy, &raw const param)
    };
    if done != 0 {
        tracing::debug!(
            "scheduling class of {pid}: {}",
            std::io::Error::last_os_error()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> i32 {
        // SAFETY: takes a number, 0 for the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn it_ends_with_its_guard() {
        let before = class();
        {
            let _urgent = Urgent::here();
            // Where it is not allowed nothing changes.
            assert!([libc::SCHED_RR, before].contains(&class()));
        }
        assert_eq!(class(), libc::SCHED_OTHER);
    }

    #[test]
    fn what_is_started_can_be_as_usual() {
        let _urgent = Urgent::here();
        let started = std::thread::spawn(|| {
            usual();
            class()
        });
        assert_eq!(started.join().unwrap(), libc::SCHED_OTHER);
    }
}
