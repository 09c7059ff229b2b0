# The image of jobs: base.Dockerfile and, last, the project's wheel, so that a change of code is a layer of some hundred
# kilobytes.
#
#   ./scripts/image build
#
# There is no USER line: on RunPod, SkyPilot puts its key into the home of the image's user and logs in as root, so the
# user must be root. `bafogpt` (uid 10001, sudo without a password) is for `run --user bafogpt`.
ARG BASE_IMAGE=localhost/bafogpt/base:dev

FROM ${BASE_IMAGE} AS wheel
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.pem \
    python3 -m venv /build-tools \
 && /build-tools/bin/pip install --no-cache-dir -c /usr/share/bafogpt/constraints.txt hatchling
COPY . /source
ARG SOURCE_DATE_EPOCH=0
RUN /build-tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index -w /dist /source

FROM ${BASE_IMAGE}
ARG SOURCE_DATE_EPOCH=0
ARG REVISION=unknown
# buildah does not notice a change in a mounted stage; the digest of the source invalidates its cache
ARG SOURCE=unknown
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist echo "source $SOURCE" \
 && pip install --no-cache-dir --no-deps --no-index /dist/*.whl \
 && python3 /usr/share/bafogpt/stamp.py revision="$REVISION" \
 && python3 /usr/share/bafogpt/licences.py >/usr/share/doc/bafogpt/licences.txt
ARG VERSION=unknown
LABEL org.opencontainers.image.title="bafogpt" \
      org.opencontainers.image.description="Trains a language model; made to be run by SkyPilot" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
CMD ["/bin/bash"]
