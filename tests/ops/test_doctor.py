import socket
from pathlib import Path

import pytest

from cluster.config import Machine, load
from ops import doctor
from ops.doctor import Level
from ops.up import StartError, check_before_start


@pytest.fixture
def settings(tmp_path):
    """Settings of a machine with two CPUs, whatever this one is; without a model (another test's business)."""
    return load(overrides={"model.path": tmp_path / "nowhere"}, machine=Machine(cpus=2, gpus=0)).settings


def found(settings, what):
    return next(f for f in doctor.examine(settings) if f.what == what)


def test_a_cpu_without_avx2_cannot_run_the_engine(settings, monkeypatch):
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: frozenset({"sse4_2"}))
    finding = found(settings, "vector units")
    assert finding.level is Level.MISSING and "AVX2" in finding.way_out


def test_a_cpu_with_amx_runs_int8_experts(settings, monkeypatch):
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: frozenset({"avx2", "avx512f", "amx_int8"}))
    assert "AMX int8" in found(settings, "vector units").found
    assert all(f.what != "int8 experts on the CPU" for f in doctor.examine(settings))


def test_a_taken_port_is_a_warning_with_its_holder(settings):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        there = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"port": port})})
        finding = found(there, "gateway port")
    assert finding.level is Level.WARNING and str(port) in finding.found and "--port" in finding.way_out


def test_another_version_than_the_one_tried_is_a_warning(settings, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name == "ray" else "2.13.0+cpu")
    finding = found(settings, "ray")
    assert (finding.level, finding.found) == (Level.WARNING, "1.0, tried with 2.60.0")
    assert found(settings, "torch").level is Level.OK


def test_cuda_without_a_gpu_is_missing(settings, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    on_gpu = settings.model_copy(update={"engine": settings.engine.model_copy(update={"device": "cuda"})})
    assert found(on_gpu, "GPUs").level is Level.MISSING
    assert found(settings, "GPUs").level is Level.OK


def test_a_broken_nvidia_smi_is_a_warning(settings, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tool))
    assert found(settings, "GPUs").level is Level.WARNING


def test_gpus_are_listed(settings, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100, 40960 MiB, 580.1'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tool))
    assert found(settings, "GPUs").found == "NVIDIA A100, 40960 MiB, 580.1"


def test_haproxy_is_looked_for_where_ray_looks(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "none"))
    assert found(settings, "HAProxy").level is Level.MISSING
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/true")
    assert found(settings, "HAProxy").found == "/bin/true"


def test_a_check_that_cannot_look_is_a_finding_not_a_crash(settings, monkeypatch):
    def unreadable(self):
        raise PermissionError("no")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", unreadable)
        assert found(settings, "memory").level is Level.WARNING


def test_every_problem_has_a_way_out_and_the_models_are_named(settings, tmp_path):
    finding = found(settings, "model")
    assert finding.level is Level.MISSING and str(tmp_path / "nowhere") in finding.found


def test_a_version_that_is_not_there_is_told_by_the_doctor_and_before_a_start():
    settings = load(overrides={"model.version": "v99"}, machine=Machine(cpus=2, gpus=0)).settings
    finding = found(settings, "model")
    assert finding.level is Level.MISSING and "has no version v99; it has: v1" in finding.found
    with pytest.raises(StartError, match="has no version v99"):
        check_before_start(settings, dashboard_port_chosen=False)
