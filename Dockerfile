# kart_rewards for machines that stable-retro has no wheel for; docs/integrating.md says how to use it.
#   docker build --platform linux/amd64 -t kart_rewards .
FROM python:3.11-slim-bookworm

RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app

# First what seldom changes. uv knows where PyTorch's builds without CUDA are, which pip has to be told.
COPY pyproject.toml ./
RUN uv pip install --system --no-cache --torch-backend=cpu -r pyproject.toml

COPY . .
RUN uv pip install --system --no-cache --no-deps --editable . \
    && mkdir -p runs \
    && useradd --create-home kart \
    && chown -R kart /app

USER kart
# Whoever runs the container as another user (--user) has no home there.
ENV HOME=/tmp PYTHONUNBUFFERED=1
VOLUME ["/app/integrations", "/app/runs"]
EXPOSE 6006
CMD ["python", "ppo_continuous_single_file.py"]
