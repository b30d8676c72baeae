//! One visit to a queue, and what was found out in it: a translation that may be used again is good for the whole slice (`copy::Slice`),
//! so neighbours cost one lookup.
use svadev_endpoint::{Slice, SpaceId, Span};

/// Memory that an address is known to lead to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'s> {
    space: Option<SpaceId>,
    start: u64,
    span: Option<Span<'s>>,
}

impl<'s> Known<'s> {
    /// The addresses of `space` from `start` on lead to `span`; nothing where that serves one access only.
    pub(super) fn new(space: SpaceId, start: u64, span: Span<'s>) -> Self {
        Self { space: Some(space), start, span: span.is_lasting().then_some(span) }
    }

    /// The memory from `iova` on, where all of `len` bytes are known.
    #[inline]
    pub(super) fn part(&self, space: SpaceId, iova: u64, len: u64) -> Option<Span<'s>> {
        let span = self.span?;
        // An address below the start wraps around, far beyond any span.
        let offset = iova.wrapping_sub(self.start);
        let left = (span.len() as u64).checked_sub(offset)?;
        (self.space == Some(space) && left >= len).then(|| span.skip(usize::try_from(offset).expect("inside a span")))
    }
}

/// What one visit of the engine to a queue has looked up: spans that later descriptors of the visit use again.
pub(super) struct Visit<'s> {
    pub(super) slice: &'s Slice,
    /// Around the last descriptor that was fetched.
    pub(super) sq: Known<'s>,
    /// Around the last completion that was written.
    pub(super) cq: Known<'s>,
    /// Around the last operands that were done without a job; `src` may be read, `dst` written.
    pub(super) src: Known<'s>,
    pub(super) dst: Known<'s>,
}

impl<'s> Visit<'s> {
    pub(super) fn new(slice: &'s Slice) -> Self {
        let nothing = Known::default();
        Self { slice, sq: nothing, cq: nothing, src: nothing, dst: nothing }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use svadev_endpoint::Gate;
    use svadev_fabric::{Pasid, SourceId};

    use super::*;

    #[test]
    fn a_part_is_inside_what_is_known() {
        let mut memory = [0u8; 64];
        // SAFETY: no engine and no mailbox: nothing is ever retired.
        #[allow(unsafe_code, reason = "a slice of no engine's")]
        let slice = unsafe { Slice::begin(Gate::default()) };
        let host = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: `memory` outlives the slice.
        #[allow(unsafe_code, reason = "a span of this test's own memory")]
        let span = unsafe { Span::new(&slice, host, 64) };
        let space = |pasid| SpaceId::new(SourceId::UNIT, pasid);
        let (pasid, none) = (space(Pasid::new(7).ok()), space(None));
        let known = Known::new(pasid, 0x1000, span);
        let len = |space, iova, len| known.part(space, iova, len).map(|part| part.len());
        assert_eq!(len(pasid, 0x1000, 64), Some(64));
        assert_eq!(len(pasid, 0x1030, 16), Some(16));
        assert_eq!(len(pasid, 0x1030, 17), None, "beyond its end");
        assert_eq!(len(pasid, 0x0fff, 1), None, "before its start");
        assert_eq!(len(pasid, 0x1040, 1), None);
        assert_eq!((len(none, 0x1000, 1), len(space(Pasid::new(8).ok()), 0x1000, 1)), (None, None), "somebody else's");
        assert!(Known::new(pasid, 0x1000, span.once()).part(pasid, 0x1000, 1).is_none(), "good for one access");
        assert!(Known::default().part(none, 0, 0).is_none());
    }
}
