# Each target does all of its own set-up on a Debian-like machine. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

CARGO ?= cargo
TEST_ARGS ?=
SEEDS ?= 100000
KILLS ?= 20
SECONDS ?= 600
N ?= 200
SEED ?= 1
RATE ?= 100

.PHONY: help setup demo test test-browser screenshots test-large test-versions test-regression-copy test-kills test-faults test-idle test-http-suite test-postgres-front soak simulate sim fuzz api-fuzz model check bench bench-api bench-decide bench-forecast bench-http bench-postgres-front bench-replication package check-packaging fmt clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## system packages and PostgreSQL 15 and 18, where missing
	@scripts/setup.sh

demo: setup ## two zones, a live service, a storm: watch it move and come back (under three minutes after the build)
	$(CARGO) build --release --package godwit
	target/release/godwit demo

test: setup ## every test: unit, property, snapshot, end to end with real PostgreSQL, dashboard in a browser
	@scripts/setup.sh tests
	scripts/test.sh $(TEST_ARGS)

test-browser: setup ## the dashboard in a real Chromium against a real node (in `make test` too)
	scripts/test-browser.sh

screenshots: setup ## docs/images: the dashboard during and after a migration
	scripts/test-browser.sh screenshots

test-large: setup ## what takes minutes and gigabytes: 2 GB in one transaction, an applier stuck for half a minute
	$(CARGO) test --package godwit-tests --test e2e large:: -- --ignored --nocapture --test-threads=1

test-versions: ## every type from and to PostgreSQL 16 and 17, which are fetched
	scripts/setup.sh versions
	$(CARGO) test --package godwit-tests --test e2e majors_between -- --ignored --nocapture

test-regression-copy: setup ## PostgreSQL's own regression database, copied, changed and compared (minutes, the first time)
	$(CARGO) test --package godwit-tests --test e2e the_regression_database_is_copied_whole -- --ignored --nocapture

test-kills: setup ## kill -9 of nodes and databases under load, in the copy and while streaming: make test-kills KILLS=20
	KILLS=$(KILLS) $(CARGO) test --package godwit-tests --test e2e kills:: -- --nocapture --test-threads=1

FAULTS = all
test-faults: setup ## every fault at every step of a migration (docs/failures.md), a quarter of an hour; or of one row: make test-faults FAULTS='slot lost'
	FAULTS='$(FAULTS)' $(CARGO) test --package godwit-tests --test e2e faults:: -- --nocapture --test-threads=2

soak: setup ## cutovers there and back under load, faults in a share of them: make soak N=200 SEED=1 RATE=100
	SOAK=$(N) SEED=$(SEED) RATE=$(RATE) $(CARGO) test --release --package godwit-tests --test e2e faults::soak -- --nocapture

sim: SEEDS = 5000
sim: ## cutovers by seed among disks, links and databases that fail: make sim SEEDS=5000
	SIM_SEEDS=$(SEEDS) $(CARGO) test --release --package godwit-sim --test seeds -- --nocapture

test-idle: setup ## what ten thousand idle connections to the HTTP front cost
	ulimit -n 12000 && $(CARGO) test --package godwit-tests --test e2e ten_thousand_idle_connections -- --ignored --nocapture

test-http-suite: setup ## httpwg's cases of HTTP/2 against the front, bare pingora and nghttpd: not one fewer (minutes, the first time)
	$(CARGO) test --package godwit-tests --test e2e no_case_of_http2 -- --ignored --nocapture

test-postgres-front: setup ## PostgreSQL's own suites, five drivers, Debezium and pgbench through the front, cutovers under them (half an hour)
	$(CARGO) test --package godwit-tests --test e2e postgres_front:: -- --include-ignored --nocapture --test-threads=1

simulate: ## replication over links and targets that break, by seed: make simulate SEEDS=100000
	SIM_SEEDS=$(SEEDS) $(CARGO) test --release --package replicator --lib simulation::every_seed_ends_exact -- --nocapture

fuzz: setup ## bytes that no honest side sends, against every decoder of replicator and PostgreSQL front: make fuzz SECONDS=600 (each target)
	scripts/fuzz.sh $(SECONDS)
	scripts/fuzz.sh $(SECONDS) proxy/fuzz

EXAMPLES = 100
api-fuzz: setup ## the API against its own description, by schemathesis: make api-fuzz EXAMPLES=100 (each operation)
	scripts/api-fuzz.sh $(EXAMPLES)

model: ## every state of the cutover within stated bounds, and nine seeded bugs caught (minutes)
	$(CARGO) run --quiet --package godwit-model

check: setup ## formatting, lints, docs, dependency licences and advisories, the set-up on other machines
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features godwit/kubernetes -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --features godwit/kubernetes --no-deps --quiet
	scripts/check-dependencies.sh
	scripts/check-setup.sh

bench: setup ## side by side with peers; prints medians and ratios
	$(CARGO) build --release --package godwit-bench --package godwit
	target/release/godwit-bench all

bench-replication: setup ## the initial copy, catching up, lag: against native logical replication and pgcopydb (40 minutes)
	$(CARGO) build --release --package godwit-bench
	target/release/godwit-bench copy
	target/release/godwit-bench catch-up
	target/release/godwit-bench wan
	target/release/godwit-bench lag

bench-http: ## the HTTP front beside nginx, haproxy and bare pingora, one worker each (a quarter of an hour)
	scripts/setup.sh bench-http
	$(CARGO) build --release --package godwit-bench
	target/release/godwit-bench http
	target/release/godwit-bench http --idle 10000
	target/release/godwit-bench http --idle 10000 --silent
	target/release/godwit-bench http --idle 10000 --speaks tls

bench-postgres-front: ## the PostgreSQL front beside PgBouncer and the server itself: CPU and p99 (ten minutes after the build)
	scripts/setup.sh bench-postgres-front
	$(CARGO) build --release --package godwit-bench
	target/release/godwit-bench postgres
	target/release/godwit-bench postgres --pool 16 --clients 16,64,256

bench-api: ## the API with 1,000 resources, the dashboard's first paint with 100 and a day of history (five minutes after the build)
	scripts/test-browser.sh prepare
	$(CARGO) build --release --package godwit --package godwit-bench
	target/release/godwit-bench api
	target/release/godwit-bench api --resources 100 --hours 24 --page 5

bench-decide: ## score and decision for 10,000 resources on one core
	$(CARGO) run --release --quiet --package migration --example bench_decide

bench-forecast: ## the forecaster on a folder of series: make bench-forecast DATA=<folder>
	@test -n "$(DATA)" || { echo "name the folder: make bench-forecast DATA=<folder> (docs/forecasting.md)" >&2; exit 2; }
	RAYON_NUM_THREADS=1 $(CARGO) run --release --quiet --package predictor --example bench_forecast -- "$(DATA)"

fmt: ## format the code
	$(CARGO) fmt --all

package: setup ## target/package: the Debian package, the Helm chart; with Docker the image too
	scripts/package.sh

check-packaging: setup ## chart linted, rendered and its configuration checked; unit, Dockerfile, the package if it is there
	scripts/check-packaging.sh

clean: ## remove what was built
	$(CARGO) clean
