#!/usr/bin/env bash
# Makes the Secrets that the manifests name, with fresh random values, in the namespace NAMESPACE (imprint). Secrets that
# are there stay as they are. Nothing is written to disk. DRY_RUN=1 prints what would be made.
#   k8s/create-secrets.sh                      random keys for the stores inside of the cluster
#   TENANT=acme k8s/create-secrets.sh          and an API key for the endpoints, shown once
set -euo pipefail
namespace="${NAMESPACE:-imprint}"
flags=()
if [[ "${DRY_RUN:-0}" == 1 ]]; then
    flags=(--dry-run=client -o yaml)
fi

make() { # make NAME --from-...=...
    local name="$1"
    shift
    if [[ "${DRY_RUN:-0}" != 1 ]] && kubectl get secret -n "$namespace" "$name" >/dev/null 2>&1; then
        echo "$name: is there already" >&2
        return
    fi
    if [[ "${DRY_RUN:-0}" == 1 ]]; then
        echo "---"
    fi
    kubectl create secret generic -n "$namespace" "$name" "${flags[@]}" "$@"
}

random() { # hex: goes into URLs and configuration files as it is
    openssl rand -hex "$1"
}

access="imprint-$(random 8)"
secret="$(random 32)"
make imprint-ray-token --from-file=auth_token=<(printf %s "$(random 32)")
make imprint-redis --from-file=password=<(printf %s "$(random 24)")
make imprint-postgres --from-file=password=<(printf %s "$(random 24)")
pair="$(kubectl get secret -n "$namespace" imprint-object-store imprint-object-store-client --ignore-not-found -o name 2>/dev/null | wc -l || true)"
if [[ "$pair" == 1 && "${DRY_RUN:-0}" != 1 ]]; then
    echo "imprint-object-store and imprint-object-store-client hold one pair of keys, and one of them is missing;" \
        "restore it, or delete the other" >&2
    exit 1
fi
make imprint-object-store --from-file=s3.json=<(
    printf '{"identities": [{"name": "imprint", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}' \
        "$access" "$secret"
)
make imprint-object-store-client \
    --from-literal=AWS_ENDPOINT_URL="${AWS_ENDPOINT_URL:-http://imprint-object-store:8333}" \
    --from-literal=AWS_DEFAULT_REGION="${AWS_DEFAULT_REGION:-us-east-1}" \
    --from-file=AWS_ACCESS_KEY_ID=<(printf %s "$access") --from-file=AWS_SECRET_ACCESS_KEY=<(printf %s "$secret")

# Of API keys the service knows the hashes only; the key itself is shown here and nowhere else.
tenant="${TENANT:-local}"
key="imp_$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')"
hash="$(printf %s "$key" | sha256sum | cut -d' ' -f1)"
if [[ "${DRY_RUN:-0}" == 1 ]] || ! kubectl get secret -n "$namespace" imprint-serve >/dev/null 2>&1; then
    echo "API key of $tenant: $key" >&2
fi
make imprint-serve --from-file=store-key=<(openssl rand -base64 32) \
    --from-file=keys.yaml=<(printf '%s: [%s]\n' "$tenant" "$hash")
