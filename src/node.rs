//! TODO node
