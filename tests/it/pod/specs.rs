//! Pods as the injector is to make them, written down by hand: an application as its owner describes it,
//! and what is put beside it. A scenario says of a pod what is particular to it.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::network::Families;
use crate::support::{Engine, skip};

/// How connections get to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The kernel redirects them.
    Redirect,
    /// They are for a port of the gateway's.
    Listen,
}

/// What every scenario is played in: pairwise in short, all of them in the soak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) engine: Engine,
    pub(crate) families: Families,
    pub(crate) mode: Mode,
}

/// A pod with one application, and the gateway in front of some of its ports.
#[derive(Clone)]
pub(crate) struct Spec {
    case: Case,
    name: &'static str,
    application: Value,
    ports: Vec<u16>,
    flags: Vec<String>,
    env: Vec<Value>,
    volumes: Vec<Value>,
    grace: u32,
    /// Whether the sidecar is an ordinary container, as where Kubernetes knows no other.
    classic: bool,
    /// Whether the gateway is told of the pod's annotations and of the namespace's ConfigMap.
    told: bool,
}

/// In `listen` mode the gateway's port for an application's.
pub(crate) const fn gated(port: u16) -> u16 {
    port + 10_000
}

impl Case {
    /// Where clients go to reach the application's `port` through the gateway.
    pub(crate) fn port(self, port: u16) -> u16 {
        match self.mode {
            Mode::Redirect => port,
            Mode::Listen => gated(port),
        }
    }
}

/// An nginx as an application; its configuration is a ConfigMap's at /config.
pub(crate) fn nginx_container() -> Value {
    let command = ["nginx", "-p", "/tmp", "-e", "stderr", "-c", "/config/nginx.conf"];
    json!({ "name": "app", "image": "debian", "command": command })
}

/// Its configuration, that has these servers; they listen on any `ADDRESS`.
pub(crate) fn nginx_conf(servers: &str, case: Case) -> String {
    const MAY_WRITE: &str =
        "client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
        uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;";
    let servers = servers.replace("ADDRESS", case.families.any());
    format!(
        "daemon off; worker_processes 1; pid /tmp/pid; error_log stderr;
        events {{ worker_connections 64; }}
        http {{ access_log off; default_type text/plain; {MAY_WRITE} {servers} }}"
    )
}

impl Spec {
    /// `application`: a container of Kubernetes without what every application has here: its user, and that
    /// it may write nowhere but in its volumes.
    pub(crate) fn new(case: Case, name: &'static str, ports: &[u16], application: Value) -> Self {
        let spec = Self {
            case,
            name,
            application,
            ports: ports.to_vec(),
            flags: Vec::new(),
            env: Vec::new(),
            volumes: Vec::new(),
            grace: 30,
            classic: false,
            told: false,
        };
        spec.set("drain-delay", "0s").emptied("tmp", "/tmp")
    }

    /// An application of this test binary ([`super::application`]).
    pub(crate) fn application(case: Case, script: &str, port: u16) -> Self {
        let what = format!("{script} {}:{port}", case.families.any());
        let env = json!([{ "name": super::application::WHAT, "value": what }]);
        let container = json!({ "name": "app", "image": "application", "env": env });
        Self::new(case, script_name(script), &[port], container)
    }

    /// A flag of the gateway.
    pub(crate) fn set(mut self, key: &str, value: impl ToString) -> Self {
        let flag = format!("--{key}=");
        self.flags.retain(|known| !known.starts_with(&flag));
        self.flags.push(format!("{flag}{}", value.to_string()));
        self
    }

    /// A setting of one port of the application.
    pub(crate) fn set_port(mut self, key: &str, port: u16, value: impl ToString) -> Self {
        let port = self.case.port(port);
        self.flags.push(format!("--{key}={port}={}", value.to_string()));
        self
    }

