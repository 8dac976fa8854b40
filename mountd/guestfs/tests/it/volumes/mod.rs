//! Volumes on disks that the real tools made.

mod group;
mod hold;
mod lvm;
mod md;
mod tables;
mod thin;
mod zoo;
