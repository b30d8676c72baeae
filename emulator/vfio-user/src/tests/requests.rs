//! DMA_READ and DMA_WRITE, and a client that does not read.
use std::sync::mpsc;

use nix::errno::Errno;
use svadev_spec::vfio_user::{DmaAccess, FLAG_ERROR, Header, RegionAccess, TYPE_REPLY, command};
use zerocopy::IntoBytes;

use super::{Rig, alloc};
use crate::client::{LoopbackClient, Message};
use crate::{Limits, Progress, SendError, Server};

type Outcome = Result<Vec<u8>, Errno>;

impl Rig {
    /// Ask for client memory; the receiver gets what the completion is called with.
    fn dma_read(&mut self, address: u64, len: usize) -> (Message, mpsc::Receiver<Outcome>) {
        let (tx, rx) = mpsc::channel();
        let done = move |data: Result<&[u8], Errno>| tx.send(data.map(<[u8]>::to_vec)).unwrap();
        self.server.sender().dma_read(address, len, done).unwrap();
        (self.client.receive().unwrap(), rx)
    }
}

fn access(address: u64, count: u64) -> DmaAccess {
    DmaAccess { address, count }
}

#[test]
fn a_write_is_sent_and_its_reply_consumed() {
    let mut rig = Rig::new();
    let sender = rig.server.sender();
    std::thread::spawn(move || sender.dma_write(0xfee0_0000, &[1, 2, 3, 4])).join().unwrap().unwrap();
    let request = rig.client.receive().unwrap();
    let Header { command, message_size, flags, .. } = request.header;
    assert_eq!((command, message_size, flags), (command::DMA_WRITE, 16 + 16 + 4, 0));
    assert_eq!(request.payload, [access(0xfee0_0000, 4).as_bytes(), &[1, 2, 3, 4]].concat());
    // QEMU's reply is the header alone; the specification's has address and count.
    rig.client.reply(&request.header, Ok(&[]));
    rig.pump();
    rig.server.sender().dma_write(0, &[0]).unwrap();
    let request = rig.client.receive().unwrap();
    rig.client.reply(&request.header, Ok(access(0, 1).as_bytes()));
    rig.server.sender().dma_write(0, &[0]).unwrap();
    let request = rig.client.receive().unwrap();
    rig.client.reply(&request.header, Err(Errno::EFAULT));
    assert!(rig.replies().is_empty());
    let counters = rig.server.sender().counters();
    assert_eq!((counters.requests, counters.request_errors, counters.stray_replies), (3, 1, 0));
}

#[test]
fn a_read_brings_bytes_or_an_errno() {
    let mut rig = Rig::new();
    let (request, outcome) = rig.dma_read(0x1234, 5);
    assert_eq!(request.header.command, command::DMA_READ);
    assert_eq!(request.payload, access(0x1234, 5).as_bytes());
    rig.client.reply(&request.header, Ok(&[access(0x1234, 5).as_bytes(), b"hello"].concat()));
    rig.pump();
    assert_eq!(outcome.recv().unwrap().unwrap(), b"hello");
    let (request, outcome) = rig.dma_read(0x1234, 5);
    rig.client.reply(&request.header, Err(Errno::EFAULT));
    rig.pump();
    assert_eq!(outcome.recv().unwrap(), Err(Errno::EFAULT));
}

#[test]
fn a_malformed_read_reply_is_an_error() {
    let mut rig = Rig::new();
    for reply in [
        vec![],
        vec![0; 15],
        [access(8, 4).as_bytes(), &[0; 3]].concat(),
        [access(8, 4).as_bytes(), &[0; 5]].concat(),
        [access(8, 3).as_bytes(), &[0; 4]].concat(),
        [access(9, 4).as_bytes(), &[0; 4]].concat(),
    ] {
        let (request, outcome) = rig.dma_read(8, 4);
        rig.client.reply(&request.header, Ok(&reply));
        rig.pump();
        assert_eq!(outcome.recv().unwrap(), Err(Errno::EIO), "{reply:?}");
    }
    for error in [0, u32::MAX] {
        let (request, outcome) = rig.dma_read(8, 4);
        let header = Header { message_size: 16, flags: TYPE_REPLY | FLAG_ERROR, error, ..request.header };
        rig.client.send_bytes(header.as_bytes().to_vec(), vec![]);
        rig.pump();
        assert_eq!(outcome.recv().unwrap(), Err(Errno::EIO), "an errno that is none");
    }
    assert_eq!(rig.server.sender().counters().request_errors, 8);
}

#[test]
fn replies_match_requests_in_any_order_and_once() {
    let mut rig = Rig::new();
    let (a, a_outcome) = rig.dma_read(1, 1);
    let (b, b_outcome) = rig.dma_read(2, 1);
    rig.client.reply(&b.header, Ok(&[access(2, 1).as_bytes(), b"b"].concat()));
    rig.client.reply(&a.header, Ok(&[access(1, 1).as_bytes(), b"a"].concat()));
    rig.client.reply(&a.header, Ok(&[]));
    rig.client.reply(&Header { message_id: 999, ..a.header }, Err(Errno::EIO));
    rig.pump();
    assert_eq!(a_outcome.recv().unwrap().unwrap(), b"a");
    assert_eq!(b_outcome.recv().unwrap().unwrap(), b"b");
    assert_eq!(rig.server.sender().counters().stray_replies, 2);
}

