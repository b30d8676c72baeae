//! Work under way: what a descriptor was to do, what it may end with, and the check when it has.
use std::collections::BTreeSet;

use svadev_spec::device::{Code, Completion, opcode};

use crate::checker::Checker;
use crate::excuse;
use crate::process::Process;

/// A descriptor that has not completed. Ranges are bytes from the process's base on.
#[derive(Debug)]
pub struct Flight {
    /// Function and queue.
    pub queue: (usize, usize),
    /// Slot and identity of the process.
    pub process: (usize, u64),
    /// What it does.
    pub opcode: u8,
    /// Bytes read; for COMPARE also those of `dst`.
    pub src: Option<(usize, usize)>,
    /// Bytes written.
    pub dst: Option<(usize, usize)>,
    /// What is in `dst` afterwards.
    pub new: Vec<u8>,
    /// How it ends if nothing is in its way: status, bytes done, result.
    pub answer: (Code, u64, u64),
    /// It cannot get further than this.
    pub most: u64,
    /// When it was submitted.
    pub since: u64,
    /// Bits of [`excuse`].
    pub excuses: u8,
    /// Pieces of the list page it uses.
    pub lists: Vec<usize>,
    /// Pages of `dst` that were unmapped meanwhile.
    pub gone: BTreeSet<usize>,
}

impl Flight {
    /// The pages it works on.
    pub fn pages(&self) -> impl Iterator<Item = usize> + '_ {
        self.src.into_iter().chain(self.dst).flat_map(pages)
    }

    fn excused(&self, code: Code) -> bool {
        let needed = match code {
            Code::PageFault => excuse::FAULT,
            Code::PageRequestFailed => excuse::FAILED,
            Code::PageRequestTimeout => excuse::TIMEOUT,
            Code::TranslationBlocked => excuse::BLOCKED,
            Code::Aborted => excuse::ABORTED,
            _ => return false,
        };
        self.excuses & needed != 0
    }

    /// Whether the completion is one that it may have; what is wrong if not, and who says so.
    pub fn judge(&self, completion: &Completion) -> (Checker, Result<(), String>) {
        let Some(code) = Code::from_raw(completion.status) else {
            return (Checker::Reason, Err(format!("unknown status {}", completion.status)));
        };
        if completion.bytes_done > self.most {
            let what = format!("{code:?} with {} bytes done of {} that can be", completion.bytes_done, self.most);
            return (Checker::Bytes, Err(what));
        }
        if matches!(code, Code::Success | Code::Mismatch) {
            let is = (code, completion.bytes_done, completion.result);
            let right = is == self.answer;
            let verdict = if right { Ok(()) } else { Err(format!("{is:x?} instead of {:x?}", self.answer)) };
            return (Checker::Bytes, verdict);
        }
        let excused = self.excused(code);
        let verdict = if excused { Ok(()) } else { Err(format!("{code:?} without a reason: {completion:x?}")) };
        (Checker::Reason, verdict)
    }

    /// Compares what it wrote with what it was to write: the first `done` bytes are new, each later one is new or as
    /// before. What is in memory becomes what must be there.
    pub fn settle(&self, process: &mut Process, done: u64) -> Result<(), String> {
        let Some((start, len)) = self.dst.filter(|_| self.opcode != opcode::COMPARE) else { return Ok(()) };
        let found = process.bytes(start, len);
        for (n, &byte) in found.iter().enumerate() {
            if self.gone.contains(&((start + n) / 0x1000)) {
                continue;
            }
            let old = process.oracle[start + n];
            if byte != self.new[n] && ((n as u64) < done || byte != old) {
                return Err(format!(
                    "byte {n} of {len} at {:#x} is {byte:#x}, was {old:#x}, should be {:#x} ({done} done)",
                    start + n,
                    self.new[n]
                ));
            }
            process.oracle[start + n] = byte;
        }
        Ok(())
    }
}

/// A completion status, as it is counted.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Success => "Success",
        Code::Mismatch => "Mismatch",
        Code::PageFault => "PageFault",
        Code::PageRequestFailed => "PageRequestFailed",
        Code::PageRequestTimeout => "PageRequestTimeout",
        Code::TranslationBlocked => "TranslationBlocked",
        Code::Aborted => "Aborted",
        // Nothing that a world does may end like this.
        _ => "other",
    }
}

/// The pages of a range.
pub fn pages((start, len): (usize, usize)) -> std::ops::RangeInclusive<usize> {
    start / 0x1000..=(start + len - 1) / 0x1000
}
