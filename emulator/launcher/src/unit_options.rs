//! What a remapping unit can do, as a topology file's `unit` table and `--unit KEY=VALUE` say it.
use svadev_iommu::{Caching, UnitConfig};

/// One key.
struct UnitOption {
    key: &'static str,
    /// The values that are allowed, in words.
    allowed: &'static str,
    /// Sets it. `None`: the value is not one of those.
    set: fn(&mut UnitConfig, &str) -> Option<()>,
}

/// Every key, in the order in which errors list them.
const OPTIONS: &[UnitOption] = &[
    UnitOption {
        key: "scalable_mode",
        allowed: "on or off",
        set: |unit, value| switch(value).map(|on| unit.scalable = on),
    },
    UnitOption {
        key: "first_stage",
        allowed: "on or off",
        set: |unit, value| switch(value).map(|on| unit.first_stage = on),
    },
    UnitOption { key: "nested", allowed: "on or off", set: |unit, value| switch(value).map(|on| unit.nested = on) },
    UnitOption {
        key: "page_requests",
        allowed: "on or off",
        set: |unit, value| switch(value).map(|on| unit.page_requests = on),
    },
    UnitOption { key: "coherent", allowed: "on or off", set: |unit, value| switch(value).map(|on| unit.coherent = on) },
    UnitOption {
        key: "supervisor_requests",
        allowed: "on or off",
        set: |unit, value| switch(value).map(|on| unit.supervisor_requests = on),
    },
    UnitOption {
        key: "execute_requests",
        allowed: "on or off",
        set: |unit, value| switch(value).map(|on| unit.execute_requests = on),
    },
    UnitOption {
        key: "levels",
        allowed: "4 or 5",
        set: |unit, value| number(value, 4, 5).map(|levels| unit.levels5 = levels == 5),
    },
    UnitOption {
        key: "largest_page",
        allowed: "4K, 2M or 1G",
        set: |unit, value| {
            (unit.pages_2mib, unit.pages_1gib) = match value {
                "4K" => (false, false),
                "2M" => (true, false),
                "1G" => (true, true),
                _ => return None,
            };
            Some(())
        },
    },
    UnitOption {
        key: "pasid_bits",
        allowed: "1 to 20",
        set: |unit, value| number(value, 1, 20).map(|bits| unit.max_pasid_bits = bits),
    },
    UnitOption {
        key: "address_bits",
        allowed: "36 to 52",
        set: |unit, value| number(value, 36, 52).map(|bits| unit.host_address_width = bits),
    },
    UnitOption {
        key: "caching",
        allowed: "none, strict or adversarial",
        set: |unit, value| {
            unit.caching = match value {
                "none" => Caching::None,
                "strict" => Caching::Strict,
                "adversarial" => Caching::Adversarial,
                _ => return None,
            };
            Some(())
        },
    },
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
    (option.set)(unit, value).ok_or_else(|| format!("{key} = {value} is not allowed: write {}", option.allowed))
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
