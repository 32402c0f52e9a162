//! The observed state of the hub, from its catalog and spcd's own tables.

pub mod aggregators;
pub mod dependents;
pub(crate) mod foreign_tables;
pub mod lanes;
pub mod observe;
pub(crate) mod ownership;
