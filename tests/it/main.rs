//! The promises, kept by the real binary in front of real sockets, on both engines.
//!
//! Each module is named for what it proves. `TIDEGATE_BIN` tests another binary than the one cargo
//! built, `TIDEGATE_SOAK=1` runs everything at full size; see `tests/README.md`.

mod support; // the gateway as a child, the application that counts, the clients that keep books

mod rig; // the rig itself: an oracle that is wrong would prove anything
