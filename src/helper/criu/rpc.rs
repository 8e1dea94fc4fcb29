//! criu's RPC messages, as far as the helper uses them.
//!
//! Numbers are those of criu's `images/rpc.proto`, which only ever grows. Unknown fields of
//! answers are skipped.

/// Kinds of requests and answers (`criu_req_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Also the kind of answers to what criu could not read.
    Empty = 0,
    /// Checkpoint.
    Dump = 1,
    /// Restore.
    Restore = 2,
    /// `criu check`.
    Check = 3,
    /// Copy memory, leave the tasks running.
    PreDump = 4,
    /// A step was reached; criu waits for the answer.
    Notify = 6,
    /// Version.
    Version = 10,
}

/// How criu treats cgroups (`criu_cg_mode`): not at all.
pub const CGROUPS_IGNORE: i32 = 0;
/// Network lock (`criu_network_lock_method`): not criu's business, the namespace has a gate.
pub const NETWORK_LOCK_SKIP: i32 = 3;

/// Options of a request (`criu_opts`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Opts {
    /// Image directory: a descriptor of the process that made the socket.
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    /// Root task to dump.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// The tasks go on after the dump.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// Established TCP connections are allowed.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// The root task is part of a shell's session.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// File locks are allowed.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// 1 errors, 2 warnings, 3 information, 4 debugging.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// Log file in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// Ask at every step.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// Images of the round before, relative to the image directory.
    #[prost(string, optional, tag = "14")]
    pub parent_img: Option<String>,
    /// Track changed pages.
    #[prost(bool, optional, tag = "15")]
    pub track_mem: Option<bool>,
    /// Directory of log and statistics.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// The restored root task becomes a sibling of criu.
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    /// See [`CGROUPS_IGNORE`].
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// Largest deleted file carried along, bytes.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    /// Seconds until criu gives up collecting the tasks.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    /// See [`NETWORK_LOCK_SKIP`].
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
}

/// A request (`criu_req`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// What is asked.
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// Options.
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Opts>,
    /// Answer to a notification.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

/// Result of a restore (`criu_restore_resp`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Restored {
    /// Root task.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// A step (`criu_notify`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Notify {
    /// Name of the step, as for action scripts.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// Root task, where criu knows it.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// criu's version (`criu_version`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Version {
    /// Major number.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// Minor number.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// Third number.
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// An answer (`criu_resp`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Kind of the request that it answers, or `Notify`.
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    /// Whether it went well.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// To `Restore`.
    #[prost(message, optional, tag = "4")]
    pub restore: Option<Restored>,
    /// With `Notify`.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    /// An errno.
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    /// First error line of the log.
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
    /// To `Version`.
    #[prost(message, optional, tag = "10")]
    pub version: Option<Version>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn field_numbers_are_criu_s() {
        let r = Request {
            kind: Kind::PreDump as i32,
            opts: Some(Opts {
                images_dir_fd: 5,
                pid: Some(300),
                parent_img: Some("../1".into()),
                network_lock: Some(NETWORK_LOCK_SKIP),
                ..Opts::default()
            }),
            notify_success: None,
        };
        let want = [
            0x08, 4, // type
            0x12, 14, // opts
            0x08, 5, // images_dir_fd
            0x10, 0xac, 0x02, // pid
            0x72, 4, b'.', b'.', b'/', b'1', // parent_img
            0x80, 0x04, 3, // network_lock: field 64
        ];
        assert_eq!(r.encode_to_vec()[..2], want[..2]);
        assert_eq!(r.encode_to_vec()[4..], want[4..]);
        assert_eq!(r.encode_to_vec()[3], 14);
    }

    #[test]
    fn answers_with_unknown_fields_decode() {
        // type NOTIFY, success, notify{script "post-dump"}, field 6 (page server) unknown here.
        let mut b = vec![0x08, 6, 0x10, 1, 0x2a, 11, 0x0a, 9];
        b.extend_from_slice(b"post-dump");
        b.extend_from_slice(&[0x32, 2, 0x10, 7]);
        let r = Response::decode(b.as_slice()).unwrap();
        assert_eq!(r.kind(), Kind::Notify);
        assert_eq!(r.notify.unwrap().script(), "post-dump");
    }
}
