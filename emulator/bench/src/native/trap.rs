//! `trap`: the cost of a register access that arrives as a message, against a server that sleeps in `read`.
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use svadev_spec::device::{BAR_REGISTERS, regs};
use svadev_spec::vfio_user::{Header, RegionAccess, TYPE_REPLY};
use svadev_vfio_user::client::SocketClient;

use super::Session;
use super::world::Size;
use crate::row::{Goal, Row, Suite, Target};
use crate::stats::{Samples, paired};

/// Accesses of one turn.
const TURN: usize = 100;
/// Bytes of a request and of a reply of 4 bytes.
const REQUEST: usize = size_of::<Header>() + size_of::<RegionAccess>();
const REPLY: usize = REQUEST + 4;

/// Answers each request at once, and sleeps in `read` between them; ends with the connection.
fn blocking_server(mut stream: UnixStream) {
    let (mut request, mut reply) = ([0; REQUEST], [0; REPLY]);
    while stream.read_exact(&mut request).is_ok() {
        reply[..REQUEST].copy_from_slice(&request);
        reply[4..8].copy_from_slice(&36u32.to_ne_bytes());
        reply[8..12].copy_from_slice(&TYPE_REPLY.to_ne_bytes());
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}

/// Runs one turn of reads with pauses between them; returns the median, µs.
fn turn(client: &SocketClient, pause: Option<Duration>, count: usize) -> anyhow::Result<f64> {
    let mut trips = Vec::new();
    for _ in 0..count {
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
        let start = Instant::now();
        client.read_register(BAR_REGISTERS, regs::STATUS)?;
        trips.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Samples::new(trips).context("no access was measured")?.median())
}

pub(super) fn run(session: &mut Session<'_>) -> anyhow::Result<()> {
    let world = session.world(Size::default())?;
    let (ours, theirs) = UnixStream::pair()?;
    let spawn = || std::thread::Builder::new().name("blocking server".into()).spawn(move || blocking_server(theirs));
    let server = session.processors.apart(1, spawn).context("cannot start the blocking server's thread")?;
    let blocking = SocketClient::over(ours)?;
    let read = |client: &SocketClient, pause, count| turn(client, pause, count);

    let case = "register read, one after another";
    session.case(Suite::Trap, case);
    let pair = paired(session.time * 2, || read(&world.function, None, TURN), || read(&blocking, None, TURN))?;
    let row = Row::compared(Suite::Trap, case, &pair, "us", "blocking server");
    session.rows.push(row.aiming(Goal::G5, Target::ratio_at_most(0.7)));

    let pause = Some(Duration::from_millis(2));
    let case = "register read, after 2 ms of silence";
    session.case(Suite::Trap, case);
    let pair = paired(session.time, || read(&world.function, pause, 5), || read(&blocking, pause, 5))?;
    session.rows.push(Row::compared(Suite::Trap, case, &pair, "us", "blocking server"));

    drop(blocking);
    server.join().map_err(|_| anyhow::anyhow!("the blocking server panicked"))
}
