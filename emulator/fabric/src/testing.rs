//! Ends of the fabric for tests and benchmarks.
use crate::{Bdf, Delivery, Downstream, InvalidateAck, InvalidateRequest, Msi, PageGroupResponse};

/// No function behind a unit. Invalidations are done at once; answers and interrupts go nowhere.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Downstream for Silent {
    fn invalidate(&self, _: Bdf, _: InvalidateRequest) -> InvalidateAck {
        InvalidateAck::Done
    }
    fn page_group_response(&self, _: Bdf, _: PageGroupResponse) {}
    fn message_interrupt(&self, _: Option<Bdf>, _: Msi) -> Delivery {
        Delivery::Sent
    }
}
