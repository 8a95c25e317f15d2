//! What `tidegate capture` is told, by flags, by the settings' variables, and by the pod it is in.
//!
//! A pod says where it is with two variables of the downward API: `TIDEGATE_POD_IP`
//! (`status.podIP` or `status.podIPs`) and `TIDEGATE_HOST_IP` (`status.hostIP` or `status.hostIPs`).

use std::ffi::OsString;
use std::net::IpAddr;

use crate::capture::{Place, Plan, REDIRECT_PORT};
use crate::cli::CaptureAction;
use crate::settings::{self, Value};

use super::{Mistakes, Origin};

/// The variables of the downward API; `run` passes them over.
pub(super) const POD_IP: &str = "TIDEGATE_POD_IP";
pub(super) const HOST_IP: &str = "TIDEGATE_HOST_IP";

/// What to do, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// What is to be done.
    pub task: Task,
    /// Where this process is, as far as anybody says.
    pub places: Vec<Place>,
}

/// What is to be done with the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Put these in force.
    Install(Plan),
    /// Show these.
    Print(Plan),
    /// See whether they are in force; these, if somebody says which.
    Check(Option<Plan>),
    /// Take them away.
    Remove,
}

/// Everything that is said about the rules, or every mistake in it.
pub fn capture(
    action: &CaptureAction,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Capture, Mistakes> {
    use CaptureAction::{Check, Install, Print, Remove};
    let (Install(flags) | Print(flags) | Check(flags) | Remove(flags)) = action;
    let mut mistakes = Mistakes::default();
    let variables: Vec<_> = environment.into_iter().collect();
    let variable = |name: &str| {
        let found = variables.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.to_string_lossy().into_owned())
    };
    let mut ports = |name: &str, flag: &Option<String>| {
        let by_variable = format!("TIDEGATE_{}", name.replace('-', "_").to_uppercase());
        let (text, origin) = match flag {
            Some(text) => (text.clone(), Origin::Flag),
            None => (variable(&by_variable)?, Origin::Environment(by_variable)),
        };
        let key = settings::find(name).expect("in the table");
        match key.kind.parse(&text) {
            Ok(Value::Ports(ports)) => Some(ports),
            Ok(_) => unreachable!("its kind is a list of ports"),
            Err(problem) => {
                mistakes.add(name, Some(&text), origin, problem);
                None
            }
        }
    };
    let included = ports("include-inbound-ports", &flags.include_inbound_ports);
    let excluded = ports("exclude-inbound-ports", &flags.exclude_inbound_ports);
    let redirect = match flags.redirect_port.as_deref().map(|text| (text, text.parse())) {
        None => REDIRECT_PORT,
        Some((_, Ok(port))) if port != 0 => port,
        Some((text, _)) => {
            let problem = "must be a port from 1 to 65535";
            mistakes.add("redirect-port", Some(text), Origin::Flag, problem);
            REDIRECT_PORT
        }
    };
    let plan = included.map(|included| {
        let plan = Plan::new(included, &excluded.unwrap_or_default(), redirect);
        if plan.redirected().is_empty() {
            let problem = "leaves no port to redirect: the gateway's own are never redirected";
            mistakes.add("include-inbound-ports", None, "", problem);
        }
        plan
    });

    let mut places = Vec::new();
    let mut addresses = |name: &str| {
        let text = variable(name)?;
        let list: Result<Vec<IpAddr>, _> =
            text.split(',').map(|ip| ip.trim().parse::<IpAddr>()).collect();
        if list.is_err() {
            let origin = Origin::Environment(name.to_owned());
            mistakes.add(name, Some(&text), origin, "must be IP addresses with commas between");
        }
        list.ok()
    };
    match (addresses(POD_IP), addresses(HOST_IP)) {
        (Some(pod), Some(host)) => places.push(Place::Pod { pod, host }),
        (None, None) => {}
        _ => {
            let problem = format!(
                "both {POD_IP} and {HOST_IP} are needed to tell the pod's network from the machine's"
            );
            mistakes.add("the downward API", None, "", problem);
        }
    }
    places.extend(flags.namespace.clone().map(Place::Named));
    if places.is_empty() && matches!(action, Install(_) | Remove(_)) {
        let problem = format!(
            "is missing: say which network namespace this is, as a name of `ip netns`, a path such \
             as /proc/PID/ns/net, or `host`; in a pod, {POD_IP} and {HOST_IP} say it"
        );
        mistakes.add("namespace", None, "", problem);
    }
    let task = match (action, plan) {
        (Install(_), Some(plan)) => Some(Task::Install(plan)),
        (Print(_), Some(plan)) => Some(Task::Print(plan)),
        (Check(_), plan) => Some(Task::Check(plan)),
        (Remove(_), _) => Some(Task::Remove),
        (Install(_) | Print(_), None) => None,
    };
    if task.is_none() && flags.include_inbound_ports.is_none() {
        let problem = "is missing: say which ports to redirect, such as `8080,9000-9100`";
        mistakes.add("include-inbound-ports", None, "", problem);
    }
    match task {
        Some(task) if mistakes.is_empty() => Ok(Capture { task, places }),
        _ => Err(mistakes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::CaptureRules;

    fn told(action: &CaptureAction, environment: &[(&str, &str)]) -> Result<Capture, Mistakes> {
        capture(action, environment.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn rules(include: &str) -> CaptureRules {
        CaptureRules { include_inbound_ports: Some(include.into()), ..CaptureRules::default() }
    }

    #[test]
    fn flags_beat_variables_and_own_ports_stay() {
        let environment = [
            ("TIDEGATE_INCLUDE_INBOUND_PORTS", "1"),
            ("TIDEGATE_EXCLUDE_INBOUND_PORTS", "9050"),
            ("TIDEGATE_POD_IP", "10.0.0.5,fd00::5"),
            ("TIDEGATE_HOST_IP", "192.0.2.1"),
        ];
        let action = CaptureAction::Install(rules("9000-9100,15820"));
        let told = told(&action, &environment).expect("right");
        let Task::Install(plan) = told.task else { panic!("{:?}", told.task) };
        assert_eq!(plan.redirected().to_string(), "9000-9049, 9051-9100");
        assert!(matches!(told.places.as_slice(), [Place::Pod { pod, .. }] if pod.len() == 2));
    }

    #[test]
    fn all_mistakes_at_once() {
        let wrong = CaptureRules { redirect_port: Some("0".into()), ..rules("80;drop") };
        let said = told(&CaptureAction::Install(wrong), &[("TIDEGATE_POD_IP", "here")]);
        let said = said.expect_err("five").to_string();
        for part in ["80;drop", "redirect-port \"0\"", "TIDEGATE_POD_IP \"here\"", "namespace"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        let only_ours = CaptureAction::Print(rules("15820"));
        assert!(told(&only_ours, &[]).expect_err("none").to_string().contains("no port"));
        let nothing = || CaptureRules::default();
        told(&CaptureAction::Install(nothing()), &[]).expect_err("no ports, no place");
        told(&CaptureAction::Print(nothing()), &[]).expect_err("no ports");
        told(&CaptureAction::Remove(nothing()), &[]).expect_err("no place");
        told(&CaptureAction::Check(nothing()), &[]).expect("looks where it is");
    }
}
