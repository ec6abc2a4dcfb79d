# Two commands do all: `make serve` and `make test`. Each sets up first what is missing; a set-up already done is a
# file comparison. SERVE, PYTEST, SOAK and TRAIN take further arguments: make serve SERVE="--port 8001",
# make test PYTEST="-k router", make soak SOAK="--seed 7", make train-tiny TRAIN="--seed 2".
.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu serve test soak test-unit test-k8s lint format chart train-tiny train-tiny-v2 train-tiny-qat lock clean
SERVE ?=
PYTEST ?=
TRAIN ?=
SOAK ?=
BIN := .venv/bin
FURTHER := --device cpu --tokens-per-batch 8192 --held-out 300 --log-every 10

help: ## show these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create .venv with the exact versions of requirements/cpu.lock (about 2 minutes, once)
	@scripts/setup cpu

setup-gpu: ## the same with requirements/gpu.lock, for a CUDA host with Python 3.12
	@scripts/setup gpu

serve: setup ## serve the embedded model on http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/moray up $(SERVE)

test: setup ## run every test but those of test-k8s, real engines and the whole stack included
	@scripts/install-test-packages
	@scripts/install-kubernetes-tools
	$(BIN)/pytest -n auto -m "not vllm and not e2e and not k8s" $(PYTEST) || [ $$? -eq 5 ] # 5: -k chose none of these
	$(BIN)/pytest -n 2 --dist loadfile -m "vllm and not e2e" $(PYTEST) || [ $$? -eq 5 ]
	$(BIN)/pytest -m e2e $(PYTEST) || [ $$? -eq 5 ]

soak: setup ## kill and stop processes under load for three minutes: SOAK="--minutes 30" for the long one
	$(BIN)/moray soak --minutes 3 $(SOAK)

test-unit: setup ## run the tests that start neither an engine nor Ray, on all CPUs
	$(BIN)/pytest -n auto -m "not vllm and not e2e and not k8s" $(PYTEST)

test-k8s: setup ## run the tests on a real Kubernetes API server, which is built once (5 CPU-minutes)
	@scripts/install-kubernetes-tools
	@scripts/build-kube-apiserver || [ -z "$(K8S_REQUIRED)" ] # it has said why; the tests that need it are skipped
	$(BIN)/pytest -m k8s tests/kubernetes $(PYTEST) || [ $$? -eq 5 ]

lint: setup ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the kind of .venv that is there: `setup` would replace the one of `setup-gpu`. Of an option given twice, the last
# counts, so TRAIN="--device cpu --tokens 1e6" changes both.
train-tiny: ## train the embedded model anew into build/tiny_r1/checkpoint (minutes on a GPU, after setup-gpu)
	@scripts/setup $$(cat .venv/moray-kind 2>/dev/null || echo cpu)
	$(BIN)/python -m experts.tiny_r1.train --out build/tiny_r1 --device cuda --tokens 540e6 --workers 14 $(TRAIN)
	$(BIN)/python -m experts.tiny_r1.export --model build/tiny_r1/model.pt --out build/tiny_r1/checkpoint

train-tiny-v2: ## teach the embedded model five digits, from its version v1, into build/tiny_r1_v2/checkpoint (43 minutes on a busy CPU)
	@scripts/setup $$(cat .venv/moray-kind 2>/dev/null || echo cpu)
	$(BIN)/python -m experts.tiny_r1.train --out build/tiny_r1_v2/first --warm-start experts/tiny_r1/versions/v1 \
	  --stage five_digits --tokens 1.8e6 --learning-rate 1e-3 --warmup-steps 20 --decay-from 0.3 --seed 2 $(FURTHER) $(TRAIN)
	$(BIN)/python -m experts.tiny_r1.train --out build/tiny_r1_v2 --warm-start build/tiny_r1_v2/first/model.pt \
	  --stage five_digits_compared --tokens 1.1e6 --learning-rate 7e-4 --warmup-steps 10 --decay-from 0.2 --seed 3 \
	  $(FURTHER) $(TRAIN)
	$(BIN)/python -m experts.tiny_r1.export --model build/tiny_r1_v2/model.pt --out build/tiny_r1_v2/checkpoint

train-tiny-qat: ## fine-tune the embedded model for int8 into build/tiny_r1_qat/checkpoint (4 minutes on a CPU)
	@scripts/setup $$(cat .venv/moray-kind 2>/dev/null || echo cpu)
	$(BIN)/python -m experts.tiny_r1.quantization_aware --out build/tiny_r1_qat $(TRAIN)
	$(BIN)/python -m experts.tiny_r1.export --model build/tiny_r1_qat/model.pt --out build/tiny_r1_qat/checkpoint

chart: setup ## write what of helm/moray is generated: its schema, VALUES.md, copies of rules and dashboards
	$(BIN)/python -m ops.chart

lock: setup ## write requirements/cpu.lock from what .venv holds, and check that it is complete
	@scripts/lock

clean: ## remove .venv and every cache
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
