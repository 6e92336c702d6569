# relayd in a container.
#   docker build -t relayd .                 the service on the CPU
#   docker build --target test .             the same, and its unit tests and the quickstart's demo
#   docker build -t relayd:cuda --build-arg PRESET=cuda \
#     --build-arg BASE=nvidia/cuda:12.6.3-devel-ubuntu24.04 \
#     --build-arg RUNTIME=nvidia/cuda:12.6.3-base-ubuntu24.04 .
#   docker run --read-only --cap-drop=ALL -p 127.0.0.1:7070:7070 relayd --threads 8
#   docker run --read-only --cap-drop=ALL -p 127.0.0.1:7070:7070 --gpus all relayd:cuda --backend=cuda:0
# BASE and RUNTIME: Debian 12 or Ubuntu 24.04, the same release both times. deploy/compose.yaml runs
# it with the unix socket in a volume.
ARG BASE=debian:bookworm-slim
ARG RUNTIME=debian:bookworm-slim

FROM ${BASE} AS toolchain
ARG PRESET=release
COPY deploy/install-deps.sh /src/deploy/
RUN if [ "$PRESET" = cuda ]; then /src/deploy/install-deps.sh --cuda; else /src/deploy/install-deps.sh; fi

FROM toolchain AS build
ARG PRESET=release
WORKDIR /src
COPY . .
RUN cmake --preset "$PRESET" -B /build \
  && cmake --build /build --target relayd relayctl --parallel
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The libraries' packages by what the binaries are linked to: names differ between releases.
RUN install -D -s -t /out/bin /build/service/relayd /build/client/relayctl \
  && ldd /out/bin/* | sed -n 's|.* => .*/\([^/ ]*\) .*|*/\1|p' | sort -u \
  | xargs dpkg-query --search | sed 's/:.*//' | sort -u > /out/packages

FROM build AS test
RUN cmake --build /build --parallel \
  && ctest --test-dir /build --label-regex unit --output-on-failure \
  && RELAY_BUILD_DIR=/build deploy/quickstart.sh --no-build

FROM ${RUNTIME} AS runtime
COPY --from=build /out/packages /tmp/packages
RUN apt-get update -q \
  && xargs -a /tmp/packages env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends \
  && apt-get clean && rm -rf /var/lib/apt/lists/* /tmp/packages \
  && groupadd --system --gid 10001 relayd \
  && useradd --system --uid 10001 --gid relayd --no-create-home --shell /usr/sbin/nologin relayd \
  && install -d -o relayd -g relayd /run/relayd
COPY --from=build /out/bin/ /usr/local/bin/
USER 10001:10001
# Plaintext and open to whoever reaches it: publish the port to trusted peers only.
ENV RELAYD_LISTEN=0.0.0.0:7070 RELAY_TARGET=127.0.0.1:7070
EXPOSE 7070
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["relayctl", "health"]
# PID 1 is relayd itself: it drains on SIGTERM, which `docker stop` sends.
ENTRYPOINT ["relayd"]
