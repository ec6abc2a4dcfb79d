"""An engine that only Ray reaches: the arm is an actor on its node. A real Ray, a process in the engine's place.

All in one other process: a driver of its own, which a drill is, too.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

DRIVER = r"""
import json, os, pathlib, subprocess, sys, time
import ray
from ops.drill.choosing import DrillRefused
from ops.drill.elsewhere import RayArm, kill_router
from ops.drill.strikes import Hold
from replicas.router_handle import NAMESPACE, actor_name

ENGINE = '''
import socket, sys, time
with socket.create_server((sys.argv[1], 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    time.sleep(300)
'''
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
node = ray.util.get_node_ip_address()

def engine():
    made = subprocess.Popen([sys.executable, "-S", "-c", ENGINE, node], stdout=subprocess.PIPE, text=True)
    return made, {"id": "abc", "address": f"{node}:{made.stdout.readline().strip()}", "engine": {"pid": made.pid}}

def state(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)

def words(do):
    try:
        do()
    except DrillRefused as refused:
        return str(refused)

class Router:
    def pid(self):
        return os.getpid()

def pid_of(router):
    try:
        return ray.get(router.pid.remote())
    except ray.exceptions.RayActorError:
        return None

found = {}
process, replica = engine()
try:
    arm = RayArm(replica)
    arm.hold(Hold())
    until(lambda: state(process.pid) == "T")
    found["holds"] = arm.holds()
    arm.let_go()
    found["after"] = state(process.pid)
    arm.hold(Hold())
    until(lambda: state(process.pid) == "T")
    ray.kill(arm._actor)  # as Ray does when the driver is gone
    until(lambda: state(process.pid) != "T")
    arm = RayArm(replica)
    arm.kill()
    found["killed"] = process.wait(20)
    found["not there"] = words(lambda: RayArm(replica))
    found["no node"] = words(lambda: RayArm(replica | {"address": "192.0.2.1:5"}))
    found["no router"] = words(lambda: kill_router("nobody"))
    router = ray.remote(num_cpus=0, max_restarts=-1)(Router)
    router = router.options(name=actor_name("m"), namespace=NAMESPACE, lifetime="detached").remote()
    first = ray.get(router.pid.remote())
    kill_router("m")
    until(lambda: pid_of(router) not in (None, first))
finally:
    process.kill()
print(json.dumps(found))
ray.shutdown()
"""


@pytest.mark.timeout(120)
def test_an_arm_on_another_node_is_an_actor_there():
    done = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["holds"] and found["after"] != "T" and found["killed"] == -9
    assert "was found on" in found["not there"]
    assert "192.0.2.1, which is no node" in found["no node"]
    assert "has no router of nobody" in found["no router"]
