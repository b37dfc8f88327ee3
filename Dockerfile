# Two images: `operator`, without torch, and `trainer`. Built from one wheel and from requirements with hashes.
# Any base will do that has Python 3.11 or newer as `python`, with pip.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS tools
# For a mirror of the package index. The images do not know it.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX=${PIP_INDEX_URL}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore UV_NO_CACHE=1 VIRTUAL_ENV=/venv
# Bytecode is made here, for a pod cannot write it: its root file system is read-only. Without times in it, because a
# copy to the next stage may have new ones.
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
# Not of the Kubernetes client's models and calls: 60 MB of bytecode that nobody imports.
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
# By number: only so can a kubelet see that it is not root.
USER 10001:10001

FROM runtime AS operator
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="The operator of FineTuneJobs"
COPY --from=operator-packages /venv /venv
EXPOSE 8081
ENTRYPOINT ["python", "-m", "finetune_operator"]
CMD ["run"]

# After the operator: a builder that makes all stages on the way to its target has little to do for that one.
FROM tools AS trainer-packages
COPY requirements/trainer.txt requirements/
# DeepSpeed comes as source; its kernels are not built, the trainer uses none of them.
RUN DS_BUILD_OPS=0 uv pip install --compile-bytecode --build-constraints requirements/build.txt \
    --require-hashes --requirement requirements/trainer.txt
COPY --from=wheel /wheel /wheel
RUN uv pip install --compile-bytecode --no-deps /wheel/*.whl && rm /venv/.lock

FROM runtime AS trainer
LABEL org.opencontainers.image.title="finetune-trainer" \
      org.opencontainers.image.description="Prepares, trains and evaluates; the operator's pods say which"
COPY --from=trainer-packages /venv /venv
