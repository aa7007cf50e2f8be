# docker build -t sparring .                                        with CUDA: the torch of the package index
# docker build -t sparring --build-arg TORCH_INDEX=URL .            the torch of another index, such as that of CPU builds
# docker run --rm -v "$PWD:/work" [--gpus all] sparring train quickstart
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# A compiler, for models that torch compiles.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt ./
ARG TORCH_INDEX=""
# torch alone, so that this layer is kept when the sources change; its version is that of constraints.txt.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt . \
    && useradd --create-home --uid 1000 sparring

USER 1000
WORKDIR /work
ENTRYPOINT ["sparring"]
CMD ["--help"]
