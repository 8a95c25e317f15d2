//! How somebody on the network may try to change the gateway. Sent to the faces themselves (`admin.rs`) and to a pod
//! (`it/pod/doors.rs`), from which none of it may change anything.

/// What hyper's server knows, and one that nobody does.
pub(crate) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "DRAIN"];

/// Every path of the gateway's, and how people try to get at one that is not meant for them.
pub(crate) const PATHS: [&str; 32] = [
    "/",
    "/livez",
    "/readyz",
    "/startupz",
    "/metrics",
    "/status.json",
    "/settings.json",
    "/connections.json",
    "/explain",
    "/explain/x",
    "/drain",
    "/drain/",
    "/drain/wait",
    "/drain/wait/../../drain",
    "/drain?",
    "/drain?x",
    "//drain",
    "/./drain",
    "/livez/../drain",
    "/%64rain",
    "/DRAIN",
    "/set",
    "/set?limit=1",
    "/set/limit",
    "/log-level",
    "/app-probe/app/liveness",
    "/app-probe/",
    "/app-probe/../set",
    "http://localhost/drain",
    "http://127.0.0.1:15820/set",
    "*",
    "localhost:15820",
];
