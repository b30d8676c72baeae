//! VT-d registers and tables (being written).
