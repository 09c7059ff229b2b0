#!/usr/bin/env bash
# For the scripts beside it, which read it: what a registry says about an image.
set -euo pipefail

# digest_of IMAGE: its digest, or nothing where the registry says that it has no such image. Any other answer, and
# none, is an error: who takes it for "not there" would publish a second time, or move a tag that must not move.
digest_of() {
    local said
    if said=$(skopeo inspect --no-tags --format '{{.Digest}}' "${INSPECT_OPTIONS[@]}" "docker://$1" 2>&1); then
        tail -n 1 <<<"$said"
        return
    fi
    case ${said,,} in
    *"manifest unknown"* | *"name unknown"* | *"not found"*) ;;
    *)
        echo "registry: $(tail -n 1 <<<"$said")" >&2
        echo " hint: is it up, and are you logged in? docker login ${1%%/*}" >&2
        return 1
        ;;
    esac
}

# copy_image FROM TO: within the registry, the same bytes and so the same digest
copy_image() {
    skopeo copy --quiet --preserve-digests "${COPY_OPTIONS[@]}" "docker://$1" "docker://$2"
}

# in_output KEY=VALUE…: as outputs of the step, and on the terminal
in_output() {
    printf '%s\n' "$@" | tee -a "${GITHUB_OUTPUT:-/dev/null}"
}

# a registry on this machine has no certificate
INSPECT_OPTIONS=() COPY_OPTIONS=()
without_tls_on_loopback() {
    case $1 in
    127.0.0.1:* | localhost:*)
        INSPECT_OPTIONS=(--tls-verify=false)
        COPY_OPTIONS=(--src-tls-verify=false --dest-tls-verify=false)
        ;;
    esac
}
