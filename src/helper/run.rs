//! Run of the helper.
