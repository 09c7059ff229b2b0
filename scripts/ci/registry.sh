#!/usr/bin/env bash
# Sourced by the scripts beside it: ask a registry about images, copy them.
set -euo pipefail

# digest_of IMAGE: its digest, or nothing if the registry has no such image. Any other answer is an error, because
# treating it as "missing" could publish twice or move a tag.
digest_of() {
    local output
    if output=$(skopeo inspect --no-tags --format '{{.Digest}}' "${INSPECT_OPTIONS[@]}" "docker://$1" 2>&1); then
        tail -n 1 <<<"$output"
        return
    fi
    case ${output,,} in
    *"manifest unknown"* | *"name unknown"* | *"not found"*) ;;
    *)
        echo "registry: $(tail -n 1 <<<"$output")" >&2
        echo " hint: is it up, and are you logged in? docker login ${1%%/*}" >&2
        return 1
        ;;
    esac
}

# copy_image FROM TO: within a registry, with the same digest
copy_image() {
    skopeo copy --quiet --preserve-digests "${COPY_OPTIONS[@]}" "docker://$1" "docker://$2"
}

# in_output KEY=VALUE…: set outputs of the step and print them
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
