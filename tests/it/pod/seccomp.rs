//! The system calls that a container may not make.
//!
//! `RuntimeDefault` refuses what container runtimes refuse by default to whoever has no capability for it:
//! since 2023 io_uring, too. A pod that is to use io_uring names a profile of the node's own; the rig's is
//! called `io_uring.json`, and differs in nothing else.

use k8s_openapi::api::core::v1::SeccompProfile;
use serde_json::{Value, json};

#[path = "../../seccomp/mod.rs"]
mod default;

use default::{IO_URING, REFUSED};

/// As an OCI bundle says it; `None` for a container that is not confined.
pub(super) fn filter(profile: Option<&SeccompProfile>) -> Option<Value> {
    let mut refused = REFUSED.to_vec();
    match profile {
        None => return None,
        Some(profile) => match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
            ("Unconfined", _) => return None,
            ("RuntimeDefault", _) => refused.extend(IO_URING),
            ("Localhost", Some("io_uring.json")) => {}
            other => panic!("the rig has no seccomp profile {other:?}"),
        },
    }
    Some(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }],
    }))
}