    /// A variable of the gateway's.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push(json!({ "name": name, "value": value.to_string() }));
        self
    }

    pub(crate) fn grace(mut self, seconds: u32) -> Self {
        self.grace = seconds;
        self
    }

    /// The sidecar is a container like the application.
    pub(crate) fn classic(mut self) -> Self {
        self.classic = true;
        self
    }

    /// The gateway follows the pod's annotations, and the ConfigMap `tidegate` of which this workload is called
    /// `shop`.
    pub(crate) fn told(mut self) -> Self {
        self.told = true;
        self.set("annotations", "/etc/tidegate/pod/annotations")
            .set("namespace-config", "/etc/tidegate/namespace")
            .set("workload", "shop")
    }

    /// An empty volume of the application's.
    pub(crate) fn emptied(self, name: &str, path: &str) -> Self {
        self.volume(name, path, json!({ "emptyDir": {} }))
    }

    /// The files of a ConfigMap in the application.
    pub(crate) fn config_map(self, name: &str, path: &str) -> Self {
        self.volume(name, path, json!({ "configMap": { "name": name } }))
    }

    fn volume(mut self, name: &str, path: &str, mut source: Value) -> Self {
        source["name"] = name.into();
        self.volumes.push(source);
        let mounts = &mut self.application["volumeMounts"];
        if mounts.is_null() {
            *mounts = json!([]);
        }
        let mounts = mounts.as_array_mut().expect("a list");
        mounts.push(json!({ "name": name, "mountPath": path }));
        self
    }

    /// More of the application's container: probes, hooks.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.application[key] = value;
        self
    }

    pub(crate) fn pod(self) -> Pod {
        let Self {
            case,
            name,
            mut application,
            ports,
            mut flags,
            env,
            mut volumes,
            grace,
            classic,
            told,
        } = self;
        let may_not = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
            "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
        });
        application["securityContext"] = merged(&may_not, json!({ "runAsUser": 1000 }));
        let list: Vec<_> = ports.iter().map(u16::to_string).collect();
        let mut init = Vec::new();
        match case.mode {
            Mode::Redirect => {
                init.push(capture(&may_not, &list.join(",")));
                flags.push("--capture=[::]:15801".into());
                flags.push(format!("--include-inbound-ports={}", list.join(",")));
            }
            Mode::Listen => {
                flags.extend(ports.iter().map(|port| {
                    format!("--listen=[::]:{}=[$(TIDEGATE_POD_IP)]:{port}", gated(*port))
                }))
            }
        }
        flags.push(format!("--grace={grace}s"));
        let mut sidecar = sidecar(case, &may_not, flags, env);
        if told {
            let item = json!({ "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } });
            volumes.push(json!({ "name": "about-the-pod", "downwardAPI": { "items": [item] } }));
            let config = json!({ "name": "tidegate", "optional": true });
            volumes.push(json!({ "name": "of-the-namespace", "configMap": config }));
            let mounts = sidecar["volumeMounts"].as_array_mut().expect("a list");
            for (name, path) in [("about-the-pod", "pod"), ("of-the-namespace", "namespace")] {
                let path = format!("/etc/tidegate/{path}");
                mounts.push(json!({ "name": name, "mountPath": path, "readOnly": true }));
            }
        }
        let mut containers = vec![application];
        if classic {
            sidecar.as_object_mut().expect("an object").remove("restartPolicy");
            containers.push(sidecar);
        } else {
            init.push(sidecar);
        }
        volumes.push(json!({ "name": "run", "emptyDir": { "medium": "Memory" } }));
        let pod = json!({
            "metadata": { "name": name, "namespace": "rig" },
            "spec": {
                "initContainers": init, "containers": containers, "volumes": volumes,
                "terminationGracePeriodSeconds": grace,
            },
        });
        serde_json::from_value(pod).expect("a pod of Kubernetes")
    }
}

/// The init container that writes the rules: root, with one capability.
fn capture(may_not: &Value, ports: &str) -> Value {
    let mut rights = merged(may_not, json!({ "runAsUser": 0, "runAsNonRoot": false }));
    rights["capabilities"]["add"] = json!(["NET_ADMIN"]);
    json!({
        "name": "tidegate-capture", "image": "tidegate",
        "args": ["capture", "install", format!("--include-inbound-ports={ports}")],
        "env": [field("TIDEGATE_POD_IP", "status.podIPs"), field("TIDEGATE_HOST_IP", "status.hostIPs")],
        "securityContext": rights,
    })
}

