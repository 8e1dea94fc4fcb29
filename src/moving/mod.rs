//! Moving (pure).
