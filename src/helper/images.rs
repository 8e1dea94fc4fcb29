//! Images of the helper.
