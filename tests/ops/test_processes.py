import os
import signal
import subprocess
import sys

import pytest

from ops.processes import MARKER, Process, identify, is_alive, keep_off, members, send, sweep

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def marked(session, command=SLEEP, **options):
    return subprocess.Popen(command, env=os.environ | {MARKER: session}, **options)


def test_sweep_stops_marked_processes_and_their_descendants_and_nothing_else():
    stranger = subprocess.Popen(SLEEP)
    other = marked("other")
    child = marked("mine")
    # Its own child has lost the mark, as a process that overwrites its environment would have.
    parent = marked("mine", [sys.executable, "-S", "-c", f"import subprocess; subprocess.run({SLEEP!r}, env={{}})"])
    try:
        while len(members("mine")) < 3:
            pass
        assert sweep("mine") == set()
        assert child.wait(1) == -15
        parent.wait(1)  # by the signal, or because its child ended
        assert members("mine") == set()
        assert stranger.poll() is None and other.poll() is None
    finally:
        for process in (stranger, other):
            process.kill()
            process.wait()


def test_a_part_of_a_session_is_found_with_it_and_by_itself_even_stopped():
    # As the sides of `moray bench peers`: those that are not being measured are stopped.
    side, other, stranger = marked("mine-side"), marked("mine-other"), marked("miner")
    try:
        both = {identify(side.pid), identify(other.pid)}
        while members("mine") != both:
            pass
        assert members("mine-side") == {identify(side.pid)}
        send(identify(side.pid), signal.SIGSTOP)
        assert sweep("mine", grace_s=0.3) == set()
        assert (side.wait(1), other.wait(1)) == (-9, -15)  # a stopped one does not hear a SIGTERM
        assert stranger.poll() is None
    finally:
        for process in (side, other, stranger):
            process.kill()
            process.wait()


def test_sweep_finds_an_orphan_in_a_session_of_its_own():
    code = (
        f"import subprocess;print(subprocess.Popen({SLEEP!r}, start_new_session=True, stdout=subprocess.DEVNULL).pid)"
    )
    parent = marked("orphaned", [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True)
    orphan = identify(int(parent.communicate()[0]))
    assert orphan and is_alive(orphan)
    sweep("orphaned")
    assert not is_alive(orphan)


def test_sweep_kills_what_ignores_sigterm_after_the_grace():
    deaf = marked("deaf", [sys.executable, "-S", "-c", DEAF], stdout=subprocess.PIPE)
    deaf.stdout.readline()
    assert sweep("deaf", grace_s=0.3) == set()
    assert deaf.wait(1) == -9
    deaf.stdout.close()


def test_sweep_remembers_those_whose_parents_it_has_stopped():
    # Ends at once on SIGTERM; its child has no mark, ignores SIGTERM and is nobody's child from then on.
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {DEAF!r}], env={{}})"
    parent = marked("family", [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    parent.stdout.readline()
    family = members("family")
    assert len(family) == 2
    assert sweep("family", grace_s=0.3) == set()
    assert not any(is_alive(process) for process in family)
    parent.communicate()


def test_sweep_stops_known_members_that_no_sign_leads_to():
    unmarked = subprocess.Popen(SLEEP)
    assert sweep("forgotten", known=frozenset({identify(unmarked.pid)})) == set()
    assert unmarked.wait(1) == -15


def test_sweep_leaves_its_caller_alone():
    # In a process of its own: what this one has started, other tests' sessions too, is not to be swept.
    code = """
import os
from ops.processes import identify, sweep
assert sweep("self", leader=identify(os.getpid()), grace_s=0.1, kill_s=0.1) == set()
print("here")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "here\n"


def test_a_number_in_use_again_is_another_process():
    here = identify(os.getpid())
    assert here and is_alive(here)
    earlier = Process(here.pid, here.started - 1)
    assert not is_alive(earlier)
    send(earlier, 9)  # does not reach us


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    child.wait()


def test_a_process_name_may_hold_brackets_and_spaces(tmp_path):
    odd = tmp_path / "a) (b"
    odd.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(odd), "60"])
    assert identify(child.pid) is not None
    child.kill()
    child.wait()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU only")
def test_only_what_has_bound_itself_to_a_cpu_stays_there():
    every = os.sched_getaffinity(0)
    first, *rest = sorted(every)
    binds_one = f"""
import os, threading, time
def bound():
    os.sched_setaffinity(0, {{{first}}}); print(threading.get_native_id(), flush=True); time.sleep(60)
threading.Thread(target=bound).start()
"""
    process = subprocess.Popen([sys.executable, "-S", "-c", binds_one], stdout=subprocess.PIPE)
    try:
        bound = int(process.stdout.readline())
        assert keep_off(process.pid, first)
        assert os.sched_getaffinity(bound) == {first} and os.sched_getaffinity(process.pid) == set(rest)
        assert not keep_off(process.pid, first)  # all have gone that had to
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not keep_off(process.pid, first)  # it is not there any more
