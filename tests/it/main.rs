//! The promises, kept by the real binary in front of real sockets, on both engines.
//!
//! Each module is named for what it proves. `TIDEGATE_BIN` tests another binary than the one cargo
//! built, `SOAK=1` runs everything at full size; see `tests/README.md`.

mod support; // the gateway as a child, the application that counts, the clients that keep books

#[path = "../attempts/mod.rs"]
mod attempts; // what somebody on the network may try
#[path = "../skip/mod.rs"]
mod skip; // what a test says that cannot run
#[path = "../stopwatch/mod.rs"]
mod stopwatch; // time, less what the machine withheld

mod rig; // the rig itself: an oracle that is wrong would prove anything

mod http; // every promise once more, per request

mod capture; // traffic that the kernel redirects: rules, ports, loops, in network namespaces
mod drain; // P6: nothing is lost when it goes
mod explain; // P4: why somebody was refused
mod fair; // P2, P3: in order, and no longer than promised
mod fallback; // P7: without io_uring
mod families; // `[::]`, where there is no IPv6
mod leaves; // P1, P10, P11: clients that leave, idle ones, nothing left behind
mod limits; // descriptors and connections run out
mod live; // settings from annotations, a ConfigMap and the API server
mod logs; // P8, A27: lines, too many lines, and nobody forges one
mod metrics; // sums that are the load's books; Prometheus, the dashboard, the alerts
mod network; // partitions and source ports, in a network namespace
mod observe; // P13: watching without refusing
mod page; // the status page, in a browser
mod pod; // the whole pod, as a kubelet plays it
mod probes; // P8: the application's probes, beside the gate
mod refuse; // P4: quickly, politely, by reason
mod restart; // P6: hooks and signals of a pod, and a drain that is taken back
mod servers; // nginx, PostgreSQL, Redis, with their own benchmarks
mod settings; // bad input is refused with a clear message
mod strict; // P1: never more than the limit, whatever happens
mod tls; // collectors that are reached over TLS
mod trace; // what is recorded, who collects it, and what that must not touch
mod transparent; // P5, P9: every byte and every way to end
mod upstream; // applications that fail, loops, a gateway that is killed
mod watch; // the status in a terminal
