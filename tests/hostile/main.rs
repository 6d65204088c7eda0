//! Files of weights that were made to run code, to exhaust memory or to make scumble panic.

mod allocations;
mod fuzz;
mod malicious;
mod pickles;
