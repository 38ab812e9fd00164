# syntax=docker/dockerfile:1
# GPU image:  docker build -t draftsmith .
# CPU image:  docker build -t draftsmith:cpu --build-arg DEVICE=cpu .
# Serve:      docker run --gpus all -p 8000:8000 -v draftsmith:/data draftsmith serve --host 0.0.0.0
#
# One base for both: torch's GPU wheels bring the CUDA libraries, the host brings the driver.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# g++ compiles DeepSpeed's CPU operations at first use, so it stays in the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*

# The same steps as `make setup`; what pip downloads stays in a cache beside the image.
ARG DEVICE=gpu
WORKDIR /opt/draftsmith
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python deploy/install.py --device "$DEVICE" --venv /opt/venv --runtime

RUN useradd --create-home --uid 10001 draftsmith \
    && install --directory --owner draftsmith --group draftsmith /data
USER 10001
WORKDIR /data
ENV PATH=/opt/venv/bin:$PATH \
    DRAFTSMITH_HOME=/data \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /data
EXPOSE 8000

HEALTHCHECK --interval=15s --timeout=5s --start-period=300s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["draftsmith"]
CMD ["serve", "--host", "0.0.0.0"]
