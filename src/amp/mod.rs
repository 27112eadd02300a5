//! TODO amp
