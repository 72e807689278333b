# docker build --file containers/torch-cuda.Dockerfile --tag polyak:torch-cuda .
# The mount below is BuildKit's. Debian 12's Docker needs to be told: DOCKER_BUILDKIT=1 docker build …
# A tag can be given to other bytes. For the same ones always, append @sha256:… to it, which is the "Digest" in
# docker buildx imagetools inspect debian:12.12-slim
ARG BASE=debian:12.12-slim
FROM $BASE
# RUN has these in its environment where they are given; provision.sh says what each is.
ARG POLYAK
ARG JUPYTER
ARG WHEELS
ARG PIP_INDEX_URL
ARG APT_MIRROR
RUN --mount=type=bind,target=/src,rw /src/containers/provision.sh torch-cuda
ENV PATH="/opt/polyak/bin:$PATH"
USER polyak
WORKDIR /var/lib/polyak
CMD ["polyak", "demo"]
