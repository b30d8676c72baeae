//! vfio-user messages (being written).
