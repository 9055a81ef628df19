# Everything starts with set-up; nothing here needs to be typed before anything else.
V := .venv/bin
DEMO := output/demo
export PATH := $(CURDIR)/$(V):$(PATH)

.PHONY: help setup demo test test-docker chaos lint format lock bench clean
help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 14

setup:  ## install the locked packages into .venv (the other targets do this first)
	@scripts/setup.sh dev

demo:  ## 24 tasks, a real model, real jails: trajectories, reviews and an SFT file in $(DEMO)
	@scripts/setup.sh embedded
	@scripts/demo.sh $(DEMO)

# Tests wait more than they work; the small model does not, and has its turn alone.
AT_ONCE := 2
test:  ## the whole test suite, two tests at a time (AT_ONCE=1: one after the other)
	@scripts/setup.sh dev
	$(V)/pytest -n $(AT_ONCE) --dist worksteal -m "not (chaos or docker or embedded)"
	$(V)/pytest -m embedded

test-docker:  ## what needs Docker: both other back-ends for real, the worker in a container (as root)
	@scripts/setup.sh dev
	@scripts/test-docker.sh $(ARGS)

chaos:  ## the proofs under fire in their long forms, about half an hour (FLEET_CHAOS_SEED=n)
	@scripts/setup.sh dev
	$(V)/pytest -m chaos -s

lint:  ## ruff, mypy, and the rules of the house
	@scripts/setup.sh dev
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/mypy
	@! grep -rnE 'https?://' requirements/ || { echo "a lock file names a host"; exit 1; }

format:  ## let ruff tidy up
	@scripts/setup.sh dev
	$(V)/ruff check --fix .
	$(V)/ruff format .

lock:  ## resolve requirements/*.lock anew from pyproject.toml
	@scripts/lock.sh

bench:  ## measure engine, latency, episodes and nine peers in one run; goals beside the numbers
	@scripts/setup.sh dev
	$(V)/python -m benchmarks

clean:  ## remove what the targets made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis output
