//! Tests of the chunk store as a whole: every storage behaves alike, no power cut and no fault
//! loses an acknowledged recovery point, damage is found, named and contained.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests say what they expect, and their seeds"
)]

mod conformance;
mod copies;
mod corpus;
mod damage;
mod faults;
mod faults_all;
mod full_disk;
mod gc;
mod golden;
mod index;
mod interrupt;
mod keep;
mod keys;
mod kills;
mod matrix;
mod model;
mod nodes;
mod orders;
mod peers;
mod planted;
mod power;
mod power_collect;
mod processes;
mod repair;
mod repository;
mod sim;
mod support;
mod verify;
