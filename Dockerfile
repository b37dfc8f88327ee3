# Two images: `operator`, without torch, and `trainer`. They use the same wheel, and requirements with hashes.
# The base image must have Python 3.11 or newer as `python`, with pip; that of the trainer also apt-get, see SYSTEM_PACKAGES.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS tools
# A mirror of the package index, used only during the build.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX=${PIP_INDEX_URL}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore UV_NO_CACHE=1 VIRTUAL_ENV=/venv
# Bytecode is compiled here, because the root file system of pods is read-only. It is validated without timestamps, which may
# change when files are copied to the next stage.
ENV PYC_INVALIDATION_MODE=UNCHECKED_HASH
WORKDIR /source
COPY requirements/build.txt requirements/
RUN python -m pip install --require-hashes --requirement requirements/build.txt
RUN python -m venv --without-pip /venv

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY manifests/samples/quickstart.yaml manifests/samples/
COPY operator operator
COPY trainer trainer
RUN python -m hatchling build --target wheel --directory /wheel

FROM tools AS operator-packages
COPY requirements/operator.txt requirements/
RUN uv pip install --only-binary :all: --require-hashes --requirement requirements/operator.txt
COPY --from=wheel /wheel /wheel
# Models and API classes of the Kubernetes client are not compiled: 60 MB of bytecode that is never imported.
RUN uv pip install --no-deps /wheel/*.whl && rm /venv/.lock \
    && python -m compileall -q --invalidation-mode unchecked-hash -x "/client/(api|models)/" /venv/lib

FROM ${BASE_IMAGE} AS runtime
RUN python -m pip uninstall --quiet --yes --root-user-action=ignore pip setuptools wheel \
    && python -c "import ensurepip, shutil; shutil.rmtree(ensurepip.__path__[0])" \
    && echo "finetune:x:10001:10001::/tmp:/usr/sbin/nologin" >> /etc/passwd \
    && echo "finetune:x:10001:" >> /etc/group
ENV PATH=/venv/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A numeric id, because the kubelet cannot verify runAsNonRoot with a name.
USER 10001:10001

FROM runtime AS operator
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="The operator for FineTuneJobs"
COPY --from=operator-packages /venv /venv
EXPOSE 8081
ENTRYPOINT ["python", "-m", "finetune_operator"]
CMD ["run"]

# After the operator, so that builders which build all stages before their target do not build this one for the operator.
FROM tools AS trainer-packages
COPY requirements/trainer.txt requirements/
# DeepSpeed is a source distribution. Its kernels are not built, because the trainer does not use them.
RUN DS_BUILD_OPS=0 uv pip install --compile-bytecode --build-constraints requirements/build.txt \
    --require-hashes --requirement requirements/trainer.txt
COPY --from=wheel /wheel /wheel
RUN uv pip install --compile-bytecode --no-deps /wheel/*.whl && rm /venv/.lock

FROM runtime AS trainer
LABEL org.opencontainers.image.title="finetune-trainer" \
      org.opencontainers.image.description="The prepare, train and evaluate stages of FineTuneJobs"
# libibverbs and the drivers of network adapters, from the source package rdma-core: NCCL loads them for RDMA (InfiniBand, RoCE),
# and otherwise uses TCP. The Debian package rdma-core has neither; it configures adapters, which nodes do. Without apt-get, as on
# another distribution, set SYSTEM_PACKAGES to nothing and use a base image that has them.
ARG SYSTEM_PACKAGES=ibverbs-providers
USER 0
RUN if [ -n "${SYSTEM_PACKAGES}" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends ${SYSTEM_PACKAGES} && rm -rf /var/lib/apt/lists/*; \
    fi
USER 10001:10001
COPY --from=trainer-packages /venv /venv
