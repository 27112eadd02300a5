//! The runs of the store's benchmark.

pub mod appends;
pub mod churn;
pub mod costs;
pub mod crowd;
pub mod reads;
