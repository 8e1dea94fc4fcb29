//! Peer (edge).
