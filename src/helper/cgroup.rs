//! Cgroup of the helper.
