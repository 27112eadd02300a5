//! What is written comes back; what is not, does no harm.
