//! Packs as the store makes and reads them.

mod builder;
mod footer;

pub(crate) use builder::{ClosedPack, OpenPack, Reservation};
pub(crate) use footer::{PackFooter, footer_of, read_footer, verify_pack_bytes};
