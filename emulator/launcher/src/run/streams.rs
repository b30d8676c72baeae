//! The guest's channels and QEMU's monitor: sockets on which we listen and to which QEMU connects.
use std::path::Path;

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

use super::event::{Channel, Event};
use crate::{
    control::Lines,
    qemu::{args::Channels, qmp},
};

/// The four listeners. They outlive a QEMU, so that a restarted one finds them.
#[derive(Debug)]
pub(crate) struct Listeners {
    console: UnixListener,
    control: UnixListener,
    program: UnixListener,
    qmp: UnixListener,
}

/// The way into the guest's program and into QEMU's monitor.
#[derive(Clone, Debug)]
pub(crate) struct Senders {
    /// Standard input of the guest's program.
    pub program: mpsc::Sender<Vec<u8>>,
    /// Lines to PID 1.
    pub control: mpsc::Sender<Vec<u8>>,
    /// Commands to QEMU.
    pub qmp: mpsc::Sender<Vec<u8>>,
}

impl Listeners {
    /// Binds them all.
    pub(crate) fn bind(channels: &Channels) -> anyhow::Result<Self> {
        let bind = |path: &Path| UnixListener::bind(path).with_context(|| path.display().to_string());
        Ok(Self {
            console: bind(&channels.console)?,
            control: bind(&channels.control)?,
            program: bind(&channels.program)?,
            qmp: bind(&channels.qmp)?,
        })
    }

    /// Serves one QEMU until it is gone: `gone` turning true ends what is still waiting for a connection. Each
    /// channel's end is an [`Event::Ended`]. What the guest's program writes goes to `output`.
    pub(crate) async fn serve(
        &self,
        events: mpsc::Sender<Event>,
        output: mpsc::Sender<Vec<u8>>,
        inputs: Inputs,
        gone: watch::Receiver<bool>,
    ) {
        let Inputs { program, control, qmp } = inputs;
        let kernel_line = |line| Some(Event::Kernel(line));
        let control_line = |line| Some(Event::Control(line));
        let qmp_line = |line: String| qmp::Message::parse(&line).map(Event::Qmp);
        let (_nothing, silent) = mpsc::channel(1);
        tokio::join!(
            async {
                if let Some(stream) = accept(&self.console, gone.clone()).await {
                    lines(stream, silent, &events, kernel_line).await;
                }
                _ = events.send(Event::Ended(Channel::Console)).await;
            },
            async {
                if let Some(stream) = accept(&self.control, gone.clone()).await {
                    lines(stream, control, &events, control_line).await;
                }
                _ = events.send(Event::Ended(Channel::Control)).await;
            },
            async {
                if let Some(stream) = accept(&self.qmp, gone.clone()).await {
                    lines(stream, qmp, &events, qmp_line).await;
                }
                _ = events.send(Event::Ended(Channel::Qmp)).await;
            },
            async {
                if let Some(stream) = accept(&self.program, gone.clone()).await {
                    bytes(stream, program, &events, &output).await;
                }
                _ = events.send(Event::Ended(Channel::Program)).await;
            },
        );
    }
}

/// What goes to QEMU, the receiving ends of [`Senders`].
#[derive(Debug)]
pub(crate) struct Inputs {
    program: mpsc::Receiver<Vec<u8>>,
    control: mpsc::Receiver<Vec<u8>>,
    qmp: mpsc::Receiver<Vec<u8>>,
}

/// Both ends of the ways to QEMU.
pub(crate) fn inputs() -> (Senders, Inputs) {
    let (program_sender, program) = mpsc::channel(16);
    let (control_sender, control) = mpsc::channel(16);
    let (qmp_sender, qmp) = mpsc::channel(16);
    (Senders { program: program_sender, control: control_sender, qmp: qmp_sender }, Inputs { program, control, qmp })
}

async fn accept(listener: &UnixListener, mut gone: watch::Receiver<bool>) -> Option<UnixStream> {
    tokio::select! {
        biased;
        // A QEMU that connected and died at once still has something to say.
        stream = listener.accept() => stream.ok().map(|(stream, _)| stream),
        _ = gone.wait_for(|gone| *gone) => None,
    }
}

/// Both directions of a channel of lines, until QEMU closes it.
async fn lines(
    stream: UnixStream,
    input: mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<Event>,
    event: impl Fn(String) -> Option<Event>,
) {
    let (reader, writer) = stream.into_split();
    let read = async {
        let mut lines = Lines::default();
        each_chunk(reader, async |chunk| {
            for event in lines.push(chunk).into_iter().filter_map(&event) {
                _ = events.send(event).await;
            }
        })
        .await;
        if let Some(event) = lines.finish().and_then(event) {
            _ = events.send(event).await;
        }
    };
    tokio::select! { () = read => {}, () = forward(input, writer) => {} }
}

/// Both directions of the program's channel, until QEMU closes it.
async fn bytes(
    stream: UnixStream,
    input: mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<Event>,
    output: &mpsc::Sender<Vec<u8>>,
) {
    let (reader, writer) = stream.into_split();
    let read = async {
        let mut first = true;
        each_chunk(reader, async |chunk| {
            _ = output.send(chunk.to_vec()).await;
            if std::mem::take(&mut first) {
                _ = events.send(Event::ProgramSpoke).await;
            }
        })
        .await;
    };
    tokio::select! { () = read => {}, () = forward(input, writer) => {} }
}

async fn each_chunk(mut reader: impl AsyncRead + Unpin, mut f: impl AsyncFnMut(&[u8])) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        f(&buffer[..count]).await;
    }
}

/// Writes what comes, and never ends: that the other side closed shows in reading.
async fn forward(mut input: mpsc::Receiver<Vec<u8>>, mut writer: tokio::net::unix::OwnedWriteHalf) {
    while let Some(bytes) = input.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}
