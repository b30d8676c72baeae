//! Tests of which end follows from which events, in which order.
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use super::*;
use crate::{
    run::{Terminal, streams},
    topology::{self, Accel, Topology},
};

/// The unit of the default machine.
const UNIT: Bdf = Bdf(0x0028);

struct Silent;

impl Observer for Silent {
    fn control(&mut self, _: &Message) {}
    fn kernel(&mut self, _: &str) {}
}

/// Runs a story on a state, lets QEMU end with `status` unless the state killed it, and concludes.
fn conclude(
    change: impl FnOnce(&mut Plan<'_>),
    status: i32,
    story: impl FnOnce(&mut State<'_>, &mut KernelLog),
) -> Attempt {
    let topology = Topology::parse("t", topology::DEFAULT).unwrap();
    let nothing = PathBuf::from("/nonexistent");
    let mut plan = Plan {
        topology: &topology,
        accel: Accel::Tcg,
        qemu: &nothing,
        kernel: &nothing,
        initrd: &nothing,
        share: None,
        extra: &[],
        has_our_init: true,
        timeout: None,
        watchdog: true,
        timeout_scale: 1,
        terminal: Terminal::Log,
        until_placed: false,
    };
    change(&mut plan);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let timeout_at = plan.timeout.map(|limit| Instant::now() + limit);
        let (ready, _ready) = watch::channel(false);
        let (senders, _inputs) = streams::inputs();
        let mut state =
            State::new(&plan, Some(crate::dmar::unknown_addresses(plan.topology)), false, timeout_at, senders, ready);
        story(&mut state, &mut KernelLog::default());
        let status = if state.must_stop { 9 } else { status };
        state.status = Some(Ok(ExitStatus::from_raw(status)));
        state.conclude(Path::new("/nonexistent"))
    })
}

fn exit_of(attempt: Attempt) -> (Exit, String) {
    match attempt {
        Attempt::Ended(Err(failure)) => (failure.exit, failure.to_string()),
        Attempt::Ended(Ok(ended)) => panic!("ended well: {ended:?}"),
        Attempt::Misplaced(address) => panic!("misplaced: {address:x?}"),
    }
}

fn control(state: &mut State<'_>, line: &str) {
    state.event(Event::Control(line.into()), &mut Silent, &mut KernelLog::default());
}

fn boot(state: &mut State<'_>) {
    state.unit_placed(UNIT, 0xfebf_f000);
    control(state, "svadev:hello 7.3");
}

/// Looks at the guest until that ends it. How long it took.
fn overdue(state: &mut State<'_>) -> Duration {
    let begin = Instant::now();
    while !state.must_stop {
        assert!(begin.elapsed() < Duration::from_secs(3600), "a silent guest is ended");
        look(state, true);
    }
    begin.elapsed()
}

/// Lets time pass to the next look.
fn look(state: &mut State<'_>, running: bool) {
    futures_advance(state.deadline() - Instant::now());
    state.look(running);
}

/// Moves the paused clock from inside synchronous code.
fn futures_advance(by: Duration) {
    use std::{
        future::Future as _,
        pin::pin,
        task::{Context, Poll, Waker},
    };
    let mut advance = pin!(tokio::time::advance(by));
    let mut context = Context::from_waker(Waker::noop());
    // `advance` moves the clock at its first poll and then only yields.
    let _: Poll<()> = advance.as_mut().poll(&mut context);
}

const POWERED_OFF: i32 = 0;

#[test]
fn the_jobs_status_is_the_end() {
    let attempt = conclude(
        |_| {},
        POWERED_OFF,
        |state, _| {
            boot(state);
            control(state, "svadev:exit 7");
            assert!(!state.must_stop, "it powers off by itself");
        },
    );
    assert!(matches!(attempt, Attempt::Ended(Ok(Ended::Exit(7)))));
}

