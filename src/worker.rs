//! One thread = one engine = one accept loop per port.
