#!/usr/bin/env python3
"""What a rendered chart must be, and its configuration written out: check-chart.py RENDERED FOLDER."""
import pathlib
import sys

import yaml


def check_hooks(hooks, config, node, found):
    """Before an upgrade the very configuration is checked, as the node's own first container does it."""
    (checked,), (job,) = hooks["ConfigMap"], hooks["Job"]
    assert checked["data"] == config["data"], "another configuration is checked than the node's"
    notes = [one["metadata"]["annotations"] for one in (checked, job)]
    for each in notes:
        assert {"pre-install", "pre-upgrade"} == set(each["helm.sh/hook"].split(","))
    before, after = (int(each["helm.sh/hook-weight"]) for each in notes)
    assert before < after, "the job comes before its ConfigMap"
    template = job["spec"]["template"]
    (container,), (first,) = template["spec"]["containers"], node["spec"]["template"]["spec"]["initContainers"]
    for key in {*container, *first} - {"resources"}:
        assert container.get(key) == first.get(key), f"the job's {key} is not the node's"
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == checked["metadata"]["name"]
    for volume in node["spec"]["template"]["spec"]["volumes"]:
        assert volume["name"] == "config" or volumes[volume["name"]] == volume
    assert template["spec"]["securityContext"] == node["spec"]["template"]["spec"]["securityContext"]
    account = template["spec"].get("serviceAccountName")
    assert account not in {one["metadata"]["name"] for one in found.get("ServiceAccount", [])}, "its account is not there yet"
    for one in [node["spec"]["selector"]["matchLabels"], *(service["spec"]["selector"] for service in found["Service"])]:
        assert not one.items() <= template["metadata"]["labels"].items(), f"{one} chooses the job's pod"


def main(rendered, folder):
    documents = [one for one in yaml.safe_load_all(pathlib.Path(rendered).read_text()) if one]
    found, hooks = {}, {}
    for one in documents:
        hook = "helm.sh/hook" in one["metadata"].get("annotations", {})
        (hooks if hook else found).setdefault(one["kind"], []).append(one)
    (config,), (node,) = found["ConfigMap"], found["StatefulSet"]
    assert node["spec"]["podManagementPolicy"] == "Parallel", "a pod that does not start would be in the way of a rollback"
    spec = node["spec"]["template"]["spec"]
    labels = node["spec"]["template"]["metadata"]["labels"]
    selector = node["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items(), "the selector is not the pod's"
    services = {one["metadata"]["name"]: one["spec"] for one in found["Service"]}
    assert node["spec"]["serviceName"] in services, "the StatefulSet's service is missing"
    (container,) = spec["containers"]
    ports = {port["name"] for port in container.get("ports") or []}
    for name, service in services.items():
        assert service["selector"].items() <= labels.items(), f"{name} selects something else"
        for port in service.get("ports") or []:
            assert port["targetPort"] in ports, f"{name}: {port['targetPort']} is no port of the pod"
    volumes = {volume["name"] for volume in spec["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in node["spec"]["volumeClaimTemplates"]}
    for one in [container, *spec["initContainers"]]:
        mounted = {mount["name"] for mount in one["volumeMounts"]}
        assert mounted == volumes, f"{one['name']}: mounted {mounted}, volumes {volumes}"
        assert one["securityContext"]["readOnlyRootFilesystem"] and not one["securityContext"]["allowPrivilegeEscalation"]
        keys = {mount["subPath"] for mount in one["volumeMounts"] if "subPath" in mount}
        assert keys == set(config["data"]), f"mounted {keys}, in the map {set(config['data'])}"
    assert spec["securityContext"]["runAsNonRoot"]
    check_hooks(hooks, config, node, found)
    probe = container["readinessProbe"]
    if node["spec"]["replicas"] > 1:
        assert probe["periodSeconds"] * probe["failureThreshold"] <= 5, "clients are sent to one that stands by"
        assert "leads" in str(probe), "nobody is ready during a hold"
    else:
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 20, "not ready during a hold"
    accounts = {one["metadata"]["name"] for one in found.get("ServiceAccount", [])}
    assert not accounts or spec["serviceAccountName"] in accounts
    for monitor in found.get("ServiceMonitor", []):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [one for one in found["Service"] if wanted <= one["metadata"]["labels"].items()]
        assert len(chosen) == 1, f"the ServiceMonitor chooses {len(chosen)} services"
        label = monitor["spec"]["jobLabel"]
        job = chosen[0]["metadata"]["labels"][label]
        alerts = pathlib.Path(__file__).parent.parent / "config/prometheus/alerts.yml"
        assert f'up{{job="{job}"}}' in alerts.read_text(), f"no alert is about the job {job}"
        offered = {port["name"] for port in chosen[0]["spec"]["ports"]}
        assert {one["port"] for one in monitor["spec"]["endpoints"]} <= offered
        admin = yaml.safe_load(config["data"]["godwit.yaml"])["node"]["admin"]
        clients = admin.get("clients")
        (secret,) = (volume["secret"]["secretName"] for volume in spec["volumes"] if volume["name"] == "tls")
        for one in monitor["spec"]["endpoints"]:
            assert one["tlsConfig"]["serverName"] in admin["hosts"], "it is asked by another name than it has"
            ((kind, authority),) = one["tlsConfig"]["ca"].items()
            promised = (kind, authority["name"]) != ("secret", secret) or "client_ca" in admin["tls"]
            assert promised and authority["key"], "nobody has promised that ca.crt is there"
            certified = {"cert", "keySecret"} <= set(one["tlsConfig"])
            assert certified != ("authorization" in one), "a token or a certificate, one of them"
            # Each node has tokens of its own.
            assert certified or node["spec"]["replicas"] == 1, "a token for several nodes"
            assert clients or not certified, "no client's certificate counts"
    for key, text in config["data"].items():
        place = key if key == "godwit.yaml" else f"policies/{key.removeprefix('policy-')}"
        (pathlib.Path(folder) / place).write_text(text)


main(*sys.argv[1:])