#[test]
fn a_guest_that_does_not_power_off_hangs() {
    let attempt = conclude(
        |_| {},
        POWERED_OFF,
        |state, _| {
            boot(state);
            control(state, "svadev:exit 0");
            assert_eq!(overdue(state), POWER_OFF_LIMIT);
        },
    );
    assert_eq!(exit_of(attempt).0, Exit::GuestHung);
}

#[test]
fn silence_is_a_hang_before_and_after_hello() {
    let attempt = conclude(|_| {}, POWERED_OFF, |state, _| assert_eq!(overdue(state), HELLO_LIMIT));
    assert_eq!(exit_of(attempt).0, Exit::GuestHung);
    let attempt = conclude(
        |plan| plan.timeout_scale = 3,
        POWERED_OFF,
        |state, _| {
            boot(state);
            (0..50).for_each(|_| look(state, true));
            control(state, "svadev:alive");
            assert_eq!(overdue(state), SILENCE_LIMIT * 3);
        },
    );
    let (exit, text) = exit_of(attempt);
    assert_eq!(exit, Exit::GuestHung);
    assert!(text.contains("90 s"), "{text}");
}

/// A debugger, a suspended laptop, Ctrl-Z: the guest had no time, so that its silence says nothing.
#[test]
fn a_stopped_guest_is_no_hang() {
    conclude(
        |_| {},
        POWERED_OFF,
        |state, log| {
            boot(state);
            (0..300).for_each(|_| look(state, false));
            state.event(Event::Qmp(qmp::Message::Stopped), &mut Silent, log);
            (0..300).for_each(|_| look(state, true));
            state.event(Event::Qmp(qmp::Message::Resumed), &mut Silent, log);
            // This process itself was stopped for an hour.
            futures_advance(Duration::from_secs(3600));
            state.look(true);
            assert!(!state.must_stop);
            assert_eq!(overdue(state), SILENCE_LIMIT - 2 * LOOK);
        },
    );
}

#[test]
fn without_the_watchdog_a_silent_guest_goes_on() {
    conclude(
        |plan| plan.watchdog = false,
        POWERED_OFF,
        |state, _| {
            boot(state);
            (0..1000).for_each(|_| look(state, true));
            assert!(!state.must_stop);
        },
    );
}

#[test]
fn the_users_time_limit_holds_while_the_guest_lives() {
    let attempt = conclude(
        |plan| plan.timeout = Some(Duration::from_secs(10)),
        POWERED_OFF,
        |state, _| {
            boot(state);
            assert_eq!(overdue(state), Duration::from_secs(10));
        },
    );
    assert!(exit_of(attempt).1.contains("--timeout"));
}

#[test]
fn an_unknown_line_is_no_sign_of_life() {
    conclude(
        |_| {},
        POWERED_OFF,
        |state, _| {
            boot(state);
            (0..5).for_each(|_| look(state, true));
            control(state, "getty: login");
            assert_eq!(overdue(state), SILENCE_LIMIT - Duration::from_secs(5));
        },
    );
}

#[test]
fn the_first_cause_counts() {
    let attempt = conclude(
        |_| {},
        POWERED_OFF,
        |state, log| {
            boot(state);
            state.event(Event::Kernel("[ 1.0] Kernel panic - not syncing: x".into()), &mut Silent, log);
            state.event(Event::Qmp(qmp::Message::Shutdown { reason: "guest-reset".into() }), &mut Silent, log);
            state.event(Event::Signal("SIGINT"), &mut Silent, log);
        },
    );
    let (exit, text) = exit_of(attempt);
    assert_eq!(exit, Exit::GuestPanic);
    assert!(text.contains("not syncing: x"), "{text}");
}

#[test]
fn fatal_is_the_guests_set_up() {
    let attempt = conclude(
        |_| {},
        POWERED_OFF,
        |state, _| {
            boot(state);
            control(state, "svadev:fatal no module");
        },
    );
    let (exit, text) = exit_of(attempt);
    assert_eq!(exit, Exit::GuestSetup);
    assert!(text.contains("no module"));
}

