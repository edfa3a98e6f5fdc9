# make run     a homeserver in ./data on 127.0.0.1:8008 and :8448; the first start makes keys and configuration
#              make run DATA=/srv/matrix SERVER=example.com HTTP=:8008 HTTPS=:8448 OPTIONS=…
# make test    the whole test suite, in parallel; make test TESTS=tests.matrix JOBS=4; installs what it needs
# make test-postgresql   the tests of the components again, over PostgreSQL
# make test-postgresql-versions   tests of the database over the oldest and the newest PostgreSQL; VERSIONS=12
# make test-polylith     the tests of the whole server again, over two processes of each component, but for the stories
# make test-polylith-nats   the stories over two processes of each component and a real nats-server
# make lint    ruff; make types: mypy
# make ci      what a change must pass: .ci/run
# make venv    the environment in .venv that all of these use; made anew when the pinned versions change
# make samples the files that are written from the configuration's code

PYTHON ?= python3
VENV ?= .venv
DATA ?= data
SERVER ?= localhost
HTTP ?= 127.0.0.1:8008
HTTPS ?= 127.0.0.1:8448
OPTIONS ?=
TESTS ?= tests
JOBS ?= 2
# Without those that play the same tests again on two processes by turns: that takes as long as all the others.
on_postgresql := $(addprefix tests/,federation_api room_api user_api sync_api media_api client_api stories)
on_postgresql := $(filter-out %/test_by_turns.py,$(wildcard $(addsuffix /test_*.py,$(on_postgresql))))
ON_POSTGRESQL ?= $(subst /,.,$(basename $(on_postgresql))) tests.test_bad_input

# The broker of these: in memory, or a real nats-server (nats).
BROKER ?= memory
ON_NATS ?= tests.stories
ON_POLYLITH ?= tests.federation_api.test_whole tests.federation_api.test_bad_events tests.federation_api.test_outbound tests.federation_api.test_wiring tests.media_api.test_between_servers tests.test_bad_input tests.test_routes

pip := $(VENV)/bin/pip --disable-pip-version-check
project := setup.cfg pyproject.toml dendrite_tw/__init__.py

VERSIONS ?= 12 18
ON_VERSIONS ?= tests.database tests.interop.test_postgresql_shared

.PHONY: run test test-postgresql test-polylith test-polylith-nats test-postgresql-versions lint types ci venv samples clean
.DELETE_ON_ERROR:

venv: $(VENV)/.runtime

$(VENV)/bin/python:
	@sh .ci/make-venv "$(PYTHON)" "$(VENV)"

$(VENV)/.runtime: requirements.txt $(project) | $(VENV)/bin/python
	$(pip) install --quiet --requirement requirements.txt
	$(pip) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.test: requirements-test.txt requirements-test-clients.txt $(VENV)/.runtime
	$(pip) install --quiet --requirement requirements-test.txt --requirement requirements-test-clients.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.test
	$(pip) install --quiet --requirement requirements-dev.txt
	@touch $@

run: $(VENV)/.runtime
	@test -f "$(DATA)/dendrite.yaml" -a -f "$(DATA)/matrix_key.pem" -a -f "$(DATA)/server.key" || \
		$(VENV)/bin/python -m dendrite_tw.commands.first_start \
		-data "$(DATA)" -server "$(SERVER)" -http "$(HTTP)"
	@exec $(VENV)/bin/twistd --nodaemon --pidfile= --logger=dendrite_tw.logs.standard_output dendrite \
		--config "$(DATA)/dendrite.yaml" --http-bind-address "$(HTTP)" \
		$(if $(HTTPS),--https-bind-address "$(HTTPS)" --tls-cert "$(DATA)/server.crt" --tls-key "$(DATA)/server.key") \
		$(OPTIONS)

test: $(VENV)/.test
	@.ci/install-test-tools
	$(VENV)/bin/trial -j$(JOBS) $(TESTS)

test-postgresql: $(VENV)/.test
	@.ci/install-test-tools
	TEST_POSTGRESQL=1 $(VENV)/bin/trial -j$(JOBS) $(ON_POSTGRESQL)

test-postgresql-versions: $(VENV)/.test
	@.ci/install-test-tools postgresql-versions
	for version in $(VERSIONS); do \
		TEST_POSTGRESQL=1 POSTGRESQL_VERSION=$$version $(VENV)/bin/trial -j$(JOBS) $(ON_VERSIONS) || exit 1; \
	done

test-polylith: $(VENV)/.test
	@.ci/install-test-tools
	TEST_POLYLITH=$(BROKER) $(VENV)/bin/trial -j$(JOBS) $(ON_POLYLITH)

test-polylith-nats: $(VENV)/.test
	@.ci/install-test-tools
	TEST_POLYLITH=nats $(VENV)/bin/trial -j$(JOBS) $(ON_NATS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

ci:
	.ci/run

samples: $(VENV)/.runtime
	$(VENV)/bin/python -m dendrite_tw.config --write-samples

clean:
	rm -rf $(VENV) _trial_temp* .mypy_cache .ruff_cache .hypothesis *.egg-info
