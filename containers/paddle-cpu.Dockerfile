# docker build --file containers/paddle-cpu.Dockerfile --tag polyak:paddle-cpu .
# A tag can be given to other bytes. For the same ones always, append @sha256:… to it, which is the "Digest" in
# docker buildx imagetools inspect debian:12.12-slim
FROM debian:12.12-slim
ARG WHEELS=""
RUN --mount=type=bind,target=/src,rw WHEELS="$WHEELS" /src/containers/provision.sh paddle-cpu
ENV PATH="/opt/polyak/bin:$PATH"
USER polyak
WORKDIR /var/lib/polyak
CMD ["polyak", "demo"]