#[test]
fn requests_fail_when_the_connection_ends() {
    let mut rig = Rig::new();
    let (_, outcome) = rig.dma_read(0, 1);
    rig.disconnect();
    assert_eq!(outcome.recv().unwrap(), Err(Errno::ECONNRESET));
    assert_eq!(rig.server.sender().dma_write(0, &[0]), Err(SendError::NotConnected));
}

#[test]
fn requests_are_no_longer_than_the_client_takes() {
    let mut rig = Rig::unconnected(Limits::default());
    let proposal = r#"{"capabilities":{"max_data_xfer_size":4096}}"#;
    rig.client.negotiate(&mut rig.server, &mut rig.device, proposal).unwrap();
    let sender = rig.server.sender();
    assert_eq!(sender.dma_write(0, &[0; 4096]), Ok(()));
    assert_eq!(sender.dma_write(0, &[0; 4097]), Err(SendError::TooLong(4096)));
    assert_eq!(sender.dma_read(0, 4097, |_| unreachable!()), Err(SendError::TooLong(4096)));
    assert_eq!(sender.dma_read(0, usize::MAX, |_| unreachable!()), Err(SendError::TooLong(4096)));
}

#[test]
fn unanswered_requests_are_bounded_and_ids_are_not_mixed_up() {
    let mut rig = Rig::new();
    let sender = rig.server.sender();
    for _ in 0..1024 {
        sender.dma_write(0, &[0]).unwrap();
    }
    let mut waiting: Vec<Header> = rig.replies().iter().map(|m| m.header).collect();
    // Keep one unanswered while the ids go round more than once.
    let kept = waiting.pop().unwrap();
    for _ in 0..70_000 {
        for header in waiting.drain(..) {
            rig.client.reply(&header, Ok(&[]));
        }
        rig.pump();
        sender.dma_write(0, &[0]).unwrap();
        let header = rig.client.receive().unwrap().header;
        assert_ne!(header.message_id, kept.message_id);
        waiting.push(header);
    }
    rig.client.reply(&kept, Ok(&[]));
    rig.client.reply(&waiting[0], Ok(&[]));
    rig.pump();
    assert_eq!(sender.counters().stray_replies, 0);
}

/// An interrupt of the unit is a DMA_WRITE.
#[test]
fn a_client_that_never_answers_goes_on_getting_writes() {
    let mut rig = Rig::new();
    let sender = rig.server.sender();
    let (kept, outcome) = rig.dma_read(0x1000, 1);
    let (peak, sent) = (0..5000).fold((0, Vec::new()), |(peak, mut sent), _| {
        let ((), bytes) = alloc::peak(|| sender.dma_write(0, &[0]).unwrap());
        sent.push(rig.client.receive().unwrap().header);
        (bytes.max(peak), sent)
    });
    assert!(peak < 1 << 20, "{peak} bytes for one request");
    rig.client.reply(&kept.header, Ok(&[access(0x1000, 1).as_bytes(), b"k"].concat()));
    rig.client.reply(&sent[0], Err(Errno::EFAULT));
    rig.client.reply(&sent[4999], Err(Errno::EFAULT));
    rig.pump();
    assert_eq!(outcome.recv().unwrap().unwrap(), b"k", "a read is waited for, however old it is");
    assert_eq!(sender.counters().stray_replies, 1, "the reply to an expired write");
    assert_eq!(sender.counters().request_errors, 1, "the reply to the youngest write");
}

#[test]
fn unanswered_reads_are_bounded() {
    let rig = Rig::new();
    let sender = rig.server.sender();
    for _ in 0..1024 {
        sender.dma_read(0, 1, |outcome| assert_eq!(outcome, Err(Errno::ECONNRESET))).unwrap();
    }
    assert_eq!(sender.dma_read(0, 1, |_| unreachable!()), Err(SendError::QueueFull));
    assert_eq!(sender.dma_write(0, &[0]), Err(SendError::QueueFull));
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory_and_loses_nothing() {
    let mut server = Server::new(Limits::default());
    let mut device = super::fake::Fake::new();
    let mut client = LoopbackClient::connect(&mut server, 1000);
    client.negotiate(&mut server, &mut device, "{}").unwrap();
    let read = RegionAccess { offset: 0, region: 0, count: 4096 };
    let reads = 10_000;
    let ids: Vec<u16> = (0..reads).map(|_| client.send(command::REGION_READ, read.as_bytes(), vec![])).collect();
    let (progress, peak) = alloc::peak(|| client.pump(&mut server, &mut device).unwrap());
    assert_eq!(progress, Progress::Congested);
    assert!(peak < 8 << 20, "{peak} bytes");
    assert_eq!(server.sender().dma_write(0, &[0; 64]), Err(SendError::QueueFull));
    let mut received = Vec::new();
    while received.len() < reads {
        client.pump(&mut server, &mut device).unwrap();
        while let Some(message) = client.receive() {
            assert_eq!(message.payload.len(), 16 + 4096);
            received.push(message.header.message_id);
        }
        // Part of a message fits at a time, so the transport's buffer has to be emptied in pieces.
        client.grow_room(1000);
    }
    assert_eq!(received, ids);
    assert_eq!(server.sender().dma_write(0, &[0; 64]), Ok(()));
}
