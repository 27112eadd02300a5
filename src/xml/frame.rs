//! Cutting an endless stream into whole stanzas, with limits checked as bytes arrive.
