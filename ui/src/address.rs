//! Places of the window as a browser's address bar has them.

use crate::Route;

impl Route {
    /// E.g. `runs/starter-pirate`; [`Self::from_address`] reads it.
    pub fn address(&self) -> String {
        match self {
            Self::Bench => "bench".into(),
            Self::NewRun => "new".into(),
            Self::Runs => "runs".into(),
            Self::Run(run) => format!("runs/{run}"),
            Self::Compare(runs) => format!("compare/{}", runs.join("/")),
            Self::Adapters => "adapters".into(),
            Self::Models => "models".into(),
            Self::Chat => "chat".into(),
            Self::Settings => "settings".into(),
        }
    }

    pub fn from_address(address: &str) -> Option<Self> {
        let (place, rest) = address.split_once('/').map_or((address, None), |(a, b)| (a, Some(b)));
        match (place, rest) {
            ("bench", None) => Some(Self::Bench),
            ("new", None) => Some(Self::NewRun),
            ("runs", None) => Some(Self::Runs),
            ("runs", Some(run)) => Some(Self::Run(run.into())),
            ("compare", Some(runs)) => Some(Self::Compare(runs.split('/').map(Into::into).collect())),
            ("adapters", None) => Some(Self::Adapters),
            ("models", None) => Some(Self::Models),
            ("chat", None) => Some(Self::Chat),
            ("settings", None) => Some(Self::Settings),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_its_place() {
        for route in [
            Route::Bench,
            Route::NewRun,
            Route::Runs,
            Route::Run("a b".into()),
            Route::Compare(vec!["a".into(), "b".into()]),
            Route::Adapters,
            Route::Models,
            Route::Chat,
            Route::Settings,
        ] {
            assert_eq!(Route::from_address(&route.address()), Some(route));
        }
        assert_eq!(Route::from_address("nowhere"), None);
        assert_eq!(Route::from_address(""), None);
    }
}
