//! `svadev demo`: a guest program shows what shared virtual addressing does and what it costs.
//!
//! The guest program's JSON lines are `{"event", "text", …}`, a step of the story, or `{"figure", "value", "unit"}`, a
//! row of the table (`guest-tests/README.md`). The backend's counters follow: the main ones in a table with a column
//! for each function, and all of them in `--json FILE`.
use serde_json::Value;

use super::json::{check_writable, write_json};
use crate::cli::DemoArgs;
use svadev_launcher::{
    control::{Message, printable},
    exit::{Exit, Outcome},
    figures::{Figure, add_counters, counter_table, table},
    guest::{self, Image, Request},
    guest_image::Job,
    results::{Framed, Kind},
    run::{Ended, Observer, Terminal},
};

/// Most rows that the guest may add.
const MAX_FIGURES: usize = 1000;

/// Runs it.
pub(crate) fn run(args: &DemoArgs) -> Outcome<u8> {
    check_writable(args.json.as_deref())?;
    let request = Request {
        command: "demo",
        topology: args.machine.topology()?,
        host: args.host.options(),
        image: Image::Job { job: Job { mode: "demo", ..Job::default() }, needs_module: true },
        share: None,
        terminal: Terminal::Log,
        until_placed: false,
    };
    let mut story = Story::default();
    let mut finished = guest::run(request, &mut story)?;
    let mut figures = story.figures.clone();
    add_counters(&mut figures, "", &finished.report.counters);
    out!("\nMeasured in the guest");
    for line in table(&story.figures) {
        out!("{line}");
    }
    out!("\nCounted by the device and its IOMMU");
    for line in counter_table(&finished.report.counters) {
        out!("{line}");
    }
    let findings = finished.report.kernel_log.findings().to_vec();
    for finding in &findings {
        out!("# kernel log: {finding}");
    }
    let written = args
        .json
        .as_deref()
        .map_or(Ok(()), |path| write_json(path, &Framed::new(Kind::Demo, &serde_json::json!({ "figures": figures }))));
    match finished.conclude(!findings.is_empty())? {
        // A verdict counts more than a file that cannot be written.
        Ended::Exit(0) if findings.is_empty() => written.map(|()| Exit::Success.code()),
        Ended::Exit(_) | Ended::Quit => Ok(Exit::TestFailed.code()),
        Ended::PoweredOff | Ended::Placed(_) => Ok(Exit::GuestSetup.code()),
    }
}

#[derive(Debug, Default)]
struct Story {
    figures: Vec<Figure>,
}

impl Story {
    fn event(&mut self, object: &Value) {
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        match (object["event"].as_str(), object["figure"].as_str()) {
            (Some("stderr"), _) => say!("guest: {}", printable(&text("text"))),
            (Some(_), _) => out!("{}", printable(&text("text"))),
            (None, Some(name)) if self.figures.len() < MAX_FIGURES => {
                let (name, value, unit) = (name.to_owned(), object["value"].clone(), text("unit"));
                self.figures.push(Figure { name, value, unit });
            }
            _ => tracing::warn!("unknown object from the guest: {object}"),
        }
    }
}

impl Observer for Story {
    fn control(&mut self, message: &Message) {
        match message {
            Message::Hello(release) => note!("the guest is up: Linux {release}"),
            Message::Data(object) => self.event(object),
            _ => {}
        }
    }
    fn kernel(&mut self, _: &str) {}
}
