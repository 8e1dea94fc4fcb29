//! Affinity (pure).
