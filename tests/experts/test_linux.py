"""What Linux does for us: children that end with their parent, threads with names, no shared memory left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from experts.linux import name_thread, remove_unmapped_shared_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")


@pytest.mark.parametrize(("parent_pid", "code"), [("os.getppid()", 0), ("os.getppid() + 1", 1)])
def test_a_child_whose_parent_is_gone_already_ends_itself(parent_pid: str, code: int) -> None:
    script = f"import os; from experts.linux import die_with_parent; die_with_parent({parent_pid})"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == code


def test_a_thread_is_named_for_top() -> None:
    seen: list[str] = []

    def run() -> None:
        name_thread("engine")
        seen.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == ["engine"]


@pytest.fixture
def segment() -> Iterator[shared_memory.SharedMemory]:
    made = shared_memory.SharedMemory(f"vllm_dist_test_{os.getpid()}", create=True, size=4096)
    yield made
    made.close()
    Path(f"/dev/shm/{made.name}").unlink(missing_ok=True)


def test_only_segments_that_nobody_maps_are_removed(segment: shared_memory.SharedMemory) -> None:
    path = Path(f"/dev/shm/{segment.name}")
    remove_unmapped_shared_memory(older_than_s=0)
    assert path.exists()  # this process maps it
    segment.close()
    remove_unmapped_shared_memory(older_than_s=3600)
    assert path.exists()  # it might be just being made
    remove_unmapped_shared_memory(older_than_s=0)
    assert not path.exists()


def test_a_session_of_our_own_lets_others_have_the_cpus() -> None:
    script = "from experts.linux import yield_cpus; yield_cpus(3); import os; print(os.nice(0)); "
    script += "print(open('/proc/self/autogroup').read().split()[-1] if os.path.exists('/proc/self/autogroup') else 3)"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, start_new_session=True)
    assert ran.stdout.split() == [b"%d" % (os.nice(0) + 3), b"3"]
