# shellcheck shell=bash
# Choose and call the engine that builds and runs images: Docker if its daemon answers, otherwise buildah and podman.
# Sourced by scripts/image.
#
#   ENGINE   docker | buildah
#   STATE    the folder for state between calls; for buildah also the images

STATE=${BAFOGPT_IMAGE_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/bafogpt/image}
PACKAGES=(buildah podman runc skopeo containernetworking-plugins iptables mmdebstrap debian-archive-keyring)

say() { echo "image: $*" >&2; }
fail() {
    echo "image: $1" >&2
    echo " hint: $2" >&2
    exit 1
}

choose_engine() {
    ENGINE=${BAFOGPT_IMAGE_ENGINE:-}
    if [[ -z $ENGINE ]]; then
        ENGINE=buildah
        if docker info >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then ENGINE=docker; fi
    fi
    case $ENGINE in
    docker) ;;
    buildah) [[ $(id -u) == 0 ]] || fail "no Docker daemon answers, and without one images need root" \
        "sudo ./scripts/image …, or start Docker" ;;
    *) fail "there is no engine '$ENGINE'" "BAFOGPT_IMAGE_ENGINE=docker or buildah" ;;
    esac
    mkdir -p "$STATE/tmp"
    STATE=$(cd "$STATE" && pwd)
    if [[ $ENGINE == buildah ]]; then use_own_storage; fi
}

# give buildah and podman separate storage, apart from other images of this machine
use_own_storage() {
    local hard
    hard=$(ulimit -Hn)
    if [[ $hard == unlimited ]]; then hard=1048576; fi
    # skip_mount_home: do not mount the folder upon itself, because the mount would stay
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/store"\nrunroot = "%s/run"\n%s\n' "$STATE" "$STATE" \
        $'[storage.options.overlay]\nskip_mount_home = "true"' | replace "$STATE/storage.conf"
    # this machine's limits, because containers cannot raise them everywhere; runc and cgroupfs, because the crun of
    # Debian 12 refuses hybrid cgroups and there may be no systemd
    printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=4096:4096"]\n[engine]\n%s\n' "$hard" "$hard" \
        $'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"' | replace "$STATE/containers.conf"
    export CONTAINERS_CONF=$STATE/containers.conf CONTAINERS_STORAGE_CONF=$STATE/storage.conf TMPDIR=$STATE/tmp
    unset DOCKER_CONFIG DOCKER_HOST # podman fails if DOCKER_CONFIG does not exist
}

# replace a file atomically, because another call may read it
replace() {
    local new
    new=$(mktemp "$1.XXXXXX")
    cat >"$new"
    chmod 644 "$new"
    mv "$new" "$1"
}

need_engine() {
    [[ $ENGINE == docker ]] && return
    local missing=() tool
    for tool in buildah podman runc skopeo iptables mmdebstrap; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [[ ${#missing[@]} == 0 ]] && return
    command -v apt-get >/dev/null || fail "no Docker daemon answers, and ${missing[*]} are not installed" \
        "install Docker, or these with your system's package manager"
    say "no Docker here: installing ${PACKAGES[*]}"
    apt-get -o DPkg::Lock::Timeout=900 update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=900 install -y -qq --no-install-recommends \
        "${PACKAGES[@]}" >"$STATE/apt.log" 2>&1 ||
        fail "apt-get could not install them: $(tail -n 1 "$STATE/apt.log")" "apt-get install ${PACKAGES[*]}"
}

podman_or_docker() { if [[ $ENGINE == docker ]]; then docker "$@"; else podman "$@"; fi; }

# exists IMAGE: in this engine's storage
exists() { podman_or_docker image inspect "$1" >/dev/null 2>&1; }

# label IMAGE KEY
label() { podman_or_docker image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || true; }

# need_disk GIB WHAT: fail early instead of filling the disk
need_disk() {
    local folder=$STATE free
    if [[ $ENGINE == docker ]]; then
        folder=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || true)
        [[ -d $folder ]] || return 0 # a remote daemon
    fi
    free=$(($(df --output=avail -k "$folder" | tail -n 1) / 1024 / 1024))
    ((free >= $1)) || fail "$2 needs some $1 GiB, and $folder has $free GiB free" \
        "make room, or name another disk: BAFOGPT_IMAGE_STATE=/path ./scripts/image …"
}

loopback() { [[ $1 =~ ^(127\.0\.0\.1|localhost|\[::1\]):[0-9]+/ ]]; }

# remote_digest REFERENCE: from the registry. Fails with the registry's message on stderr.
remote_digest() {
    if [[ $ENGINE == docker ]]; then
        docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}'
    else
        local tls=()
        if loopback "$1"; then tls=(--tls-verify=false); fi
        timeout 60 skopeo inspect "${tls[@]}" --no-tags --format '{{.Digest}}' "docker://$(by_digest "$1")"
    fi
}

# skopeo takes a tag or a digest, not both
by_digest() { if [[ $1 == *:*@* ]]; then sed -E 's,:[^:/@]+@,@,' <<<"$1"; else echo "$1"; fi; }

# build_image DOCKERFILE TAG EPOCH [FLAGS…]
build_image() {
    local file=$1 tag=$2 epoch=$3 handed=$STATE/handed
    shift 3
    mkdir -p "$handed"
    "$(any_python)" docker/pip_settings.py constraints.txt "$handed"
    local flags=(--secret "id=pip,src=$handed/pip.conf" --build-context "wheels=$handed/wheels" -f "$file" -t "$tag")
    if [[ -s $handed/ca.pem ]]; then flags+=(--secret "id=ca,src=$handed/ca.pem"); fi
    if [[ $ENGINE == docker ]]; then
        docker buildx build --progress plain --load --build-arg "SOURCE_DATE_EPOCH=$epoch" "${flags[@]}" "$@" .
    else
        buildah bud --layers --isolation chroot --network host --timestamp "$epoch" \
            --build-arg "SOURCE_DATE_EPOCH=$epoch" "${flags[@]}" "$@" .
    fi
}

any_python() { if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else command -v python3; fi; }

# standin TAG: a base image from Debian packages, for machines without access to a registry
standin() {
    local tar=$STATE/standin.tar
    # shellcheck disable=SC2016 # $1 is the new root, given by mmdebstrap
    local tidy='cd "$1" && rm -rf var/lib/apt/lists/* var/cache/apt/* usr/share/man/* usr/share/locale/*'
    say "making a stand-in base of Debian 12 packages, without CUDA"
    command -v mmdebstrap >/dev/null || fail "mmdebstrap, which makes it, is not installed" \
        "sudo apt-get install mmdebstrap"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates --customize-hook="$tidy" \
        bookworm "$tar" || fail "mmdebstrap could not make it" "look at the messages above"
    podman_or_docker import -c 'LABEL bafogpt.standin=true' "$tar" "$1" >/dev/null
    rm -f "$tar"
}
