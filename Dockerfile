# The image: one static binary for every subcommand, the licences of what is in it, and nothing else. No shell, no
# packages, no files that anybody may write to. `make image` builds it with docker, podman or buildah.
#
# It is reproducible: the same commit, RUST_IMAGE and platform give the same binary, bit for bit. For that RUST_IMAGE
# must be pinned, which a tag does not do; `make image` warns while it is not. A release is built with
#   make image IMAGE=registry.example/tidegate:1.2.3 RUST_IMAGE=docker.io/library/rust@sha256:…   (docker buildx imagetools inspect)
#
# Each platform is built by its own compiler: linux/amd64 and linux/arm64, on machines of that kind or under emulation.

ARG RUST_IMAGE=docker.io/library/rust:1.95-alpine

FROM ${RUST_IMAGE} AS build
# The C library, and a C compiler for ring and mimalloc; Python collects the licences.
RUN apk add --no-cache musl-dev gcc make python3
WORKDIR /src
COPY Cargo.toml Cargo.lock LICENSE ./
COPY benches benches
COPY image image
COPY src src
ARG TARGETARCH
# Seconds since 1970 of the commit: what dates there are, are this one.
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} CARGO_HOME=/cargo CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo
# A --target keeps these flags away from what only runs during the build. Functions keep their names, for
# backtraces; places where the build happened are not in it.
RUN set -eu; \
    case "${TARGETARCH:-$(uname -m)}" in \
      amd64|x86_64) target=x86_64-unknown-linux-musl ;; \
      arm64|aarch64) target=aarch64-unknown-linux-musl ;; \
      *) echo "no target is known for ${TARGETARCH}" >&2; exit 1 ;; \
    esac; \
    export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/src=/tidegate --remap-path-prefix=/cargo=/cargo"; \
    export CFLAGS="-ffile-prefix-map=/cargo=/cargo -ffile-prefix-map=/src=/tidegate"; \
    cargo build --locked --release --bin tidegate --target "$target"; \
    mkdir -p /out/run/tidegate; \
    cp "target/$target/release/tidegate" /out/tidegate; \
    [ "$(stat -c %s /out/tidegate)" -lt 29360128 ] || { echo "the binary is not small any more" >&2; exit 1; }; \
    python3 image/licences.py --target "$target" >/out/LICENCES; \
    find /out -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=https://github.com/tidegate/tidegate
LABEL org.opencontainers.image.title="tidegate" \
      org.opencontainers.image.description="A sidecar that admits only as much traffic at once as its application can carry" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /out/tidegate /out/LICENCES /
# For the control socket. In a pod a volume is mounted here, and the rest is read-only.
COPY --from=build --chown=15800:15800 /out/run/tidegate /run/tidegate
# As numbers: there is no /etc/passwd, and Kubernetes must see that it is not root. The capture container is told
# otherwise by its pod.
USER 15800:15800
ENTRYPOINT ["/tidegate"]