#[test]
fn qemus_own_end() {
    const SIGSEGV: i32 = 11;
    let (exit, text) = exit_of(conclude(|_| {}, SIGSEGV, |state, _| boot(state)));
    assert_eq!(exit, Exit::Qemu);
    assert!(text.contains("SIGSEGV"), "{text}");
    let (exit, text) = exit_of(conclude(|_| {}, 1 << 8, |_, _| {}));
    assert_eq!((exit, text.as_str()), (Exit::Qemu, "QEMU ended with status 1"));
    let with_reason = |reason: &'static str| {
        conclude(
            |_| {},
            POWERED_OFF,
            move |state, log| {
                state.event(Event::Qmp(qmp::Message::Shutdown { reason: reason.into() }), &mut Silent, log);
            },
        )
    };
    assert!(matches!(with_reason("guest-shutdown"), Attempt::Ended(Ok(Ended::PoweredOff))));
    assert_eq!(exit_of(with_reason("guest-reset")).0, Exit::GuestPanic);
    assert_eq!(exit_of(with_reason("host-signal")).0, Exit::Qemu);
}

#[test]
fn a_bar_elsewhere_restarts_and_a_moved_one_fails() {
    let attempt = conclude(|_| {}, POWERED_OFF, |state, _| state.unit_placed(UNIT, 0x38_0000_0000));
    assert!(matches!(attempt, Attempt::Misplaced(places) if places == [0x38_0000_0000]));
    let attempt = conclude(
        |_| {},
        POWERED_OFF,
        |state, _| {
            boot(state);
            state.unit_placed(UNIT, 0xfebf_f000);
            state.unit_placed(UNIT, 0x38_0000_0000);
        },
    );
    let (exit, text) = exit_of(attempt);
    assert_eq!(exit, Exit::GuestSetup);
    assert!(text.contains("intremap=off"), "{text}");
}

#[test]
fn firmware_places_units_one_after_the_other() {
    const SECOND: Bdf = Bdf(0x0030);
    static TWO: std::sync::LazyLock<Topology> = std::sync::LazyLock::new(|| {
        let text = "[[iommus]]\naddress = \"00:05.0\"\n[[iommus]]\naddress = \"00:06.0\"\n\
                    [[accelerators]]\naddress = \"00:07.0\"\n\
                    [[accelerators]]\naddress = \"00:08.0\"\niommu = \"iommu1\"\n";
        Topology::parse("t", text).unwrap()
    });
    let placed = |until_placed, first, second| {
        conclude(
            |plan| (plan.topology, plan.until_placed) = (&TWO, until_placed),
            POWERED_OFF,
            move |state, _| {
                state.unit_placed(SECOND, second);
                assert!(!state.must_stop, "the first unit is not placed yet");
                state.unit_placed(UNIT, first);
                if !state.must_stop {
                    control(state, "svadev:hello 7.3");
                    control(state, "svadev:exit 0");
                }
            },
        )
    };
    let attempt = placed(false, 0xfebf_f000, 0xfebf_e000);
    assert!(matches!(attempt, Attempt::Ended(Ok(Ended::Exit(0)))), "both are where the table says");
    let attempt = placed(false, 0xfebf_f000, 0x1000);
    assert!(matches!(attempt, Attempt::Misplaced(places) if places == [0xfebf_f000, 0x1000]));
    let attempt = placed(true, 0x2000, 0x1000);
    assert!(matches!(attempt, Attempt::Ended(Ok(Ended::Placed(places))) if places == [0x2000, 0x1000]));
}

#[test]
fn a_guest_that_boots_without_a_placed_unit_is_the_backends_fault() {
    let attempt = conclude(|_| {}, POWERED_OFF, |state, _| control(state, "svadev:hello 7.3"));
    assert_eq!(exit_of(attempt).0, Exit::Backend);
}

#[test]
fn learning_the_address_is_all_that_dmar_wants() {
    let attempt = conclude(|plan| plan.until_placed = true, POWERED_OFF, |state, _| state.unit_placed(UNIT, 0x1000));
    assert!(matches!(attempt, Attempt::Ended(Ok(Ended::Placed(places))) if places == [0x1000]));
}
