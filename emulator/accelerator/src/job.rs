//! A descriptor under way: its phases, and one bounded step of it.
use svadev_endpoint::{Patience, Platform, Refusal, Requester, Slice, SpaceId, Span, Target, Wait};
use svadev_fabric::Pasid;
use svadev_mutation::mutant;
use svadev_spec::device::{Code, Completion, DescriptorFlags, FaultFlags};

use crate::descriptor::{OperandSpace, Operation, Work};
use crate::scatter::{Cursor, ListBuffer, overlap};

/// Bytes that are computed on at once: what fits a buffer on the stack and the first-level cache.
const CHUNK: usize = 4096;

/// What a piece costs at least, however short it is: each may need a translation.
pub(crate) const PIECE_COST: i64 = 64;
/// What a page of PREFETCH or DROP costs: a translation may be a walk of five levels.
const PAGE_COST: i64 = 512;
/// What a list entry costs: it is read, and looked at again by the overlap check.
const ENTRY_COST: i64 = 32;
/// Bytes of a DROP at once: sixteen probes of the device TLB.
const DROP_BYTES: u64 = 64 << 10;

/// Where a job stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    /// Its lists are being fetched; then they are checked.
    Lists,
    /// Operands are being worked on.
    Run,
    /// A DRAIN: over when everything before it is.
    Drain,
    /// Over, its completion not written yet (the sequence number is filled in then).
    Complete(Completion),
}

/// A descriptor under way. It ends by a completion record, or with its queue.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its index in the submission ring.
    pub(crate) index: u64,
    pub(crate) space: Option<Pasid>,
    pub(crate) flags: DescriptorFlags,
    pub(crate) phase: Phase,
    /// Set while it is parked.
    pub(crate) wait: Option<Wait>,
    pub(crate) patience: Patience,
    cookie: u64,
    operation: Operation,
    src: Option<Cursor>,
    dst: Option<Cursor>,
    length: u64,
    /// Bytes done, from the start of the operands.
    done: u64,
    crc: u32,
}

/// How a step ended.
#[derive(Debug)]
pub(crate) enum Step {
    /// The budget is used up; there is more to do.
    Yield,
    /// The phase is `Complete` now.
    Complete,
    /// An address led nowhere. `ahead` is how many bytes from it on the operand goes on in one piece.
    Refused { target: Target, refusal: Refusal, ahead: u64 },
}

/// An operand's address that could not be had.
struct Refused {
    target: Target,
    refusal: Refusal,
    ahead: u64,
}

impl Job {
    /// Starts a checked descriptor. `buffers` yields room for as many lists as it has.
    pub(crate) fn new(index: u64, work: &Work, mut buffer: impl FnMut() -> ListBuffer) -> Self {
        let mut cursor = |operand: Option<crate::descriptor::Operand>| {
            operand.map(|o| Cursor::new(o, work.length, (o.entries != 0).then(&mut buffer)))
        };
        let (src, dst) = (cursor(work.src), cursor(work.dst));
        let mut job = Self {
            index,
            space: work.space,
            flags: work.flags,
            phase: Phase::Lists,
            wait: None,
            patience: Patience::default(),
            cookie: work.cookie,
            operation: work.operation,
            src,
            dst,
            length: work.length,
            done: 0,
            crc: if let Operation::Crc32c { seed } = work.operation { seed } else { 0 },
        };
        match work.operation {
            Operation::Nop => job.complete(Code::Success, 0),
            Operation::Drain => job.phase = Phase::Drain,
            _ => {}
        }
        job
    }

    /// A descriptor that ends before it begins.
    pub(crate) fn ended(index: u64, space: Option<Pasid>, flags: DescriptorFlags, cookie: u64, code: Code) -> Self {
        let work = Work { operation: Operation::Nop, flags, cookie, space, src: None, dst: None, length: 0 };
        let mut job = Self::new(index, &work, || unreachable!("it has no lists"));
        job.complete(code, 0);
        job
    }

    /// Number of lists that it has room for.
    pub(crate) fn lists(&self) -> usize {
        [&self.src, &self.dst].into_iter().flatten().filter(|cursor| cursor.list_entries() != 0).count()
    }

    /// Ends the job, unless it has ended. Whoever calls this has taken care of its wait.
    pub(crate) fn end(&mut self, code: Code) {
        debug_assert!(self.wait.is_none());
        if !matches!(self.phase, Phase::Complete(_)) {
            self.complete(code, 0);
        }
    }

