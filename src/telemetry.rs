//! TODO telemetry
