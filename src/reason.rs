//! What stands in a move's way, by stable names.
//!
//! A [`Code`] is for programs and stays; the sentence beside it is for people and names the thing
//! and the way out. docs/reasons.md lists all of them.

use serde::{Deserialize, Serialize};

/// Declares the codes with their stable words.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// The stable name of a reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
            /// A reason of a newer version.
            #[serde(other, rename = "other")]
            Other,
        }

        impl Code {
            /// All that this version gives.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                    Self::Other => "other",
                }
            }
        }
    };
}

codes! {
    // The feature and its guest.
    /// An existing unit, not run by Drover.
    NotMovable = "not-movable",
    /// A move of it is under way.
    MovingAlready = "moving-already",
    /// It does not run.
    NotRunning = "not-running",
    /// The helper in the feature's own guest does not answer.
    SourceHelper = "source-helper",
    /// criu in the feature's own guest.
    SourceCriu = "source-criu",

    /// The method of the move needs a command that the feature does not have.
    Hook = "hook",

    // Its processes.
    /// `io_uring`.
    IoUring = "io-uring",
    /// A terminal.
    Terminal = "terminal",
    /// A device that is open or mapped.
    Device = "device",
    /// A kernel object that criu does not know.
    KernelObject = "kernel-object",
    /// A unix stream connection to a process outside of the feature.
    UnixStream = "unix-stream",
    /// A unix datagram socket connected to a process outside of the feature.
    UnixDatagram = "unix-datagram",
    /// MPTCP sockets.
    Mptcp = "mptcp",
    /// A socket of another kind that criu does not know.
    Socket = "socket",
    /// Huge pages.
    Hugetlb = "hugetlb",
    /// A mount namespace of its own.
    MountNamespace = "mount-namespace",
    /// Another namespace of its own inside of the feature.
    Namespace = "namespace",
    /// A debugger.
    Traced = "traced",
    /// Too many threads.
    Threads = "threads",
    /// The first process is not root.
    FirstProcess = "first-process",
    /// Memory shared with the guest.
    SharedMemory = "shared-memory",
    /// A program or library that was deleted or replaced.
    DeletedProgram = "deleted-program",
    /// A deleted file, still open, that is too large to be carried.
    DeletedFile = "deleted-file",
    /// A file outside of the state directories that is open for writing.
    OpenFile = "open-file",
    /// A file of another process below /proc.
    ProcFile = "proc-file",
    /// A FIFO outside of the state directories.
    Fifo = "fifo",
    /// Something of a process cannot be looked at.
    Unreadable = "unreadable",

    // The target's host.
    /// Features move between hosts.
    OwnHost = "own-host",
    /// Another host was asked for.
    NotAsked = "not-asked",
    /// In nobody's configuration.
    UnknownHost = "unknown-host",
    /// Never heard, or it does not answer.
    Unreachable = "unreachable",
    /// Heard too long ago.
    Stale = "stale",
    /// It is being emptied.
    Draining = "draining",
    /// The group may not go there.
    Group = "group",
    /// Pinned to others.
    Pinned = "pinned",
    /// Excluded.
    Excluded = "excluded",
    /// A label.
    Label = "label",
    /// A feature that must be apart.
    Apart = "apart",
    /// Too many moves under way to it.
    MovesIn = "moves-in",
    /// No guest.
    NoGuest = "no-guest",
    /// CPUs of the host.
    HostCpu = "host-cpu",
    /// Memory of the host.
    HostMemory = "host-memory",
    /// The host is of a version that cannot check.
    Version = "version",
    /// It was not asked in the time that a check may take.
    NotChecked = "not-checked",

    // The target's guest.
    /// It does not run.
    GuestOff = "guest-off",
    /// Its helper.
    Helper = "helper",
    /// criu there.
    Criu = "criu",
    /// Another kernel.
    Kernel = "kernel",
    /// Other CPU flags.
    CpuFlags = "cpu-flags",
    /// CPUs of the guest.
    GuestCpu = "guest-cpu",
    /// Memory of the guest.
    GuestMemory = "guest-memory",
    /// The name is taken there.
    NameTaken = "name-taken",
    /// The address is taken.
    Address = "address",
    /// Room for the images.
    Room = "room",
    /// The interface under the feature's.
    Uplink = "uplink",
    /// A program, library or open file is not there.
    FileAbsent = "file-absent",
    /// A program, library or open file is another one there.
    FileDiffers = "file-differs",
    /// A directory in which a process is, or that it has open, is not there.
    DirectoryAbsent = "directory-absent",
    /// A state directory cannot arrive there.
    State = "state",
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why something cannot move.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reason {
    /// Its stable name.
    pub code: Code,
    /// A sentence that names the thing and the way out.
    pub text: String,
}

impl Reason {
    /// A reason.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Texts of reasons, `; ` between them.
pub fn sentences(reasons: &[Reason]) -> String {
    let texts: Vec<&str> = reasons.iter().map(|r| r.text.as_str()).collect();
    texts.join("; ")
}

/// What a dump that is thrown away showed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rehearsal {
    /// What criu could not do; `None` when the dump is complete.
    pub problem: Option<String>,
    /// Bytes of the images.
    pub bytes: u64,
    /// Milliseconds that the feature stood still.
    pub frozen_ms: u64,
    /// Milliseconds that criu took.
    pub dump_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words_and_documented() {
        let page = include_str!("../docs/reasons.md");
        for c in Code::ALL {
            let word = c.as_str();
            assert!(
                word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{word}"
            );
            assert_eq!(serde_json::to_string(c).unwrap(), format!("\"{word}\""));
            assert_eq!(page.matches(&format!("| `{word}` |")).count(), 1, "{word}");
        }
        assert_eq!(page.matches("\n| `").count(), Code::ALL.len());
        let newer: Code = serde_json::from_str("\"of-tomorrow\"").unwrap();
        assert_eq!(newer, Code::Other);
    }
}
