#!/usr/bin/env python3
"""What the chart takes and refuses of a release that is there, by what it looks up in a cluster that is played here: check-steps.py CHART VALUES."""
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading

import yaml

NAME = "x-godwit"


def resources(group, **kinds):
    listed = [{"name": name, "kind": kind, "namespaced": True, "singularName": "", "verbs": ["get"]} for name, kind in kinds.items()]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": listed}


def cluster(lease, replicas, restarted):
    node = {"name": "edge-1", **({"lease": lease} if lease else {})}
    meta = {"name": NAME, "namespace": "moves"}
    at = "/namespaces/moves"
    kinds = {
        "v1": {"configmaps": "ConfigMap", "services": "Service", "serviceaccounts": "ServiceAccount"},
        "apps/v1": {"statefulsets": "StatefulSet"},
        "batch/v1": {"jobs": "Job"},
        "monitoring.coreos.com/v1": {"servicemonitors": "ServiceMonitor"},
    }
    versions = [{"groupVersion": group, "version": "v1"} for group in kinds if "/" in group]
    groups = [{"name": one["groupVersion"].split("/")[0], "versions": [one], "preferredVersion": one} for one in versions]
    return {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        **{("/apis/" if "/" in group else "/api/") + group: resources(group, **named) for group, named in kinds.items()},
        f"/api/v1{at}/configmaps/{NAME}": {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"godwit.yaml": yaml.safe_dump({"node": node})},
        },
        f"/apis/apps/v1{at}/statefulsets/{NAME}": {
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {**meta, "generation": 2}, "spec": {"replicas": replicas},
            "status": {"observedGeneration": 2, "replicas": replicas, "currentRevision": "b" if restarted else "a", "updateRevision": "b"},
        },
    }


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.server.cluster.get(self.path.split("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main(chart, values):
    # Helm keeps there what a cluster knows.
    home = tempfile.TemporaryDirectory()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    helm = ["helm", "template", "x", chart, "--values", values, "--namespace", "moves", "--is-upgrade", "--dry-run=server", "--disable-openapi-validation",
            "--kube-apiserver", f"http://127.0.0.1:{server.server_address[1]}"]
    # What is there: its lease, its replicas, whether its pod has been restarted; the upgrade: its lease, its replicas; and what it is told.
    for there, to, refusal in [
        ((None, 1, True), ("10s", 2), "has no lease"),
        ((None, 1, True), ("10s", 1), None),
        (("10s", 1, False), ("10s", 2), "is not restarted yet"),
        (("10s", 1, True), ("10s", 2), None),
        (("10s", 2, False), ("10s", 2), None),
        (("10s", 2, True), ("10s", 1), None),
        (("10s", 2, True), (None, 1), "would be lost"),
        (("10s", 1, False), (None, 1), "is not restarted yet"),
        (("10s", 1, True), (None, 1), None),
    ]:
        server.cluster = cluster(*there)
        lease, replicas = to
        wanted = ["--set", f"replicas={replicas},config.node.lease={lease or 'null'}"]
        done = subprocess.run([*helm, *wanted], capture_output=True, text=True, check=False, env={**os.environ, "HOME": home.name})
        refused = done.returncode != 0
        assert refused == (refusal is not None) and (refusal or "") in done.stderr, f"{there} to {to}: {done.stderr or 'taken'}"


main(*sys.argv[1:])
