# `docker build -t kdtw .`, then `docker run --rm kdtw generate "Dieses Paket enthält die Dokumentation."`
# or `docker run --rm -p 127.0.0.1:8000:8000 kdtw serve --host 0.0.0.0` for http://127.0.0.1:8000
# For a CPU. On NVIDIA devices, change the three lines that say CUDA.
FROM python:3.12-slim AS build
# CUDA: FROM nvidia/cuda:13.0.0-devel-ubuntu24.04 AS build, with python3-dev and python3-pip added to the packages below
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
# CUDA: KDTW_CUDA=1 (KDTW_CUDA_ARCHS="90" builds for one architecture, sooner)
RUN KDTW_CUDA=0 pip wheel --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
# CUDA: https://pypi.org/simple, whose torch brings CUDA; any other torch works beside the same wheel
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
ARG TORCH="torch==2.13.0"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH" \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[serve]" && rm -r /wheels
RUN useradd --create-home kdtw
USER kdtw
WORKDIR /home/kdtw
ENTRYPOINT ["kdtw"]
CMD ["--help"]
