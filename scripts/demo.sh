#!/usr/bin/env bash
# The main job, small: faces -> an encoder pretrained on a local Ray cluster -> held-out people personalized with it.
# Ends with the path of a grid of pictures and a table. It goes on where an earlier one stopped; FRESH=1 starts anew.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"
# A dozen processes import torch, Ray and diffusers here; without byte code each would compile them anew.
unset PYTHONDONTWRITEBYTECODE
export PATH
# Ray asks for tokens by itself where a token file lies in the home folder; this cluster is on loopback.
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
# Nothing is served that would have to be drained before the cluster ends.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
# The default, a minute, is short on a busy machine.
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=300
# The cluster is this one, and relative paths of job files start here, whatever the shell had set.
unset RAY_ADDRESS
export IMPRINT_ROOT="$PWD"

data=data/demo
run=demo
temporary="$(mktemp -d /tmp/imprint-demo.XXXXXX)" # short: Ray's sockets lie in it
head_id=

clean_up() {
    if [[ -n "$head_id" ]] && kill -0 "$head_id" 2>/dev/null; then
        kill -TERM "$head_id" 2>/dev/null || true
        wait "$head_id" 2>/dev/null || true
    fi
    rm -rf "$temporary"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n== %s\n' "$*"; }

free_ports() { # Ports that nothing listens on now, so that a cluster that runs already is left alone.
    python - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(held.getsockname()[1] for held in sockets))
PYTHON
}

wait_until_up() { # Until a job can be submitted: the dashboard answers some seconds before the agent that runs jobs.
    python - "$RAY_API_SERVER_ADDRESS" "$head_id" <<'PYTHON'
import json, os, sys, time, urllib.request
address, head = sys.argv[1], int(sys.argv[2])
body = json.dumps({"entrypoint": "true"}).encode()
request = urllib.request.Request(f"{address}/api/jobs/", body, {"Content-Type": "application/json"})
deadline = time.monotonic() + 180
while time.monotonic() < deadline:
    try:
        os.kill(head, 0)
        with urllib.request.urlopen(request, timeout=30):
            sys.exit(0)
    except ProcessLookupError:
        break
    except OSError:
        time.sleep(0.5)
sys.exit(1)
PYTHON
}

start_ray() { # In the background; wait_for_ray waits until jobs can be submitted.
    local gcs dashboard agent client
    read -r gcs dashboard agent client < <(free_ports 4)
    export RAY_API_SERVER_ADDRESS="http://127.0.0.1:$dashboard"
    local leash=() # The head ends with this script, however this one ends.
    if command -v setpriv >/dev/null; then
        leash=(setpriv --pdeathsig TERM)
    fi
    "${leash[@]}" ray start --head --block --node-ip-address 127.0.0.1 --port "$gcs" --dashboard-host 127.0.0.1 \
        --dashboard-port "$dashboard" --dashboard-agent-listen-port "$agent" --ray-client-server-port "$client" \
        --temp-dir "$temporary" --object-store-memory 1000000000 --disable-usage-stats \
        >"$temporary.log" 2>&1 &
    head_id=$!
}

wait_for_ray() {
    if wait_until_up; then
        rm -f "$temporary.log"
        return
    fi
    echo "demo: Ray did not start; its log:" >&2
    tail -n 30 "$temporary.log" >&2
    rm -f "$temporary.log"
    return 1
}

began=$SECONDS
if [[ "${FRESH:-0}" == 1 ]]; then
    rm -rf "${data:?}" "runs/${run:?}" "runs/$run-evaluation"
fi

say "Faces: pictures of people that never were, with captions and masks"
imprint run jobs/prepare_faces.yaml name="$run" out_dir="$data" 'sizes=[64]' train_identities=800 heldout_identities=100

say "Ray: a cluster on this machine"
start_ray
wait_for_ray

say "ray job submit --working-dir . -- jobs/pretrain_encoder.yaml"
# The whole job from nothing takes longer than a demo should; so it goes on from the encoder that it made before.
ray job submit --working-dir . -- jobs/pretrain_encoder.yaml name="$run" "data.shards=[$data/faces-64]" \
    "grid.shards=[$data/faces-64]" initialize_from=imprint-tiny-e4t-faces training.steps=30 grid.every=30 \
    training.optimizer.learning_rate=2.0e-4

say "ray job submit --working-dir . -- jobs/evaluate.yaml"
ray job submit --working-dir . -- jobs/evaluate.yaml name="$run-evaluation" encoder="runs/$run" \
    "shards=[$data/faces-64]" "calibration=[$data/faces-64]"

say "Done in $((SECONDS - began)) s"
cat "runs/$run-evaluation/table.md"
echo
echo "the grid of pictures: $PWD/runs/$run-evaluation/grid.png"
