//! TODO router
