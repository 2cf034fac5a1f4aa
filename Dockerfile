# A server on a CPU: no model inside, no root, nothing written outside of the user's own folder. Linted (`make lint`), never built.
#
#   docker build -t vita-audio-pl .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/demo-full-seed1/sft/model:/model:ro" --stop-timeout 40 vita-audio-pl
#
# Settings follow the image's name (slots=4). Clients elsewhere want keys and TLS: -e VITA_AUDIO_PL_API_KEYS=..., or files that are
# mounted, as docs/talk.md says.
FROM python:3.11-slim-bookworm

# pip's own variable: an index that holds CPU builds of torch spares gigabytes
ARG PIP_INDEX_URL

WORKDIR /build
COPY constraints.txt ./
# torch comes first and pinned, so that no later step replaces it
RUN pip install --no-cache-dir -c constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY data_recipes data_recipes
COPY experiments experiments
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[serve]" && useradd --create-home --uid 10001 talk

USER 10001
WORKDIR /home/talk
ENV HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "vita_audio_pl.serve", "model=/model", "host=0.0.0.0"]
