# syntax=docker/dockerfile:1
#
#   docker build -t neurostorm .                                    CPU (the default)
#   docker build -t neurostorm:gpu --target gpu .                   NVIDIA GPUs
#   docker build --build-arg MODEL=neurostorm-mae-5ds .             with weights: a name of `neurostorm-models list`, or a
#                                                                   model folder or checkpoint under models/ here
# docs/platforms.md has the rest. Layers stand in the order of how seldom they change: torch, the other packages, this
# package, weights. A change of the code rebuilds the last two only.

ARG BASE=docker.io/library/python:3.11.13-slim-bookworm
ARG CUDA_BUILD=docker.io/nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_BASE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04

# --- packages for the CPU -----------------------------------------------------------------------------------------------
FROM ${BASE} AS packages
# PyTorch's own index has builds without CUDA, a tenth of the size; empty: whatever pip finds
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/neurostorm/env
ENV PATH=/opt/neurostorm/env/bin:$PATH
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt torch
# everything else by the hashes of its files (scripts/lock_requirements.sh); torch has brought what it needs itself
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip pip install --require-hashes --no-deps -r requirements.lock

# --- this package, its kernels compiled; the wheel serves every Python of 3.11 to 3.13 ------------------------------------
FROM ${BASE} AS wheel
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/build
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY neurostorm_bids neurostorm_bids
ARG VERSION=
RUN --mount=type=cache,target=/root/.cache/pip \
    SETUPTOOLS_SCM_PRETEND_VERSION_FOR_NEUROSTORM_BIDS="$VERSION" /opt/build/bin/pip wheel --no-deps -w /wheel . \
    && python3 -m zipfile -l /wheel/*.whl > /wheel/list && grep -q _kernels.so /wheel/list

# --- weights and templates ------------------------------------------------------------------------------------------------
FROM packages AS content
ARG MODEL=
# the transform between fMRIPrep's default space and the model's, 90 MB; empty: without it
ARG TEMPLATES=MNI152NLin2009cAsym:MNI152NLin6Asym
# where it is fetched; empty: TemplateFlow's own archive
ARG TEMPLATEFLOW_ARCHIVE=
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl
COPY scripts/image_content.py ./
RUN --mount=type=cache,target=/cache --mount=type=bind,target=/context \
    HF_HOME=/cache/huggingface TEMPLATEFLOW_HOME="${TEMPLATEFLOW_ARCHIVE:+/tmp}/cache/templateflow" \
    NEUROSTORM_TEMPLATEFLOW_ARCHIVE="$TEMPLATEFLOW_ARCHIVE" \
    python image_content.py /content --context /context --model "$MODEL" --templates "$TEMPLATES" && chmod -R a+rX /content

# --- packages for GPUs ------------------------------------------------------------------------------------------------------
FROM ${CUDA_BUILD} AS gpu-packages
ARG GPU_TORCH_INDEX=
ARG MAMBA=mamba-ssm==2.3.2.post1
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0+PTX"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/neurostorm/env
ENV PATH=/opt/neurostorm/env/bin:$PATH
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${GPU_TORCH_INDEX:+--extra-index-url "$GPU_TORCH_INDEX"} -c constraints.txt torch
# newer releases leave the kernel out unless told; --no-build-isolation: against the torch that is here
RUN --mount=type=cache,target=/root/.cache/pip if [ -n "$MAMBA" ]; then \
    pip install -c constraints.txt setuptools wheel ninja packaging \
    && MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation -c constraints.txt "$MAMBA"; fi
COPY pyproject.toml scripts/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements.py pyproject.toml > requirements.txt && pip install -c constraints.txt -r requirements.txt

# --- the GPU image ----------------------------------------------------------------------------------------------------------
FROM ${CUDA_BASE} AS gpu
# gcc: Triton before 3.8 compiles its launchers
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --non-unique --uid 1000 neurostorm \
    && chmod -R go=u /home/neurostorm
COPY --from=gpu-packages /opt/neurostorm/env /opt/neurostorm/env
ENV PATH=/opt/neurostorm/env/bin:$PATH
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
COPY --from=content /content /opt/neurostorm
ARG VERSION=
ENV HOME=/home/neurostorm LOGNAME=neurostorm LANG=C.UTF-8 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 \
    TEMPLATEFLOW_HOME=/opt/neurostorm/templateflow NEUROSTORM_CONTAINER=neurostorm:${VERSION:-unversioned}-gpu
LABEL org.opencontainers.image.title="neurostorm" \
      org.opencontainers.image.description="BIDS App: the NeuroSTORM fMRI foundation model on fMRIPrep derivatives (GPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION:-unversioned}"
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["neurostorm"]

# --- the CPU image: last, hence the default -----------------------------------------------------------------------------------
FROM ${BASE} AS cpu
# go=u: whatever uid the image is started with finds the home that belongs to 1000
RUN useradd --create-home --non-unique --uid 1000 neurostorm && chmod -R go=u /home/neurostorm
COPY --from=packages /opt/neurostorm/env /opt/neurostorm/env
ENV PATH=/opt/neurostorm/env/bin:$PATH
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
COPY --from=content /content /opt/neurostorm
ARG VERSION=
# /tmp is the working folder because it is where a read-only container may write: --work-dir defaults to ./work
ENV HOME=/home/neurostorm LOGNAME=neurostorm LANG=C.UTF-8 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 \
    TEMPLATEFLOW_HOME=/opt/neurostorm/templateflow NEUROSTORM_CONTAINER=neurostorm:${VERSION:-unversioned}
LABEL org.opencontainers.image.title="neurostorm" \
      org.opencontainers.image.description="BIDS App: the NeuroSTORM fMRI foundation model on fMRIPrep derivatives" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION:-unversioned}"
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["neurostorm"]
