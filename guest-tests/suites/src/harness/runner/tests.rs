use super::*;
use crate::harness::{Test, Verdict};
use crate::{check, skip};

/// Run one test without functions; return its outcome and output.
fn run(body: fn(&Context) -> Verdict, limit: Duration) -> (Outcome, String) {
    let run = Run { functions: vec!["/nonexistent/svadev0".into()], seed: 1, scale: 1.0 };
    let mut test = Test::each("t", body);
    test.timeout = limit;
    run.one(&Case { test, function: 0 })
}

const LONG: Duration = Duration::from_secs(20);

fn failure(body: fn(&Context) -> Verdict, limit: Duration) -> String {
    match run(body, limit).0 {
        Outcome::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

// libtest runs tests in threads, and the runner forks: the child then must not meet a lock that another thread holds. One
// test function, one after another, keeps what else runs small; the allocator's locks are reset by glibc in the child.
#[test]
fn every_way_to_end_is_told_apart() {
    let (outcome, output) = run(
        |_| {
            io::stderr().write_all(b"hello\n")?;
            Ok(())
        },
        LONG,
    );
    assert_eq!(outcome, Outcome::Passed);
    assert_eq!(output, "hello\n");

    assert_eq!(run(|_| skip!("not here"), LONG).0, Outcome::Skipped("not here".into()));

    let why = failure(
        |c| {
            c.step("adding");
            check!(1 + 1 == 3, "expected 3, actual 2");
            Ok(())
        },
        LONG,
    );
    assert!(why.contains("expected 3, actual 2") && why.contains("last step: adding"), "{why}");

    let why = failure(|_| panic!("boom {}", 7), LONG);
    assert!(why.contains("panic: boom 7"), "{why}");

    let why = failure(
        |c| {
            c.step("dying");
            std::process::abort();
        },
        LONG,
    );
    assert!(why.contains("SIGABRT") && why.contains("at: dying"), "{why}");

    let start = Instant::now();
    let why = failure(
        |c| {
            c.step("waiting for ever");
            loop {
                std::thread::park();
            }
        },
        Duration::from_millis(200),
    );
    assert!(why.contains("no end within 0.2s") && why.contains("at: waiting for ever"), "{why}");
    assert!(why.contains("waits in"), "{why}");
    assert!(start.elapsed() < DEATH_TIMEOUT);
}

#[test]
fn a_pair_needs_two_functions() {
    let run = Run { functions: vec!["/nonexistent/svadev0".into()], seed: 1, scale: 1.0 };
    let case = Case { test: Test::pair("p", |_| Ok(())), function: 0 };
    assert!(matches!(run.one(&case).0, Outcome::Skipped(_)));
}
