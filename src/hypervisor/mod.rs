//! Hypervisor (edge).
