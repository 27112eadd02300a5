//! TODO http