    /// Ends the job for an access that cannot be had.
    pub(crate) fn fail(&mut self, code: Code, target: Target) {
        let mut fault = FaultFlags::ADDRESS_VALID;
        fault.set(FaultFlags::WRITE, target.write);
        self.complete(code, target.iova);
        if let Phase::Complete(completion) = &mut self.phase {
            completion.fault = fault.bits();
            completion.bytes_done += u64::from(mutant!(BytesDoneOffByOne));
        }
    }

    fn complete(&mut self, code: Code, result: u64) {
        self.phase = Phase::Complete(Completion {
            cookie: self.cookie,
            bytes_done: self.done,
            result,
            status: code as u16,
            ..Completion::default()
        });
    }

    /// Room for lists that the job had.
    pub(crate) fn into_buffers(self) -> impl Iterator<Item = ListBuffer> {
        [self.src, self.dst].into_iter().flatten().filter_map(Cursor::into_buffer)
    }

    /// The descriptor's cookie.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Operand bytes done so far.
    pub(crate) fn bytes_done(&self) -> u64 {
        self.done
    }

    /// Does some of the work, while `budget` lasts, from which what it cost is taken. It may be overdrawn by one piece.
    pub(crate) fn step<P: Platform>(
        &mut self,
        requester: &mut Requester<P>,
        slice: &Slice,
        scratch: &mut Vec<(u64, u64)>,
        budget: &mut i64,
    ) -> Step {
        debug_assert!(self.wait.is_none());
        if matches!(self.phase, Phase::Lists) {
            if let Err(refused) = self.fetch_lists(requester, slice) {
                return refused.into();
            }
            let entries: i64 = [&self.src, &self.dst].into_iter().flatten().map(Cursor::list_entries).sum();
            *budget -= entries * ENTRY_COST;
            match self.check_lists(scratch) {
                Ok(()) => self.phase = Phase::Run,
                Err(code) => self.complete(code, 0),
            }
        }
        while matches!(self.phase, Phase::Run) {
            let Some(limit) = u64::try_from(*budget).ok().filter(|&limit| limit > 0) else {
                if mutant!(CompletionBeforeData) {
                    self.complete(Code::Success, 0);
                    break;
                }
                return Step::Yield;
            };
            let before = self.done;
            let result = self.piece(requester, slice, limit);
            let moved = self.done - before;
            *budget -= match self.operation {
                Operation::Prefetch { .. } | Operation::Drop => PAGE_COST,
                _ => i64::try_from(moved).expect("at most 1 GiB").max(PIECE_COST),
            };
            if moved > 0 {
                self.patience.progress();
            }
            if let Err(refused) = result {
                return refused.into();
            }
            if self.done == self.length && matches!(self.phase, Phase::Run) {
                let result = if let Operation::Crc32c { .. } = self.operation { self.crc.into() } else { 0 };
                self.complete(Code::Success, result);
            }
        }
        Step::Complete
    }

    fn fetch_lists<P: Platform>(&mut self, requester: &mut Requester<P>, slice: &Slice) -> Result<(), Refused> {
        for cursor in [&mut self.src, &mut self.dst].into_iter().flatten() {
            let space = space_of(requester, self.space, cursor.list_space());
            while let Some((iova, room)) = cursor.unread() {
                let target = Target { space, iova, write: false };
                let ahead = room.len() as u64;
                let span = requester.access(slice, target).map_err(|refusal| Refused { target, refusal, ahead })?;
                let n = span.len().min(room.len());
                span.load(&mut room[..n]);
                cursor.fetched(n);
                self.patience.progress();
            }
        }
        Ok(())
    }

    fn check_lists(&self, scratch: &mut Vec<(u64, u64)>) -> Result<(), Code> {
        for cursor in [&self.src, &self.dst].into_iter().flatten() {
            cursor.check()?;
        }
        match (&self.src, &self.dst) {
            (Some(src), Some(dst))
                if self.operation == Operation::Copy && overlap(src, dst, scratch) && !mutant!(OverlapUnchecked) =>
            {
                Err(Code::Overlap)
            }
            _ => Ok(()),
        }
    }

