#!/usr/bin/env bash
# The reports that docs/results.md is written from, by one command: trains what the encoder methods and their papers'
# ablations pretrain, where a run of that name is not finished, then draws and scores every method, baseline and ablation.
# What is finished is not done again. On two CPU cores this takes hours.
#   SUBJECTS=100  held-out people that every method and baseline is drawn of; likeness is judged among 100 always
#   ABLATED=100   of those, how many the ablations are drawn of
#   STEPS=1000    of each pretraining here, the whole methods' among them, so that ablations are compared with their equals
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"
export PATH
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS
export IMPRINT_ROOT="$PWD"

subjects="${SUBJECTS:-100}"
ablated="${ABLATED:-$subjects}"
steps="${STEPS:-1000}"

run() {
    printf '\n== imprint run'
    printf ' %q' "$@"
    printf '\n'
    imprint run "$@"
}

pretrain() { # NAME JOB [KEY=VALUE...]: a run of its own, unless it is finished
    local name="$1"
    shift
    if [[ ! -d "runs/$name/encoder" && ! -d "runs/$name/network" ]]; then
        run "$@" "name=$name" "training.steps=$steps" grid=null
    elif ! grep -qF "override: 'training.steps=$steps'" "runs/$name/job.yaml"; then
        echo "runs/$name was not trained for STEPS=$steps; say what it was trained for, or move it away" >&2
        exit 1
    fi
}

[[ -f data/faces-64/manifest.json ]] || run jobs/prepare_faces.yaml 'sizes=[64]'
[[ -f data/objects-64/manifest.json ]] || run jobs/prepare_objects.yaml 'sizes=[64]'

pretrain taming-faces jobs/finetune_joint.yaml
run jobs/benchmark.yaml "limit=$subjects"
run jobs/ablations.yaml "limit=$ablated"
run jobs/steps.yaml "limit=$ablated"

pretrain e4t-whole jobs/pretrain_encoder.yaml
pretrain e4t-without-refinement jobs/pretrain_encoder.yaml method.encoder.refinement=false
pretrain e4t-without-regularization jobs/pretrain_encoder.yaml method.regularization=0
pretrain e4t-without-offsets jobs/pretrain_encoder.yaml method.offsets.enabled=false
pretrain domain-agnostic-whole jobs/pretrain_domain_agnostic.yaml
pretrain domain-agnostic-without-contrastive jobs/pretrain_domain_agnostic.yaml method.contrastive.enabled=false
pretrain domain-agnostic-without-dual-path jobs/pretrain_domain_agnostic.yaml method.dual_path.enabled=false
pretrain domain-agnostic-without-hypernetwork jobs/pretrain_domain_agnostic.yaml method.hypernetwork.enabled=false
pretrain taming-without-cross-reference jobs/finetune_joint.yaml triplets.cross_reference=0
pretrain taming-without-dropping jobs/finetune_joint.yaml method.dropping.general=false
pretrain taming-attentions-alone jobs/finetune_joint.yaml method.whole_network=false
run jobs/ablations_pretraining.yaml "limit=$ablated"

reports=(runs/benchmark-faces runs/ablations-faces runs/steps-faces runs/ablations-pretraining)
imprint compare "${reports[@]}" --out runs/results.html
echo
echo "the reports, in $PWD: ${reports[*]/%//report.html} runs/results.html"
