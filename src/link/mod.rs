//! TODO link
