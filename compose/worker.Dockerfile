# A worker that runs jails, for a container without any privilege (worker.yaml holds its options).
# The base needs python3 >= 3.11 with venv, below /usr: a jail sees the container's /usr and no
# other folder, so programs run on the base image's Python, and the worker's packages in /opt are
# none of theirs.
ARG PYTHON_IMAGE=python:3.13-slim-trixie
FROM ${PYTHON_IMAGE} AS packages
COPY requirements/base.lock /src/requirements/
# A network that signs traffic with a CA of its own needs its bundle: --secret id=ca_bundle,src=...
RUN --mount=type=secret,id=ca_bundle,required=false --mount=type=cache,target=/root/.cache/pip \
    set -eu; \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    python3 -m venv /opt/venv; \
    /opt/venv/bin/pip install --disable-pip-version-check --require-hashes \
        -r /src/requirements/base.lock
COPY . /src
RUN /opt/venv/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation \
        --no-index /src

FROM ${PYTHON_IMAGE}
ARG COMMIT=
COPY --from=packages /opt/venv /opt/venv
RUN set -eu; \
    echo 'fleet:x:12345:12345:fleet:/tmp:/usr/sbin/nologin' >>/etc/passwd; \
    echo 'fleet:x:12345:' >>/etc/group; \
    install -d -o 12345 -g 12345 /output /packages
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    FLEET_OUTPUT=/output \
    FLEET_PACKAGES=/packages \
    FLEET_COMMIT=${COMMIT}
USER 12345:12345
WORKDIR /tmp
