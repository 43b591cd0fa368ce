use serde::{Deserialize, Serialize};

use crate::TrainRequest;

/// Keys that a sweep may have: its comparison is a table.
pub const MAX_SWEEP_KEYS: usize = 2;
/// More runs than this are asked about first.
pub const MANY_RUNS: usize = 64;

/// A config key and the values it takes in a sweep, as they were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepKey {
    pub key: String,
    pub values: Vec<String>,
}

impl SweepKey {
    /// Of `1e-4, 3e-4`; values that hold commas themselves stand between bars with spaces around them.
    pub fn new(key: &str, values: &str) -> Self {
        let separator = if values.contains(" | ") { " | " } else { "," };
        let values = values.split(separator).map(|value| value.trim().to_owned());
        Self { key: key.trim().to_owned(), values: values.filter(|value| !value.is_empty()).collect() }
    }
}

/// A run for each combination of the keys' values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepRequest {
    /// What all runs share. Its name is the sweep's; its folder and its start are of no account.
    pub train: TrainRequest,
    pub keys: Vec<SweepKey>,
}

/// Every combination of the keys' values; the last key's change fastest.
pub fn sweep_points(keys: &[SweepKey]) -> Vec<Vec<SweepValue>> {
    keys.iter().fold(vec![Vec::new()], |points, SweepKey { key, values }| {
        let with = |point: &Vec<SweepValue>, value: &String| {
            let mut point = point.clone();
            point.push(SweepValue { key: key.clone(), value: value.clone() });
            point
        };
        points.iter().flat_map(|point| values.iter().map(|value| with(point, value))).collect()
    })
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepValue {
    pub key: String,
    /// As it was written.
    pub value: String,
}

/// The place of a run in its sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepPlace {
    /// The sweep's name.
    pub name: String,
    /// From 0, in the order of [`sweep_points`].
    pub index: usize,
    pub values: Vec<SweepValue>,
}

impl SweepPlace {
    /// `learning_rate=1e-4 · lora.r=8`.
    pub fn text(&self) -> String {
        let values = self.values.iter().map(|SweepValue { key, value }| format!("{key}={value}"));
        values.collect::<Vec<_>>().join(" · ")
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|value| value.key == key).map(|value| value.value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_between_commas_or_between_bars() {
        assert_eq!(SweepKey::new("lora.r", "8, 16,").values, ["8", "16"]);
        assert_eq!(
            SweepKey::new("lora.targets", "q_proj,v_proj | all-linear").values,
            ["q_proj,v_proj", "all-linear"]
        );
    }

    #[test]
    fn points_are_every_combination_in_order() {
        let keys = [SweepKey::new("a", "1,2"), SweepKey::new("b", "x,y,z")];
        let texts: Vec<String> = sweep_points(&keys)
            .into_iter()
            .map(|values| SweepPlace { name: "s".into(), index: 0, values }.text())
            .collect();
        let expected = ["a=1 · b=x", "a=1 · b=y", "a=1 · b=z", "a=2 · b=x", "a=2 · b=y", "a=2 · b=z"];
        assert_eq!(texts, expected);
    }
}
