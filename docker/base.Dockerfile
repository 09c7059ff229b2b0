# The stable part of the image: CUDA, Python, the pinned dependencies, and the packages that SkyPilot would install.
#
#   ./scripts/image base        builds it with Docker, or with buildah if Docker does not run
#
# Python is the distribution's (Ubuntu 24.04: 3.12; the stand-in for machines without a registry, Debian 12: 3.11).
# The "base" flavour of the CUDA image is enough: it has the CUDA runtime and the driver's forward compatibility, and
# torch's wheels bring cuBLAS, cuDNN and NCCL in the versions that torch was built with. CUDA 13.0 as those wheels.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143

# local wheels of the building machine, if scripts/image passes a folder
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS system
ARG DEBIAN_FRONTEND=noninteractive
ARG SOURCE_DATE_EPOCH=0
# rsync to fuse: the seven packages that SkyPilot installs on every machine, which takes half a minute if they are missing;
# sudo to lsof: tools that it and its users call. Not pinned: a nightly rebuild brings security updates.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
      rsync curl wget patch openssh-server python3-pip fuse \
      sudo procps iproute2 lsof \
 # a host key in the image would be public: each machine makes its own when sshd starts
 && rm -f /etc/ssh/ssh_host_* \
 && echo 'ssh-keygen -A >/dev/null 2>&1 || true' >>/etc/default/ssh \
 && useradd --create-home --uid 10001 --shell /bin/bash bafogpt \
 && echo 'bafogpt ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/bafogpt \
 && chmod 440 /etc/sudoers.d/bafogpt \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/cache/debconf/*-old \
      /var/lib/dpkg/*-old /var/log/dpkg.log /var/log/apt /var/log/alternatives.log /etc/*- /root/.cache /tmp/*
# sshd passes neither ENV nor, in a login shell, its own PATH to sessions
# hadolint ignore=SC2016
RUN echo 'PATH=/opt/bafogpt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' >>/etc/environment \
 && echo 'export PATH="/opt/bafogpt/bin:$PATH"' >/etc/profile.d/bafogpt.sh

# only the lists made from these files are copied on, so that other changes of pyproject.toml keep the large layers
FROM system AS requirements
COPY pyproject.toml constraints.txt docker/requirements.py /build/
RUN python3 /build/requirements.py /build/pyproject.toml train hub serve tracking >/build/requirements.txt \
 && python3 /build/requirements.py /build/pyproject.toml gpu >/build/requirements-gpu.txt

FROM system
ARG SOURCE_DATE_EPOCH=0
ENV PATH=/opt/bafogpt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1
COPY --from=requirements /build/requirements.txt /build/requirements-gpu.txt /build/constraints.txt \
     /usr/share/bafogpt/
# Secrets (pip's index and certificates) are mounted, never copied.
# torch and CUDA are most of the image: a separate layer is pulled in parallel with the rest.
# GPU kernels need triton (hundreds of MB), which only torch for CUDA includes, so they are installed with CUDA only.
# With SOURCE_DATE_EPOCH Python marks .pyc files with a hash of their source instead of a time that differs by build.
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.pem \
    python3 -m venv /opt/bafogpt \
 && pip install --no-cache-dir --find-links /wheels -c /usr/share/bafogpt/constraints.txt torch
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.pem \
    gpu=$(python -c 'import torch; print("-gpu" if torch.version.cuda else "")') \
 && pip install --no-cache-dir --find-links /wheels -c /usr/share/bafogpt/constraints.txt \
      -r /usr/share/bafogpt/requirements.txt -r "/usr/share/bafogpt/requirements$gpu.txt" uv \
 # SkyPilot downloads uv if it is not here
 && for home in /root /home/bafogpt; do \
      mkdir -p "$home/.local/bin" && ln -s /opt/bafogpt/bin/uv "$home/.local/bin/uv"; done \
 && chown -R bafogpt:bafogpt /home/bafogpt

COPY docker/licences.py docker/stamp.py /usr/share/bafogpt/
ARG BASE_IMAGE
ARG BASE_DIGEST=unknown
RUN python3 /usr/share/bafogpt/stamp.py base="$BASE_IMAGE" \
 && mkdir -p /usr/share/doc/bafogpt \
 && python3 /usr/share/bafogpt/licences.py >/usr/share/doc/bafogpt/licences.txt

ARG REVISION=unknown
ARG CONSTRAINTS=unknown
LABEL org.opencontainers.image.title="bafogpt-base" \
      org.opencontainers.image.source="https://github.com/bafogpt/bafogpt" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      bafogpt.constraints="${CONSTRAINTS}"
CMD ["/bin/bash"]
