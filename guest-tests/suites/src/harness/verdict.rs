//! What a test returns, and the checks that make it.
use std::fmt::Display;

/// Why a test ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Something is not as it should be.
    Fail(String),
    /// The machine lacks what the test needs. Only for what a machine may lack.
    Skip(String),
}

/// What a test, or a part of one, returns.
pub type Verdict<T = ()> = Result<T, Stop>;

/// Any error ends a test as a failure, so `?` works everywhere.
impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Fail(text)
    }
}

/// Says what was being done when something failed.
pub trait During<T> {
    /// Put `what` before the reason.
    ///
    /// # Errors
    /// As `self`, with `what` before it.
    fn during(self, what: impl Display) -> Verdict<T>;
}

impl<T, E: Into<Stop>> During<T> for Result<T, E> {
    fn during(self, what: impl Display) -> Verdict<T> {
        self.map_err(|e| match e.into() {
            Stop::Fail(why) => Stop::Fail(format!("{what}: {why}")),
            skip @ Stop::Skip(_) => skip,
        })
    }
}

/// End the test as failed, with a formatted reason.
#[macro_export]
macro_rules! fail {
    ($($text:tt)+) => { return Err($crate::harness::Stop::Fail(format!($($text)+))) };
}

/// End the test as one this machine cannot run.
#[macro_export]
macro_rules! skip {
    ($($text:tt)+) => { return Err($crate::harness::Stop::Skip(format!($($text)+))) };
}

/// Fail unless the condition holds; the text says what was expected and what there was.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            $crate::fail!("{}:{}: {}", file!(), line!(), format!($($text)+));
        }
    };
}

/// Fail unless both are equal, with expected and actual; the text says what they are.
#[macro_export]
macro_rules! check_eq {
    ($actual:expr, $expected:expr, $($text:tt)+) => {{
        let (actual, expected) = (&$actual, &$expected);
        if actual != expected {
            $crate::fail!(
                "{}:{}: {}: expected {:?}, actual {:?}", file!(), line!(), format!($($text)+), expected, actual
            );
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_is_three() -> Verdict {
        check_eq!(1 + 1, 3, "sum of {}", "ones");
        Ok(())
    }

    #[test]
    fn a_failed_check_shows_expected_and_actual() {
        let Err(Stop::Fail(why)) = two_is_three() else { panic!("it holds") };
        assert!(why.ends_with("sum of ones: expected 3, actual 2"), "{why}");
    }

    #[test]
    fn errors_become_failures_with_their_context() {
        let e = std::fs::read("/nonexistent/x").during("read x").unwrap_err();
        let Stop::Fail(why) = e else { panic!("skipped") };
        assert!(why.starts_with("read x: No such file"), "{why}");
    }

    #[test]
    fn a_skip_stays_a_skip() {
        fn absent() -> Verdict {
            skip!("no such thing")
        }
        assert_eq!(absent().during("outer"), Err(Stop::Skip("no such thing".into())));
    }
}