fn sidecar(case: Case, may_not: &Value, flags: Vec<String>, env: Vec<Value>) -> Value {
    let mut rights = merged(may_not, json!({ "runAsUser": 15800 }));
    if case.engine == Engine::Uring {
        let profile = json!({ "type": "Localhost", "localhostProfile": "io_uring.json" });
        rights["seccompProfile"] = profile;
    }
    let faces = ["--probe=[::]:15821", "--metrics=[::]:15822"].map(str::to_owned);
    let args = [vec!["run".to_owned()], faces.to_vec(), flags].concat();
    let names = [
        field("TIDEGATE_POD_IP", "status.podIP"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
    ];
    let env = [&names[..], &env].concat();
    let get = |path: &str| json!({ "path": path, "port": 15821 });
    json!({
        "name": "tidegate", "image": "tidegate", "restartPolicy": "Always", "args": args,
        "env": env, "securityContext": rights,
        "volumeMounts": [{ "name": "run", "mountPath": "/run" }],
        "startupProbe": { "httpGet": get("/startupz"), "periodSeconds": 1, "failureThreshold": 30 },
        "readinessProbe": { "httpGet": get("/readyz"), "periodSeconds": 1, "failureThreshold": 1 },
        "livenessProbe": { "httpGet": get("/livez"), "periodSeconds": 5 },
        "lifecycle": { "preStop": { "exec": { "command": ["/tidegate", "drain"] } } },
    })
}

fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

fn merged(base: &Value, more: Value) -> Value {
    let mut all = base.clone();
    let more = more.as_object().expect("an object").clone();
    all.as_object_mut().expect("an object").extend(more);
    all
}

fn script_name(script: &str) -> &'static str {
    match script {
        "http" => "web",
        "echo" => "echo",
        _ => "worker",
    }
}

/// Runs a scenario in one case; those that are for the soak alone do nothing otherwise.
pub(crate) fn play(case: Case, soak_only: bool, scenario: fn(Case)) {
    if soak_only && crate::support::scale(0, 1) == 0 {
        return;
    }
    if let Some(reason) = super::missing() {
        return skip(reason);
    }
    scenario(case);
}

/// Makes each named scenario a test in every case, of which half are for the soak alone. `beside:` as for
/// `engines!`.
macro_rules! cases {
    (beside: $($scenario:ident),+ $(,)?) => {
        $crate::pod::specs::cases!(@ run_beside, $($scenario),+);
    };
    ($($scenario:ident),+ $(,)?) => {
        $crate::pod::specs::cases!(@ run, $($scenario),+);
    };
    (@ $run:ident, $($scenario:ident),+) => {
        $crate::pod::specs::cases!(@@ $run epoll_v4_redirect Epoll V4 Redirect false, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run epoll_v6_listen Epoll V6 Listen false, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run uring_v4_listen Uring V4 Listen false, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run uring_v6_redirect Uring V6 Redirect false, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run epoll_v4_listen Epoll V4 Listen true, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run epoll_v6_redirect Epoll V6 Redirect true, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run uring_v4_redirect Uring V4 Redirect true, $($scenario),+);
        $crate::pod::specs::cases!(@@ $run uring_v6_listen Uring V6 Listen true, $($scenario),+);
    };
    (
        @@ $run:ident $name:ident $engine:ident $families:ident $mode:ident $soak:literal,
        $($scenario:ident),+
    ) => {
        mod $name {
            $(#[test] fn $scenario() {
                $crate::support::$run($crate::support::Engine::$engine, |engine| {
                    let case = $crate::pod::specs::Case {
                        engine,
                        families: $crate::pod::network::Families::$families,
                        mode: $crate::pod::specs::Mode::$mode,
                    };
                    $crate::pod::specs::play(case, $soak, super::$scenario);
                });
            })+
        }
    };
}
pub(crate) use cases;
