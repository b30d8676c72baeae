//! Lines for the person at the terminal. A terminal that has gone is no reason to stop, so errors are ignored.

/// A line about what happens, on standard error.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr().lock(), "svadev: {}", format_args!($($arg)*));
    }};
}

/// A line of output, on standard output.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stdout().lock(), $($arg)*);
    }};
}
