//! Pods of every shape, by lots; and what the API server would make of them.

use k8s_openapi::api::core::v1::LimitRangeItem;
use serde_json::{Map, Value, json};

/// The same lots for the same seed.
pub(crate) struct Lots(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quality {
    BestEffort,
    Burstable,
    Guaranteed,
}

impl Lots {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn of(&mut self, many: u64) -> usize {
        (self.next() % many) as usize
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.of(many) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.of(from.len() as u64)].clone()
    }
}

const LONG: &str = "a-name-of-sixty-three-characters-is-the-longest-kubernetes-has0";

/// Some pod that people might write.
pub(crate) fn pod(lots: &mut Lots) -> Value {
    let mut pod = skeleton(lots);
    let spec = &mut pod["spec"];
    if lots.one_in(25) {
        spec["hostNetwork"] = json!(true);
    }
    if lots.one_in(30) {
        spec["os"] = json!({"name": "windows"});
    }
    if lots.one_in(25) {
        spec["securityContext"] = json!({"runAsUser": lots.pick(&[1000, 15800])});
    }
    if lots.one_in(3) {
        spec["automountServiceAccountToken"] = json!(false);
    }
    if lots.one_in(20) {
        let proxy = lots.pick(&["istio-proxy", "linkerd-proxy"]);
        let list = lots.pick(&["containers", "initContainers"]);
        let mut proxy = json!({"name": proxy, "image": "mesh", "ports": [{"name": "http-envoy-prom", "containerPort": 15090}]});
        if list == "initContainers" {
            proxy["restartPolicy"] = json!("Always");
        }
        push(&mut spec[list], proxy);
    }
    if lots.one_in(12) {
        let context = lots.pick(&[
            json!({"privileged": true}),
            json!({"capabilities": {"add": ["NET_ADMIN"]}}),
            json!({"runAsUser": 0}),
        ]);
        spec["containers"][0]["securityContext"] = context;
    }
    if lots.one_in(25) {
        let taken = lots.pick(&[15801, 15821]);
        push(&mut spec["containers"][0]["ports"], json!({"containerPort": taken}));
    }
    if lots.one_in(30) {
        pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("0123");
    }
    if lots.one_in(6) {
        let (kind, name) = lots.pick(&[
            ("Job", "backup-28654321"),
            ("ReplicaSet", "shop-7d5b"),
            ("StatefulSet", LONG),
        ]);
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "1", "controller": true}]);
    }
    pod
}

/// A pod that `restricted` admits.
pub(crate) fn restricted(lots: &mut Lots) -> Value {
    let mut pod = skeleton(lots);
    let rights = json!({
        "runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    for list in ["containers", "initContainers"] {
        for container in
            pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
        {
            container["securityContext"] = rights.clone();
            for port in
                container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
            {
                port.as_object_mut().expect("an object").remove("hostPort");
            }
        }
    }
    if pod["metadata"].get("annotations").is_none() {
        pod["metadata"]["annotations"] = json!({});
    }
    push(
        &mut pod["spec"]["containers"][0]["ports"],
        json!({"name": "http-last", "containerPort": 7999}),
    );
    pod
}

/// What makes a pod impossible to inject, if anything does; a word of the reason.
pub(crate) fn hopeless(pod: &Value) -> Option<&'static str> {
    let has_port = |containers: &Value| {
        let ports = containers
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["ports"].as_array())
            .flatten();
        let mut ours =
            ports.filter(|p| [15801, 15821].map(Value::from).contains(&p["containerPort"]));
        ours.next().is_some()
    };
    let user = |container: &Value| container.pointer("/securityContext/runAsUser").cloned();
    let spec = &pod["spec"];
    let of_pod = spec.pointer("/securityContext/runAsUser") == Some(&json!(15800));
    let lists = ["containers", "initContainers"]
        .map(|list| spec[list].as_array().cloned().unwrap_or_default());
    let inherits = lists.iter().flatten().any(|container| user(container).is_none());
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        Some("static pod")
    } else if spec["hostNetwork"] == true {
        Some("hostNetwork")
    } else if spec["os"]["name"] == "windows" {
        Some("Windows")
    } else if of_pod && inherits {
        Some("15800")
    } else if has_port(&spec["containers"]) {
        Some("one of the gateway's")
    } else {
        None
    }
}

