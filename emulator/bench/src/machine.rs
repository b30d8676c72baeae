//! Where and when something was measured.
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A description of the machine for readers of the figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// When the run began, UTC.
    pub date: String,
    /// This program's version.
    pub version: String,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Processors that this program may use.
    pub processors: usize,
    /// It is itself a virtual machine.
    pub virtualized: bool,
    /// The host's kernel.
    pub kernel: String,
    /// Memory of the host, MiB.
    pub memory_mib: u64,
    /// The load average over a minute when the run began.
    pub load: String,
    /// Seconds that one case was measured.
    pub seconds_per_case: String,
    /// The guest's kernel and how it was executed; empty without a guest.
    pub guest: String,
}

impl Machine {
    /// This one, now.
    pub fn here(seconds_per_case: f64) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self {
            date: date(since),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu: field(&cpus, "model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            virtualized: field(&cpus, "flags").split(' ').any(|flag| flag == "hypervisor"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10,
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            seconds_per_case: format!("{seconds_per_case}"),
            guest: String::new(),
        }
    }

    /// Whether the host was so busy when the run began that polled figures are too high.
    pub fn is_busy(&self) -> bool {
        self.load.parse::<f64>().is_ok_and(|load| load >= self.processors as f64 / 2.0)
    }

    /// One line for each thing that is known.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let kind = if self.virtualized { ", itself a virtual machine" } else { "" };
        let lines = [
            ("date", self.date.clone()),
            ("svadev", self.version.clone()),
            ("processor", format!("{} ({} usable{kind})", self.cpu, self.processors)),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("host kernel", self.kernel.clone()),
            ("guest", self.guest.clone()),
            ("load before", self.load.clone()),
            ("per case", format!("{} s", self.seconds_per_case)),
        ];
        lines.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }
}

/// `2026-11-21 16:04 UTC` from seconds since 1970. Years begin in March here, so that a leap day is the last of its
/// year.
fn date(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86_400, seconds / 60 % 1440);
    // Day 0 is 0000-03-01; an era has 400 years and 146,097 days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{date:02} {:02}:{:02} UTC", era * 400 + year + next, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_with_and_without_leap_days() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400 + 3661), "2000-02-29 01:01 UTC");
        assert_eq!(date(1_772_323_199), "2026-02-28 23:59 UTC");
        assert_eq!(date(1_772_323_200), "2026-03-01 00:00 UTC");
    }

    #[test]
    fn half_a_processor_of_load_each_is_busy() {
        let at = |load: &str| Machine { load: load.into(), processors: 4, ..Machine::default() }.is_busy();
        assert_eq!([at("0.10"), at("1.99"), at("2.00"), at("")], [false, false, true, false]);
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::here(0.5);
        assert!(machine.processors > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
        assert!(machine.lines().iter().all(|(name, _)| *name != "guest"), "there is none yet");
    }
}