    /// One contiguous piece of the operands, at most `limit` bytes.
    fn piece<P: Platform>(&mut self, requester: &mut Requester<P>, slice: &Slice, limit: u64) -> Result<(), Refused> {
        let own = self.space;
        let mut locate = |cursor: &Cursor, write| -> Result<(Span<'_>, u64), Refused> {
            let (iova, left) = cursor.piece();
            let space = space_of(requester, own, cursor.space());
            let target = Target { space, iova, write };
            let span = requester.access(slice, target).map_err(|refusal| Refused { target, refusal, ahead: left })?;
            Ok((span, left.min(span.len() as u64)))
        };
        let whole = "an operation's cursors were made with it";
        match self.operation {
            Operation::Copy => {
                let (src, a) = locate(self.src.as_ref().expect(whole), false)?;
                let (dst, b) = locate(self.dst.as_ref().expect(whole), true)?;
                let n = a.min(b).min(limit);
                src.copy_to(dst, bytes(n));
                self.advance(n);
            }
            Operation::Fill { pattern } => {
                let (dst, a) = locate(self.dst.as_ref().expect(whole), true)?;
                let n = a.min(limit);
                // The pattern goes on where the last piece ended, whatever that piece's length was.
                let phase = u32::try_from(self.done % 8).expect("below 8");
                dst.fill(pattern.rotate_right(phase * 8), bytes(n));
                self.advance(n);
            }
            Operation::Compare => {
                let (src, a) = locate(self.src.as_ref().expect(whole), false)?;
                let (dst, b) = locate(self.dst.as_ref().expect(whole), false)?;
                let n = bytes(a.min(b).min(limit)).min(CHUNK);
                let (mut left, mut right) = ([0; CHUNK], [0; CHUNK]);
                src.load(&mut left[..n]);
                dst.load(&mut right[..n]);
                // Whole first: most comparisons find nothing, and that is the machine's own loop.
                let differs = |(l, r): (&u8, &u8)| l != r;
                let unequal = left[..n] != right[..n];
                match unequal.then(|| left[..n].iter().zip(&right[..n]).position(differs)).flatten() {
                    None => self.advance(n as u64),
                    Some(at) => {
                        self.done += at as u64;
                        self.complete(Code::Mismatch, self.done);
                    }
                }
            }
            Operation::Crc32c { .. } => {
                let (src, a) = locate(self.src.as_ref().expect(whole), false)?;
                let n = bytes(a.min(limit)).min(CHUNK);
                let mut buffer = [0; CHUNK];
                src.load(&mut buffer[..n]);
                self.crc = crc32c::crc32c_append(self.crc, &buffer[..n]);
                self.advance(n as u64);
            }
            Operation::Prefetch { write } => {
                // Having the span means having the translation; the rest of its page is translated with it.
                let (_, n) = locate(self.src.as_ref().expect(whole), write)?;
                self.advance(n);
            }
            Operation::Drop => {
                let cursor = self.src.as_ref().expect(whole);
                let (iova, left) = cursor.piece();
                let space = space_of(requester, own, cursor.space());
                let n = left.min(DROP_BYTES - iova % DROP_BYTES);
                requester.drop_range(space, iova, n);
                self.advance(n);
            }
            Operation::Nop | Operation::Drain => unreachable!("they have no operands to run on"),
        }
        Ok(())
    }

    fn advance(&mut self, n: u64) {
        for cursor in [&mut self.src, &mut self.dst].into_iter().flatten() {
            cursor.advance(n);
        }
        self.done += n;
    }
}

/// A job that does not wait, for a state that is saved. A wait cannot be copied: its page request group is answered
/// once.
impl Clone for Job {
    fn clone(&self) -> Self {
        debug_assert!(self.wait.is_none(), "who waits asks again");
        // Taken apart whole: a new field must be given a line here.
        let Self { index, space, flags, phase, wait: _, patience, cookie, operation, src, dst, length, done, crc } =
            self;
        Self {
            index: *index,
            space: *space,
            flags: *flags,
            phase: *phase,
            wait: None,
            patience: *patience,
            cookie: *cookie,
            operation: *operation,
            src: src.clone(),
            dst: dst.clone(),
            length: *length,
            done: *done,
            crc: *crc,
        }
    }
}

impl From<Refused> for Step {
    fn from(refused: Refused) -> Self {
        Self::Refused { target: refused.target, refusal: refused.refusal, ahead: refused.ahead }
    }
}

/// The address space of an operand of a job that belongs to `own`.
#[inline]
fn space_of<P: Platform>(requester: &Requester<P>, own: Option<Pasid>, space: OperandSpace) -> SpaceId {
    match space {
        OperandSpace::Own => requester.space(own),
        OperandSpace::Dma => requester.space(None),
        OperandSpace::Device => requester.device_space(),
    }
}

fn bytes(n: u64) -> usize {
    usize::try_from(n).expect("a piece is at most 1 GiB")
}
