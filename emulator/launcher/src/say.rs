//! Lines for the user. Errors are ignored: a closed terminal is no reason to stop.

/// Prints a message for the user to standard error.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr().lock(), "svadev: {}", format_args!($($arg)*));
    }};
}

/// Prints a line of results to standard output.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stdout().lock(), $($arg)*);
    }};
}
