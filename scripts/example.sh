#!/usr/bin/env bash
# One method on people (and where it is for any domain on objects) that no training saw, beside a baseline: trains what
# the method pretrains and is not shipped, personalizes, and leaves a grid of pictures and a table.
# Called by `make example-METHOD`. SUBJECTS=12 takes more of them; STEPS=800 trains taming's network longer; FRESH=1 anew.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # see demo.sh
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"
export PATH
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS
export IMPRINT_ROOT="$PWD"

method="${1:-}"
subjects="${SUBJECTS:-6}"
faces=data/faces-64
objects=data/objects-64

pretrain=()  # what is trained first: a job file with overrides
encoder=null # what tuning starts from
sampling="{steps: 16, guidance_scale: 4.0, precision: auto}"
both=false # whether objects are shown as well
middle="timestep_logits: [-0.5, 1.0], precision: auto, mask_loss: false"
# The same pictures, steps and batch as E4T's tuning.
lora="{method: lora, steps: 15, batch_size: 16, lora: {learning_rate: 1.0e-2}, $middle}"
# A word says most where the noise is high.
word="{method: textual_inversion, steps: 40, batch_size: 8, learning_rate: 2.0e-2, timestep_logits: [1.0, 1.0], precision: auto}"
baseline="$lora"

case "$method" in
e4t)
    encoder=imprint-tiny-e4t-faces
    tuning="{method: e4t, steps: 15, batch_size: 16, $middle, learning_rates: {encoder: 1.0e-3, offsets: 3.0e-4, unet: 1.5e-4}}"
    ;;
domain_agnostic)
    encoder=imprint-tiny-domain-agnostic
    tuning="{method: domain_agnostic, steps: 12, batch_size: 16, $middle}"
    both=true
    ;;
profusion)
    encoder=imprint-tiny-profusion-faces
    tuning="{method: profusion, steps: 50, batch_size: 8, learning_rate: 1.5e-4, $middle}"
    ;;
taming)
    pretrain=(jobs/finetune_joint.yaml name=example-taming)
    encoder=runs/example-taming
    tuning="{method: taming}"
    ;;
dreambooth)
    tuning="{method: dreambooth, steps: 60, batch_size: 8, learning_rates: {unet: 1.0e-4}, prior: {images: 16, sampling: {steps: 12, precision: auto}}, $middle}"
    both=true
    ;;
lora)
    tuning="$lora"
    baseline="$word"
    both=true
    ;;
textual_inversion)
    tuning="$word"
    both=true
    ;;
*)
    echo "make example-METHOD: METHOD is one of e4t, domain_agnostic, profusion, taming, dreambooth, lora," \
        "textual_inversion; got '$method'" >&2
    exit 2
    ;;
esac

run() {
    printf '\n== imprint run'
    printf ' %q' "$@"
    printf '\n'
    imprint run "$@"
}

[[ -f "$faces/manifest.json" ]] || run jobs/prepare_faces.yaml 'sizes=[64]'
[[ -f "$objects/manifest.json" ]] || [[ "$both" == false && "$method" != taming ]] || run jobs/prepare_objects.yaml 'sizes=[64]'
if ((${#pretrain[@]})); then
    [[ "${FRESH:-0}" != 1 ]] || rm -rf "runs/example-$method"
    run "${pretrain[@]}" "training.steps=${STEPS:-400}" grid=null tracking.enabled=false
fi

common=("encoder=$encoder" "tuning=$tuning" "baseline=$baseline" "sampling=$sampling" "subjects=$subjects"
    "grid_subjects=$subjects" tracking.enabled=false)
run jobs/evaluate.yaml "name=example-$method-people" "shards=[$faces]" "calibration=[$faces]" "${common[@]}"
if [[ "$both" == true ]]; then
    run jobs/evaluate.yaml "name=example-$method-objects" "shards=[$objects]" "calibration=[$objects]" \
        'only={style: noto}' attributes=null 'scenes.template=a photo of {}, on a {background} background' "${common[@]}"
fi
echo
echo "the pictures: $(echo "$PWD"/runs/example-"$method"-*/grid.png)"
