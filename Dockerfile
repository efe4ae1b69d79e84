# For machines for which stable-retro has no wheel; docs/installing.md explains how to use it.
#   docker build --platform linux/amd64 -t kart_rewards .
FROM python:3.11-slim-bookworm

RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app

# Dependencies come first, because they seldom change. uv finds PyTorch's builds without CUDA; pip does not.
COPY pyproject.toml ./
RUN uv pip install --system --no-cache --torch-backend=cpu -r pyproject.toml

COPY . .
RUN uv pip install --system --no-cache --no-deps --editable . \
    && mkdir -p runs \
    && useradd --create-home kart \
    && chown -R kart /app

USER kart
# A user that is set with --user has no home directory in the image.
ENV HOME=/tmp PYTHONUNBUFFERED=1
VOLUME ["/app/integrations", "/app/runs"]
EXPOSE 6006
CMD ["python", "ppo_continuous_single_file.py"]
