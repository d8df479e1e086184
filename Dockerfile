# For NVIDIA GPUs. The wheels of jax bring CUDA; the machine needs NVIDIA's driver and its container toolkit.
#
#     docker build --tag bridge_jax .        # for a driver older than CUDA 13: --build-arg CUDA=cuda12
#     docker run --gpus all --volume "$PWD/runs:/bridge_jax/runs" bridge_jax \
#         python -m experiments.train --config=configs/quickstart.py:bridge --workdir=runs/first
#
# tests/test_project_files.py compares it with the files that it copies and with the extras of pyproject.toml. The image itself
# was not built by any test.
FROM python:3.11-slim

ARG CUDA=cuda13
# what the toolkit lets the container use
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /bridge_jax

# packages in a layer of their own, which a change of the code leaves as it is
COPY requirements-run.txt ./
RUN pip install --no-cache-dir -r requirements-run.txt "jax[${CUDA}]"

COPY . .
RUN pip install --no-cache-dir -e ".[${CUDA}]"

CMD ["python", "-m", "experiments.train", "--version"]
