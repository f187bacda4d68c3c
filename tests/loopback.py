"""Nodes of this machine for Ray's own autoscaler, whose monitor on the head imports this file.

A node is what `clusters.worker` starts, and is known to the autoscaler by an environment variable
of its raylet. Ray's own fake provider keeps all nodes on one address and in one folder.
"""

import threading
from pathlib import Path

import clusters
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)


class Loopback(NodeProvider):
    """Starts and ends nodes; the head, which started us, is one of them."""

    def __init__(self, provider_config: dict, cluster_name: str):
        super().__init__(provider_config, cluster_name)
        self._lock, self._count, self._processes = threading.Lock(), 0, {}
        self._tags = {"head": {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: "head"}}

    def non_terminated_nodes(self, tag_filters: dict) -> list[str]:
        with self._lock:
            return [id for id, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict:
        return self._tags[node_id]

    def create_node_with_resources_and_labels(
        self, node_config: dict, tags: dict, count: int, resources: dict, labels: dict
    ) -> None:
        for _ in range(count):
            with self._lock:
                self._count += 1
                id = f"node-{self._count}"
                known = {"RAY_CLOUD_INSTANCE_ID": id}
                known["RAY_NODE_TYPE_NAME"] = tags[TAG_RAY_USER_NODE_TYPE]
                told = self.provider_config["env"] | known
                folder = Path(self.provider_config["folder"])
                self._processes[id] = clusters.worker(folder, self._count, told)
                self._tags[id] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            process = self._processes.pop(node_id)
            clusters.switch_off(process.pid)
            process.wait()
            del self._tags[node_id]
