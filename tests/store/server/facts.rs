//! What a server must have, and what is found in it.
