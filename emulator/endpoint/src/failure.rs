//! Why an access has failed.
/// Why an access has failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Requests for this address space are refused: nothing is bound there.
    Blocked,
    /// The translation leads to no memory, or to memory that forbids the access.
    NoMemory,
    /// The page does not exist, forbids the access, or may not be asked for.
    PageFault,
    /// Page requests were answered *response failure*.
    PageRequestFailed,
    /// The page was asked for, and no answer came in time.
    Timeout,
}
