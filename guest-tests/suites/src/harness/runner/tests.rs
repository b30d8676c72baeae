use super::*;
use crate::harness::{Test, Verdict};
use crate::{check, skip};

fn plain() -> Run {
    Run {
        functions: vec!["/nonexistent/svadev0".into()],
        seed: 1,
        scale: 1.0,
        repeat: 1,
        fail_fast: false,
        page_requests: true,
    }
}

/// Run one test without functions; return its outcome and output.
fn run(body: fn(&Context) -> Verdict, limit: Duration) -> (Outcome, String) {
    let run = plain();
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

// libtest runs tests in threads, and the runner forks: the child then must not meet a lock that another thread holds.
// One test function, one after another, keeps what else runs small; the allocator's locks are reset by glibc in the
// child.
#[test]
fn what_needs_page_faults_is_skipped_where_there_are_none() {
    let case = Case { test: Test::each("a", |_| Ok(())).needs_page_requests(), function: 0 };
    let (outcome, _) = Run { page_requests: false, ..plain() }.one(&case);
    assert!(matches!(&outcome, Outcome::Skipped(why) if why.contains("--unit page_requests=on")), "{outcome:?}");
    let (outcome, _) = plain().one(&case);
    assert_eq!(outcome, Outcome::Passed);
}

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

    // Rounds, and what comes after a failure.
    let tests = [Test::pair("fine", |_| Ok(())), Test::pair("bad", |_| panic!("boom"))];
    let cases: Vec<Case> = tests.iter().map(|&test| Case { test, function: 0 }).collect();
    let two = vec!["/nonexistent/svadev0".into(), "/nonexistent/svadev1".into()];
    let ktap = |run: Run| {
        let mut out = Vec::new();
        run.all(&cases, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let text = ktap(Run { functions: two.clone(), repeat: 2, ..plain() });
    for line in ["1..4", "ok 1 fine@1", "not ok 2 bad@1", "ok 3 fine@2", "not ok 4 bad@2"] {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}: {text}");
    }
    let text = ktap(Run { functions: two, repeat: 2, fail_fast: true, ..plain() });
    assert_eq!(text.lines().filter(|line| line.contains("# SKIP not run")).count(), 2, "{text}");
}

#[test]
fn a_pair_needs_two_functions() {
    let run = plain();
    let case = Case { test: Test::pair("p", |_| Ok(())), function: 0 };
    assert!(matches!(run.one(&case).0, Outcome::Skipped(_)));
}
