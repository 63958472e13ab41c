# The installation of README.md in an image:
#   docker build --tag ndkd .
#   docker run --rm --volume "$PWD:/work" ndkd fit --config digits/teacher.yaml
FROM python:3.12-slim-bookworm

# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu leaves CUDA out
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /source
COPY . .
RUN python -m pip install --no-cache-dir .

RUN useradd --create-home --uid 1000 ndkd && install --directory --owner=ndkd --group=ndkd /work
USER 1000
WORKDIR /work
ENTRYPOINT ["ndkd"]
CMD ["--help"]
