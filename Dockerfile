# Builds an image that trains and predicts, and runs the quickstart if no command is given:
#   docker build -t r23d_jax .                                          # CPU
#   docker build -t r23d_jax:cuda --build-arg SET=requirements-lock.txt .   # CUDA 12, for docker run --gpus all
FROM python:3.12-slim
ARG SET=requirements-cpu-lock.txt
RUN useradd --create-home user && mkdir /work && chown user /work
WORKDIR /opt/r23d_jax
COPY requirements*.txt ./
RUN pip install --no-cache-dir --require-hashes -r "$SET"
COPY LICENSE README.md pyproject.toml ./
COPY configs configs
COPY r23d_jax r23d_jax
RUN pip install --no-cache-dir --no-deps .
USER user
WORKDIR /work
CMD ["r23d-jax", "train", "--config", "quickstart"]