fn skeleton(lots: &mut Lots) -> Value {
    let size = lots.of(5);
    let containers: Vec<_> = (0..=lots.of(3)).map(|at| container(lots, at, size)).collect();
    let mut spec = json!({"containers": containers});
    for at in 0..lots.of(3) {
        let mut init = json!({"name": format!("init-{at}"), "image": "busybox"});
        if lots.one_in(3) {
            init["restartPolicy"] = json!("Always");
            init["ports"] = json!([{"name": "http", "containerPort": 4000 + at}]);
            init["startupProbe"] = json!({"tcpSocket": {"port": 4000 + at}});
        }
        sized(lots, &mut init, size);
        push(&mut spec["initContainers"], init);
    }
    if lots.one_in(3) {
        spec["volumes"] = lots.pick(&[json!([]), json!([{"name": "tmp", "emptyDir": {}}])]);
    }
    if lots.one_in(2) {
        spec["terminationGracePeriodSeconds"] = json!(lots.pick(&[0, 5, 30, 600]));
    }
    if lots.one_in(4) {
        spec["restartPolicy"] = json!(lots.pick(&["Always", "Never", "OnFailure"]));
    }
    let mut metadata = json!({"name": lots.pick(&["shop", LONG])});
    if lots.one_in(2) {
        metadata["labels"] = json!({"app": LONG});
    }
    if lots.one_in(2) {
        metadata["annotations"] = annotations(lots);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

fn container(lots: &mut Lots, at: usize, size: usize) -> Value {
    let name = lots.pick(&[format!("app-{at}"), format!("{at}{}", &LONG[1..])]);
    let mut container = json!({"name": name, "image": "shop"});
    let names = ["http", "http-api", "grpc", "https", "redis", "metrics", "a-name-15-chars"];
    for n in 0..lots.of(4) {
        let mut port = json!({"containerPort": 8000 + 10 * at + n});
        let name = names[(at * 4 + n + lots.of(2)) % names.len()];
        let all = container["ports"].as_array();
        if !lots.one_in(3) && !all.is_some_and(|all| all.iter().any(|port| port["name"] == name)) {
            port["name"] = json!(name);
        }
        if lots.one_in(5) {
            port["protocol"] = json!(lots.pick(&["TCP", "UDP", "SCTP"]));
        }
        if lots.one_in(15) {
            port["hostPort"] = json!(8000 + 10 * at + n);
        }
        push(&mut container["ports"], port);
    }
    if lots.one_in(6) && container["ports"].is_array() {
        // The same port once more, by another name.
        let port = container["ports"][0]["containerPort"].clone();
        push(&mut container["ports"], json!({"name": "http-too", "containerPort": port}));
    }
    if container["ports"].is_null() {
        container.as_object_mut().expect("an object").remove("ports");
    }
    let port = 8000 + 10 * at;
    for member in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if lots.one_in(2) {
            container[member] = lots.pick(&[
                json!({"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 3}),
                json!({"httpGet": {"port": "http", "scheme": "HTTPS", "httpHeaders": [{"name": "a", "value": "$(b)"}]}}),
                json!({"tcpSocket": {"port": port}, "timeoutSeconds": 7}),
                json!({"grpc": {"port": port, "service": "shop"}}),
                json!({"exec": {"command": ["true"]}}),
            ]);
        }
    }
    if lots.one_in(2) {
        container["lifecycle"] = lots.pick(&[
            json!({}),
            json!({"postStart": {"httpGet": {"path": "/warm", "port": "http"}}}),
            json!({"preStop": {"exec": {"command": ["sleep", "10"]}}}),
            json!({"preStop": {"sleep": {"seconds": 3}}, "postStart": {"exec": {"command": ["true"]}}}),
            json!({"preStop": {"httpGet": {"path": "/stop", "port": "http"}}}),
        ]);
    }
    sized(lots, &mut container, size);
    container
}

/// `size`: what kind of pod it is to be.
fn sized(lots: &mut Lots, container: &mut Value, size: usize) {
    let limits =
        json!({"cpu": lots.pick(&["100m", "1", "2"]), "memory": lots.pick(&["64Mi", "1Gi"])});
    match size {
        0 => {}
        1 => container["resources"] = json!({"limits": limits, "requests": limits}),
        2 => container["resources"] = json!({"limits": limits}),
        3 => {
            container["resources"] =
                json!({"limits": limits, "requests": {"cpu": "50m", "memory": "32Mi"}})
        }
        _ => {
            if lots.one_in(2) {
                container["resources"] = json!({"requests": {"cpu": "50m"}});
            }
        }
    }
}

fn annotations(lots: &mut Lots) -> Value {
    let mut all = Map::new();
    for (key, value) in [
        ("prometheus.io/scrape", "true"),
        ("tidegate.dev/limit", "8"),
        ("tidegate.dev/limit.8000", "3"),
        ("tidegate.dev/include-inbound-ports", "8000,http,redis"),
        ("tidegate.dev/include-inbound-ports", "all"),
        ("tidegate.dev/exclude-inbound-ports", "metrics"),
        ("tidegate.dev/capture", "listen"),
        ("tidegate.dev/sidecar-memory-limit", "256Mi"),
        ("tidegate.dev/sidecar-cpu-request", "500m"),
        ("tidegate.dev/queue-length", "many"),
        ("tidegate.dev/image", "evil"),
        ("kubectl.kubernetes.io/default-container", "app-0"),
    ] {
        if lots.one_in(4) {
            all.insert(key.into(), value.into());
        }
    }
    all.into()
}

fn push(list: &mut Value, element: Value) {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().expect("a list").push(element);
}

/// What the API server and its plugins add to a pod between two looks of a webhook.
pub(crate) fn defaulted(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let fill = |value: &mut Value, members: &[(&str, Value)]| {
        for (member, default) in members {
            if value.get(*member).is_none() {
                value[*member] = default.clone();
            }
        }
    };
    for list in ["containers", "initContainers"] {
        for container in
            pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
        {
            fill(
                container,
                &[
                    ("terminationMessagePath", json!("/dev/termination-log")),
                    ("terminationMessagePolicy", json!("File")),
                    ("imagePullPolicy", json!("Always")),
                    ("resources", json!({})),
                ],
            );
            push(
                &mut container["volumeMounts"],
                json!({
                    "name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true,
                }),
            );
            for port in
                container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
            {
                fill(port, &[("protocol", json!("TCP"))]);
            }
            for member in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if let Some(probe) = container.get_mut(member) {
                    fill(
                        probe,
                        &[
                            ("timeoutSeconds", json!(1)),
                            ("periodSeconds", json!(10)),
                            ("successThreshold", json!(1)),
                            ("failureThreshold", json!(3)),
                        ],
                    );
                }
            }
        }
    }
    fill(
        &mut pod["spec"],
        &[("terminationGracePeriodSeconds", json!(30)), ("dnsPolicy", json!("ClusterFirst"))],
    );
    push(
        &mut pod["spec"]["volumes"],
        json!({"name": "kube-api-access-x", "projected": {"defaultMode": 420}}),
    );
    pod
}

/// What the API server would say to the names of containers, volumes and ports.
pub(crate) fn misnamed(pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut once = |what: &str, of: Vec<&Value>| {
        let names: Vec<_> = of.iter().filter_map(|named| named["name"].as_str()).collect();
        let twice = names.iter().enumerate().filter(|(at, name)| names[..*at].contains(name));
        wrong.extend(twice.map(|(_, name)| format!("{what} {name} is there twice")));
    };
    once("container", containers(pod));
    once("volume", pod["spec"]["volumes"].as_array().into_iter().flatten().collect());
    for container in containers(pod) {
        let ports: Vec<_> = container["ports"].as_array().into_iter().flatten().collect();
        once(&format!("in {}, port", container["name"]), ports.clone());
    }
    let ports = containers(pod).into_iter().filter_map(|c| c["ports"].as_array()).flatten();
    let long = |name: &&str| name.len() > 15;
    wrong.extend(
        ports
            .filter_map(|port| port["name"].as_str())
            .filter(long)
            .map(|name| format!("port {name} is too long")),
    );
    wrong
}

/// Which container and which port a Service finds that says `targetPort: name`: Kubernetes' FindPort, from 1.33 on.
pub(crate) fn find_port(pod: &Value, name: &str) -> Option<(String, u64)> {
    let list = |list: &str| pod["spec"][list].as_array().into_iter().flatten();
    let kept_running = list("initContainers").filter(|c| c["restartPolicy"] == "Always");
    list("containers").chain(kept_running).find_map(|container| {
        let mut ports = container["ports"].as_array().into_iter().flatten();
        let tcp = |port: &Value| port.get("protocol").is_none_or(|protocol| protocol == "TCP");
        let found = ports.find(|port| port["name"] == name && tcp(port))?;
        let container = container["name"].as_str().expect("a name");
        Some((container.to_owned(), found["containerPort"].as_u64().expect("a number")))
    })
}

/// Every name of a port in the pod.
pub(crate) fn port_names(pod: &Value) -> std::collections::BTreeSet<String> {
    let ports = containers(pod).into_iter().filter_map(|c| c["ports"].as_array()).flatten();
    ports.filter_map(|port| port["name"].as_str().map(str::to_owned)).collect()
}

fn containers(pod: &Value) -> Vec<&Value> {
    let list = |name: &str| pod["spec"][name].as_array().into_iter().flatten();
    list("containers").chain(list("initContainers")).collect()
}

/// In thousandths. Enough of quantities for what is written here and what comes out.
fn amount(container: &Value, of: &str, name: &str) -> Option<f64> {
    let resources = container.get("resources")?;
    let own = resources.pointer(&format!("/{of}/{name}"));
    let text = own
        .or_else(|| resources.pointer(&format!("/limits/{name}")).filter(|_| of == "requests"))?
        .as_str()?;
    let units = [("Gi", 1_073_741_824e3), ("Mi", 1_048_576e3), ("m", 1.0), ("", 1e3)];
    let (unit, factor) =
        units.into_iter().find(|(unit, _)| text.ends_with(unit)).expect("the last fits all");
    Some(text[..text.len() - unit.len()].parse::<f64>().expect("a number") * factor)
}

/// As the kubelet computes it.
pub(crate) fn quality(pod: &Value) -> Quality {
    let all = containers(pod);
    let said = |c: &&&Value| {
        ["cpu", "memory"]
            .iter()
            .any(|n| ["limits", "requests"].iter().any(|of| amount(c, of, n).is_some()))
    };
    let guaranteed = |c: &&Value| {
        ["cpu", "memory"].iter().all(|n| {
            amount(c, "limits", n).is_some() && amount(c, "limits", n) == amount(c, "requests", n)
        })
    };
    if all.iter().filter(said).count() == 0 {
        Quality::BestEffort
    } else if all.iter().all(guaranteed) {
        Quality::Guaranteed
    } else {
        Quality::Burstable
    }
}

pub(crate) fn everybody_says(pod: &Value, of: &str, name: &str) -> bool {
    containers(pod).iter().all(|container| amount(container, of, name).is_some())
}

/// What the LimitRanger would say, after defaults.
pub(crate) fn within(pod: &Value, ranges: &[LimitRangeItem]) -> bool {
    ranges.iter().all(|range| {
        let bound = |all: &Option<
            std::collections::BTreeMap<
                String,
                k8s_openapi::apimachinery::pkg::api::resource::Quantity,
            >,
        >,
                     name: &str| {
            let text = all.as_ref()?.get(name)?.0.clone();
            amount(&json!({"resources": {"limits": {name: text}}}), "limits", name)
        };
        ["cpu", "memory"].iter().all(|name| {
            let [max, min, ratio] = [&range.max, &range.min, &range.max_limit_request_ratio]
                .map(|all| bound(all, name));
            if range.type_ == "Pod" {
                let running = containers(pod).into_iter().filter(|c| {
                    c["restartPolicy"] == "Always"
                        || pod["spec"]["containers"].as_array().is_some_and(|all| all.contains(c))
                });
                let sum: f64 = running
                    .map(|c| {
                        amount(c, "limits", name).or(amount(c, "requests", name)).unwrap_or(0.0)
                    })
                    .sum();
                return max.is_none_or(|max| sum <= max);
            }
            containers(pod).into_iter().all(|c| {
                let (limit, request) = (amount(c, "limits", name), amount(c, "requests", name));
                max.is_none_or(|max| {
                    limit.is_some_and(|l| l <= max) && request.is_none_or(|r| r <= max)
                }) && min.is_none_or(|min| request.is_some_and(|r| r >= min))
                    && ratio.is_none_or(|ratio| {
                        limit.zip(request).is_some_and(|(l, r)| l * 1e3 <= ratio * r)
                    })
            })
        })
    })
}
