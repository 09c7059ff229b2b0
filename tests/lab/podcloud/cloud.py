"""What the pod cloud rents: pods, their prices, their states, and the account's few other things."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.lab.podcloud import machines
from tests.lab.podcloud.faults import KINDS, NO_CAPACITY, Fault, Response
from tests.lab.podcloud.graphql import Field, GraphQLError, parse, select


@dataclass(frozen=True)
class Gpu:
    """An offer; dollars are per GPU and hour."""

    name: str
    memory_gib: int
    price: float
    spot_price: float


GPUS = {"NVIDIA L40": Gpu("L40", 48, 1.14, 0.69), "NVIDIA L40S": Gpu("L40S", 48, 1.03, 0.50)}
RENT = ("podFindAndDeployOnDemand", "podRentInterruptable")
NOTED = ("name", "countryCode", "dataCenterId", "gpuTypeId", "gpuCount", "bidPerGpu", "podId", "imageName")
GONE_S = 1.0
"""Seconds that a pod may be without a running container before it counts as lost: podman is not atomic."""


@dataclass
class Cloud:
    """One account. All state of a pod is in its container's label, so a new server finds the pods of the one before."""

    port: int
    options: Sequence[str] = ()
    """what is added to ``podman run``"""

    reachable: set[int] = field(default_factory=set)
    """ports of this machine's loopback that pods reach at their own loopback"""

    faults: list[Fault] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    logins: dict[str, dict[str, Any]] = field(default_factory=dict)
    public_key: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)
    doors: dict[str, dict[int, machines.Door]] = field(default_factory=dict)

    def answer(self, document: str) -> Response:
        """The response to a request: its ``data``, or the fault that it meets."""
        operations = parse(document)
        entry: dict[str, Any] = {"time": round(time.time(), 3), "op": "+".join(operations)}
        for each in operations.values():
            entry |= {key: value for key, value in each.arguments.get("input", {}).items() if key in NOTED}
        with self.lock:
            fault = self._fault(operations)
            entry["fault"] = fault
            self.log.append(entry)
        if fault:
            return KINDS[fault]
        try:
            found = {name: select(self._resolve(name, each.arguments), each.below) for name, each in operations.items()}
            return 200, {"data": found}
        except GraphQLError as error:
            entry["error"] = str(error)
            raise

    def _fault(self, operations: dict[str, Field]) -> str | None:
        for fault in self.faults:
            if any(fault.hits(name, each.arguments.get("input", {})) for name, each in operations.items()):
                return fault.kind
        return None

    def _resolve(self, name: str, arguments: dict[str, Any]) -> Any:
        given = arguments.get("input", {})
        if name in RENT:
            return self.rent(given, spot=name == "podRentInterruptable")
        if name == "podTerminate":
            return self.terminate(given["podId"])
        if name == "myself":
            templates = list(self.templates.values())
            return {
                "id": "user_lab",
                "pubKey": self.public_key,
                "networkVolumes": [],
                "podTemplates": templates,
                "pods": self.pods(),
            }
        if name == "gpuTypes":
            return [_offer(each) for each in GPUS if given.get("id") in (None, each)]
        if name == "updateUserSettings":
            self.public_key = given["pubKey"]
            return {"id": "user_lab", "pubKey": self.public_key}
        return self._account(name, arguments, given)

    def _account(self, name: str, arguments: dict[str, Any], given: dict[str, Any]) -> Any:
        """Logins to registries, and the templates that name them; a password is not kept."""
        if name == "saveRegistryAuth":
            login = {"id": f"auth-{secrets.token_hex(4)}", "name": given["name"]}
            return self.logins.setdefault(login["id"], login)
        if name == "deleteRegistryAuth":
            return self.logins.pop(arguments["registryAuthId"], None) is not None
        if name == "saveTemplate":
            template = {"volumeMountPath": None, **given, "id": f"template-{secrets.token_hex(4)}"}
            return self.templates.setdefault(template["id"], template)
        if name == "deleteTemplate":
            self.templates = {k: t for k, t in self.templates.items() if t["name"] != arguments["templateName"]}
            return None
        raise GraphQLError(f'Cannot query field "{name}".')

    def rent(self, given: dict[str, Any], *, spot: bool) -> dict[str, Any]:
        """Start a pod as asked for."""
        gpu = GPUS.get(given.get("gpuTypeId", ""))
        if gpu is None:
            raise GraphQLError(NO_CAPACITY)
        if spot and float(given["bidPerGpu"]) < gpu.spot_price:
            raise GraphQLError("The bid is below the lowest spot price.")
        pod = self._describe(given, gpu, spot)
        env = {each["key"]: each["value"] for each in given.get("env") or []}
        env |= {"RUNPOD_POD_ID": pod["id"], "RUNPOD_API_BASE_URL": f"http://127.0.0.1:{self.port}"}
        pod["env"] = [f"{key}={value}" for key, value in env.items()]
        options = [*(f"--env={key}={value}" for key, value in env.items()), *self.options]
        machines.rent(pod, options, shlex.split(pod["dockerArgs"]))
        return next(each for each in self.pods() if each["id"] == pod["id"])

    def _describe(self, given: dict[str, Any], gpu: Gpu, spot: bool) -> dict[str, Any]:
        template = self.templates.get(given.get("templateId") or "", {})
        count = int(given.get("gpuCount") or 1)
        pod_id = secrets.token_hex(7)
        return {
            "id": pod_id,
            "name": given["name"],
            "imageName": template.get("imageName") or given["imageName"],
            "containerRegistryAuthId": template.get("containerRegistryAuthId"),
            "gpuCount": count,
            "costPerHr": round((gpu.spot_price if spot else gpu.price) * count, 4),
            "podType": "INTERRUPTABLE" if spot else "RESERVED",
            "ports": given.get("ports") or "",
            "dockerArgs": given.get("dockerArgs") or "",
            "containerDiskInGb": given.get("containerDiskInGb") or 10,
            "volumeInGb": given.get("volumeInGb") or 0,
            "volumeMountPath": given.get("volumeMountPath"),
            "machineId": f"machine-{pod_id[:6]}",
            "machine": {"gpuDisplayName": gpu.name, "podHostId": f"{pod_id}-host"},
            "vcpuCount": given.get("minVcpuCount") or 2,
            "memoryInGb": given.get("minMemoryInGb") or gpu.memory_gib * count,
            "created": time.time(),
        }

    def pods(self) -> list[dict[str, Any]]:
        """Every pod of the account; one whose container has died is one that the cloud has taken back."""
        with self.lock:
            found = []
            for machine in machines.everyone():
                pod_id = machine.pod["id"]
                if machine.running:
                    self._open_doors(machine)
                    found.append(self._show(machine.pod))
                elif time.time() - machine.pod["created"] > GONE_S:
                    self._forget(pod_id)
            return found

    def _show(self, pod: dict[str, Any]) -> dict[str, Any]:
        doors = self.doors.get(pod["id"], {})
        ports = [
            {"ip": "127.0.0.1", "isIpPublic": True, "privatePort": inner, "publicPort": door.port, "type": "tcp"}
            for inner, door in doors.items()
            if inner > 0
        ]
        ports += [
            {"ip": "127.0.0.1", "isIpPublic": False, "privatePort": int(port), "publicPort": int(port), "type": "http"}
            for port, _, kind in (each.partition("/") for each in pod["ports"].split(","))
            if kind == "http"
        ]
        return pod | {
            "desiredStatus": "RUNNING",
            "uptimeSeconds": int(time.time() - pod["created"]),
            "lastStatusChange": "Rented by User",
            "dockerId": pod["id"],
            "port": None,
            "runtime": {"ports": ports},
        }

    def _open_doors(self, machine: machines.Machine) -> None:
        """Into the pod for its tcp ports; out of it, under negative keys, for the API and what tests added."""
        doors = self.doors.setdefault(machine.pod["id"], {})
        for port, _, kind in (each.partition("/") for each in machine.pod["ports"].split(",")):
            if kind == "tcp" and int(port) not in doors:
                doors[int(port)] = machines.door_into(machine.process, int(port))
        for port in {self.port, *self.reachable}:
            if -port not in doors:
                with contextlib.suppress(OSError):  # the pod has just ended
                    doors[-port] = machines.door_out(machine.process, port)

    def _forget(self, pod_id: str) -> None:
        machines.end(pod_id)
        for door in self.doors.pop(pod_id, {}).values():
            threading.Thread(target=door.close, daemon=True).start()

    def terminate(self, pod_id: str) -> None:
        """What its renter asks for."""
        with self.lock:
            if pod_id not in {pod["id"] for pod in self.pods()}:
                raise GraphQLError("pod not found to terminate")
            self._forget(pod_id)

    def preempt(self, pod_id: str) -> list[str]:
        """Take a pod back, as the cloud does with spot pods; returns the ids of those that existed."""
        with self.lock:
            hit = [pod["id"] for pod in self.pods() if pod["id"] == pod_id]
            for each in hit:
                self._forget(each)
        return hit


def _offer(gpu_id: str) -> dict[str, Any]:
    gpu = GPUS[gpu_id]
    return {
        "id": gpu_id,
        "displayName": gpu.name,
        "memoryInGb": gpu.memory_gib,
        "maxGpuCount": 8,
        "manufacturer": "Nvidia",
        "cudaCores": 0,
        "secureCloud": True,
        "communityCloud": False,
        "securePrice": gpu.price,
        "communityPrice": None,
        "oneMonthPrice": None,
        "threeMonthPrice": None,
        "oneWeekPrice": None,
        "communitySpotPrice": None,
        "secureSpotPrice": gpu.spot_price,
        "lowestPrice": {"minimumBidPrice": gpu.spot_price, "uninterruptablePrice": gpu.price},
    }
