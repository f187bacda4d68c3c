# One image for Ray's head and workers, the submitter, the data job and MLflow: 7 GB, most of it CUDA's
# libraries, in two layers, of which new code changes the small one.
#   make image        # docker build, with the commit baked in
# It runs as 1000:1000 on a read-only root. Writable must be: /tmp and /home/medssl, and what is
# mounted at /store, /data, /artifacts, /dev/shm. Its Ray is the one of requirements.lock, and has to be
# that of deploy/ too: tests/deploy/test_image.py compares them. The Python is the tests' own, and a
# Python's minor version is the same in all of a Ray cluster.
FROM python:3.11.14-slim-bookworm

# A mirror of your own, if you have one; a password does not belong here, since images keep arguments
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX

COPY pyproject.toml requirements.lock deploy/image/build /build/
RUN /build/build environment /build

ARG COMMIT
COPY . /app
RUN /build/build code "${COMMIT}" && rm -r /build

# Nothing phones home, no bytecode is written, a GPU that Kubernetes gave may be computed with
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/medssl \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

LABEL org.opencontainers.image.title="medssl" \
      org.opencontainers.image.description="Self-supervised pretraining on medical images, as a grid" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"

USER 1000:1000
WORKDIR /home/medssl
# No ENTRYPOINT: KubeRay starts Ray by a command of its own
CMD ["medssl", "doctor"]
