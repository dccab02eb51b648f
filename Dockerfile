# mim3d with all but the extra `containers`, for GPUs with CUDA 13 drivers. The versions are those of constraints.txt.
#   docker build -t mim3d .
#   docker run --gpus all --ipc host -v /data:/data mim3d pretrain mae-vit-b-96 --data.corpus /data/corpus.zarr --out /data/runs/b
# For a machine without a GPU: --build-arg EXTRAS=study --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=study,gpu,remote,dask
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/mim3d
ENV PATH=/opt/mim3d/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# torch first and alone: what follows finds it satisfied and leaves the build as it is.
COPY constraints.txt ./
RUN pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch numpy
COPY . .
RUN pip install -c constraints.txt ".[$EXTRAS]" \
    && python .ci/wheel_is_whole.py --installed

FROM python:3.12-slim-bookworm
# Triton compiles its launchers with gcc when a kernel first runs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 mim3d
COPY --from=build /opt/mim3d /opt/mim3d
ENV PATH=/opt/mim3d/bin:$PATH OMP_NUM_THREADS=1
USER mim3d
WORKDIR /home/mim3d
ENTRYPOINT ["mim3d"]
CMD ["--help"]
