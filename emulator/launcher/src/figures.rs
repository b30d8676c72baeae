//! Figures of a run as people read them: rows that the guest measured, and the backend's counters.
use serde::Serialize;
use serde_json::Value;

use crate::control::printable;

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: Value,
    /// In what.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

/// The numbers in the backend's counters, each named by its path: `00:05.0.page_requests`, `00:06.0.bytes`.
pub fn add_counters(figures: &mut Vec<Figure>, path: &str, value: &Value) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Number(_) => figures.push(Figure { name: path.to_owned(), value: value.clone(), unit: String::new() }),
        Value::Object(object) => {
            for (name, value) in object {
                add_counters(figures, &join(name), value);
            }
        }
        Value::Array(array) => {
            for (index, value) in array.iter().enumerate() {
                // Functions are known by where they sit.
                let name = value["bdf"].as_str().map_or_else(|| index.to_string(), str::to_owned);
                add_counters(figures, if value["bdf"].is_string() { &name } else { path }, value);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Rows of the table of counters: what it is, the unit's counter, a function's counter.
const COUNTERS: &[(&str, Option<&str>, Option<&str>)] = &[
    ("descriptors completed", None, Some("completions")),
    ("bytes moved, filled, compared", None, Some("bytes")),
    ("device TLB hits", None, Some("tlb_hits")),
    ("translation requests", Some("translation_requests"), Some("translations")),
    ("  not present", Some("translations_not_present"), Some("not_present")),
    ("  blocked", Some("translations_refused"), None),
    ("page table walks", Some("walks"), None),
    ("page requests", Some("page_requests"), Some("page_requests")),
    ("  in groups", None, Some("groups")),
    ("  answered: success", Some("responses_success"), Some("responses_success")),
    ("  answered: invalid", Some("responses_invalid"), Some("responses_invalid")),
    ("invalidations of the IOTLB", Some("invalidations_pasid_iotlb"), None),
    ("invalidations of the PASID cache", Some("invalidations_pasid_cache"), None),
    ("invalidations of a device TLB", Some("invalidations_device_tlb"), Some("invalidations")),
    ("invalidation waits completed", Some("waits"), None),
    ("  that had to wait for an engine", Some("waits_parked"), None),
    ("faults recorded", Some("faults_recorded"), None),
    ("interrupts", Some("interrupts"), Some("interrupts")),
];

/// The table of the main counters: a column for each unit, and one for each function.
pub fn counter_table(counters: &Value) -> Vec<String> {
    let units = counters["units"].as_array().map_or(&[][..], Vec::as_slice);
    let functions = counters["functions"].as_array().map_or(&[][..], Vec::as_slice);
    let mut head = format!("{:34}", "");
    for unit in units {
        let bdf = if units.len() == 1 { "" } else { unit["bdf"].as_str().unwrap_or_default() };
        head += &format!("{:>14}", format!("IOMMU {bdf}").trim_end());
    }
    for function in functions {
        head += &format!("{:>14}", function["bdf"].as_str().unwrap_or("function"));
    }
    let cell = |value: Option<&Value>| {
        format!("{:>14}", value.and_then(Value::as_u64).map_or_else(String::new, |n| n.to_string()))
    };
    let row = |&(name, unit, function): &(&str, Option<&str>, Option<&str>)| {
        let mut line = format!("{name:34}");
        for each in units {
            line += &cell(unit.and_then(|key| each.get(key)));
        }
        for each in functions {
            line += &cell(function.and_then(|key| each.get(key)));
        }
        line.trim_end().to_owned()
    };
    std::iter::once(head).chain(COUNTERS.iter().map(row)).collect()
}

/// Names to the left, numbers to the right, one line each.
pub fn table(figures: &[Figure]) -> Vec<String> {
    let rows: Vec<_> = figures
        .iter()
        .map(|figure| (printable(&figure.name), number(&figure.value), printable(&figure.unit)))
        .collect();
    let names = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    let numbers = rows.iter().map(|(_, number, _)| number.len()).max().unwrap_or(0);
    rows.iter()
        .map(|(name, number, unit)| format!("{name:names$}  {number:>numbers$} {unit}").trim_end().to_owned())
        .collect()
}

fn number(value: &Value) -> String {
    match value {
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (None, Some(float)) => format!("{float:.2}"),
            _ => number.to_string(),
        },
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_rows_named_by_their_path() {
        let mut figures = Vec::new();
        let units = serde_json::json!([{"bdf": "00:05.0", "faults": 2}]);
        let counters = serde_json::json!({"units": units, "functions": [{"bdf": "00:06.0", "bytes": 7}]});
        add_counters(&mut figures, "", &counters);
        let mut rows: Vec<_> = figures.iter().map(|f| (f.name.as_str(), f.value.as_u64().unwrap())).collect();
        rows.sort_unstable();
        assert_eq!(rows, [("00:05.0.faults", 2), ("00:06.0.bytes", 7)]);
    }

    #[test]
    fn each_row_of_counters_names_one_that_exists() {
        let unit = serde_json::to_value(svadev_iommu::Counters::default()).unwrap();
        let function = serde_json::to_value(svadev_accelerator::Counters::default()).unwrap();
        for (row, of_unit, of_function) in COUNTERS {
            assert!(of_unit.is_none_or(|key| unit.get(key).is_some()), "{row}: {of_unit:?}");
            assert!(of_function.is_none_or(|key| function.get(key).is_some()), "{row}: {of_function:?}");
        }
        let units = serde_json::json!([{"bdf": "00:05.0", "waits": 3}]);
        let counters = serde_json::json!({"units": units, "functions": [{"bdf": "00:06.0", "bytes": 7}]});
        let lines = counter_table(&counters);
        assert!(lines[0].ends_with("         IOMMU       00:06.0"), "{}", lines[0]);
        assert!(lines.iter().any(|l| l.starts_with("bytes") && l.ends_with(" 7")), "{lines:?}");
        assert!(lines.iter().any(|l| l.starts_with("invalidation waits") && l.ends_with(" 3")), "{lines:?}");
    }

    #[test]
    fn the_table_is_aligned_and_the_guest_cannot_move_the_cursor() {
        let figure = |name: &str, value: Value| Figure { name: name.into(), value, unit: "us".into() };
        let lines = table(&[figure("a", 12345.into()), figure("lat\u{1b}[2Jency", 1.5.into())]);
        assert_eq!(lines, ["a            12345 us", "lat\u{fffd}[2Jency   1.50 us"]);
    }
}
