//! LimitRanges as an operator writes them down: nobody is asked for anything when a pod is reviewed, so what the
//! API server would say to the sidecar has to be known before.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LimitRangeItem;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde::{Deserialize, Serialize};

use super::quantity::{ALLOWED, Quantity};

/// An item of a LimitRange's `spec.limits`, in the same words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitRange {
    /// What it is about.
    #[serde(rename = "type")]
    pub about: About,
    /// The most of each resource.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max: BTreeMap<String, String>,
    /// The least.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub min: BTreeMap<String, String>,
    /// How many times as much as is asked for may be used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max_limit_request_ratio: BTreeMap<String, String>,
    /// Of containers that say nothing, which the sidecar is not unless its pod is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub default: BTreeMap<String, String>,
    /// The same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub default_request: BTreeMap<String, String>,
}

/// What an item of a LimitRange is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum About {
    /// Every container by itself.
    Container,
    /// All containers of a pod together.
    Pod,
    /// Storage: nothing to a sidecar.
    PersistentVolumeClaim,
}

impl LimitRange {
    /// Everything that is wrong with it, to be read after its place.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let members = [
            ("max", &self.max),
            ("min", &self.min),
            ("maxLimitRequestRatio", &self.max_limit_request_ratio),
        ];
        let all = members.iter().flat_map(|(of, all)| all.iter().map(move |one| (of, one)));
        let compared = all.filter(|(_, (name, _))| ["cpu", "memory"].contains(&name.as_str()));
        // To allow nothing less is to say nothing.
        let wrong =
            compared.filter(|(_, (_, text))| *text != "0" && Quantity::parse(text).is_none());
        wrong.map(|(of, (name, text))| format!("{of}.{name} {text:?} must be {ALLOWED}")).collect()
    }

    /// As Kubernetes has it.
    pub(super) fn item(&self) -> LimitRangeItem {
        let amounts = |all: &BTreeMap<String, String>| {
            Some(all.iter().map(|(name, text)| (name.clone(), Text(text.clone()))).collect())
        };
        let about = match self.about {
            About::Container => "Container",
            About::Pod => "Pod",
            About::PersistentVolumeClaim => "PersistentVolumeClaim",
        };
        LimitRangeItem {
            type_: about.into(),
            max: amounts(&self.max),
            min: amounts(&self.min),
            max_limit_request_ratio: amounts(&self.max_limit_request_ratio),
            ..LimitRangeItem::default()
        }
    }
}
