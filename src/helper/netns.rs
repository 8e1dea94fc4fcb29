//! Netns of the helper.
