//! Points in time, as XEP-0082 writes them. Nothing here reads a clock.
