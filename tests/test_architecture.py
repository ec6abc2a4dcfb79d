"""What keeps the flat packages apart, ours, and few that know the engine."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cluster
import experts
import ops
import replicas

ROOT = Path(__file__).parents[1]
PACKAGES = (cluster, experts, ops, replicas)
# An upgrade of vLLM touches these. The last four judge the embedded model through vLLM's public `LLM` class, compare
# our placements with its own, measure that class itself, and time its fused-MoE layer.
KNOW_VLLM = {
    "experts/vllm_plugin.py",
    "replicas/vllm_core.py",
    "cluster/cluster_core.py",
    "cluster/gateway.py",
    "experts/tiny_r1/evaluate.py",
    "ops/bench/balance.py",
    "ops/bench/gpu/raw_engine.py",
    "ops/tune/kernel_timing.py",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources():
    return (file for package in PACKAGES for file in (ROOT / package.__name__).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_package_is_ours(package):
    # Names as common as these could come from elsewhere on the path.
    assert Path(package.__file__).parent == ROOT / package.__name__


def test_each_package_is_regular_and_typed():
    for package in PACKAGES:
        folder = ROOT / package.__name__
        assert (folder / "py.typed").is_file()
        for inner in {file.parent for file in folder.rglob("*.py")}:
            assert (inner / "__init__.py").is_file(), inner


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_distribution_is_not_for_an_index():
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_few_files_import_vllm():
    def imports_vllm(file):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        return any(name.split(".")[0] == "vllm" for name in names)

    assert {str(file.relative_to(ROOT)) for file in sources() if imports_vllm(file)} <= KNOW_VLLM


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert [str(file) for file in sources() if vague & {part.removesuffix(".py") for part in file.parts}] == []


def test_imports_point_one_way():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
