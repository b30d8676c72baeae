//! What a remapping unit can do, as a topology file's `unit` table and `--unit KEY=VALUE` say it.
use svadev_iommu::{Caching, UnitConfig};

/// One key.
struct UnitOption {
    key: &'static str,
    values: Values,
}

/// The values that a key takes.
enum Values {
    /// `on` or `off`, for this field.
    Switch(fn(&mut UnitConfig) -> &mut bool),
    /// Those that the words say.
    Of(&'static str, Set),
}

/// Sets a value. `None`: the value is not one of those that are allowed.
type Set = fn(&mut UnitConfig, &str) -> Option<()>;

impl UnitOption {
    const fn switch(key: &'static str, field: fn(&mut UnitConfig) -> &mut bool) -> Self {
        Self { key, values: Values::Switch(field) }
    }

    const fn of(key: &'static str, allowed: &'static str, set: Set) -> Self {
        Self { key, values: Values::Of(allowed, set) }
    }

    fn set(&self, unit: &mut UnitConfig, value: &str) -> Result<(), String> {
        let (allowed, done) = match &self.values {
            Values::Switch(field) => ("on or off", switch(value).map(|on| *field(unit) = on)),
            Values::Of(allowed, set) => (*allowed, set(unit, value)),
        };
        done.ok_or_else(|| format!("{} = {value} is not allowed: write {allowed}", self.key))
    }
}

/// Every key, in the order in which errors list them.
const OPTIONS: &[UnitOption] = &[
    UnitOption::switch("scalable_mode", |unit| &mut unit.scalable),
    UnitOption::switch("first_stage", |unit| &mut unit.first_stage),
    UnitOption::switch("nested", |unit| &mut unit.nested),
    UnitOption::switch("page_requests", |unit| &mut unit.page_requests),
    UnitOption::switch("coherent", |unit| &mut unit.coherent),
    UnitOption::switch("supervisor_requests", |unit| &mut unit.supervisor_requests),
    UnitOption::switch("execute_requests", |unit| &mut unit.execute_requests),
    UnitOption::of("levels", "4 or 5", |unit, value| number(value, 4, 5).map(|levels| unit.levels5 = levels == 5)),
    UnitOption::of("largest_page", "4K, 2M or 1G", |unit, value| {
        (unit.pages_2mib, unit.pages_1gib) = match value {
            "4K" => (false, false),
            "2M" => (true, false),
            "1G" => (true, true),
            _ => return None,
        };
        Some(())
    }),
    UnitOption::of("pasid_bits", "1 to 20", |unit, value| number(value, 1, 20).map(|bits| unit.max_pasid_bits = bits)),
    UnitOption::of("address_bits", "36 to 52", |unit, value| {
        number(value, 36, 52).map(|bits| unit.host_address_width = bits)
    }),
    UnitOption::of("caching", "none, strict or adversarial", |unit, value| {
        unit.caching = match value {
            "none" => Caching::None,
            "strict" => Caching::Strict,
            "adversarial" => Caching::Adversarial,
            _ => return None,
        };
        Some(())
    }),
];

/// `on` and `true`, `off` and `false`.
fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

fn number(value: &str, least: u8, most: u8) -> Option<u8> {
    value.parse().ok().filter(|number| (least..=most).contains(number))
}

/// Sets what `key` means.
///
/// Errors: there is no such key, or it does not take this value.
pub(crate) fn set(unit: &mut UnitConfig, key: &str, value: &str) -> Result<(), String> {
    let Some(option) = OPTIONS.iter().find(|option| option.key == key) else {
        let keys: Vec<_> = OPTIONS.iter().map(|option| option.key).collect();
        return Err(format!("unknown key {key:?}: write one of {}", keys.join(", ")));
    };
    option.set(unit, value)
}

/// An option of the command line: `KEY=VALUE` for every unit, `NAME.KEY=VALUE` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitOverride {
    pub(crate) unit: Option<String>,
    pub(crate) key: String,
    pub(crate) value: String,
}

impl std::str::FromStr for UnitOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("no value: write KEY=VALUE, as in page_requests=off")?;
        let (unit, key) = match key.split_once('.') {
            Some((unit, key)) => (Some(unit.to_owned()), key),
            None => (None, key),
        };
        // Tried on a unit that nobody uses, so that the error names the option.
        set(&mut UnitConfig::default(), key, value)?;
        Ok(Self { unit, key: key.to_owned(), value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_changes_the_unit_and_refuses_other_values_in_words() {
        let values = [
            ("scalable_mode", "off"),
            ("first_stage", "off"),
            ("nested", "false"),
            ("page_requests", "off"),
            ("coherent", "off"),
            ("supervisor_requests", "off"),
            ("execute_requests", "off"),
            ("levels", "4"),
            ("largest_page", "4K"),
            ("pasid_bits", "8"),
            ("address_bits", "40"),
            ("caching", "none"),
        ];
        assert!(OPTIONS.iter().map(|option| option.key).eq(values.map(|(key, _)| key)), "each is tried");
        for (key, value) in values {
            let mut unit = UnitConfig::default();
            set(&mut unit, key, value).unwrap();
            assert_ne!(unit, UnitConfig::default(), "{key}");
            let refused = set(&mut unit, key, "99").unwrap_err();
            assert!(refused.starts_with(&format!("{key} = 99 is not allowed: write ")), "{refused}");
        }
        assert!(set(&mut UnitConfig::default(), "pri", "off").unwrap_err().contains("page_requests"));
    }

    #[test]
    fn an_option_of_the_command_line_is_for_all_units_or_for_one() {
        let parse = |text: &str| text.parse::<UnitOverride>();
        let all = parse("levels=4").unwrap();
        assert_eq!((all.unit, all.key.as_str(), all.value.as_str()), (None, "levels", "4"));
        assert_eq!(parse("iommu1.levels=4").unwrap().unit.as_deref(), Some("iommu1"));
        for bad in ["levels", "levels=6", "iommu1.=4", "=", "x=1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
