#!/usr/bin/env bash
# What only a GPU can show: training steps at real sizes, attention kernels, Liger, engines on one device, decoding.
#
#   benchmarks/gpu.sh                    all parts on one GPU of 80 GB; about 25 minutes
#   benchmarks/gpu.sh training decoding  some parts: training, attention, engines, decoding
#   SMOKE=1 benchmarks/gpu.sh            the same commands at toy sizes on a CPU, to see that they run
#
# Random weights; nothing is downloaded. PYTHON chooses the interpreter, OUT the folder of the results (a table in
# OUT/log.txt, JSON files beside it), PEAK_TFLOPS what the device can do in bfloat16 (989: H100 and H200, dense).
# The part `engines` wants the small spoken world in ./data (python -m vita_audio_pl.prepare data=spoken_world_smoke).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/benchmark/gpu}
PEAK_TFLOPS=${PEAK_TFLOPS:-989}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
mkdir -p "$OUT"
if [ "$#" -eq 0 ]; then set -- training attention engines decoding; fi
failed=()

run() { # name, arguments of python -m: a part that fails leaves the others running
  local name=$1
  shift
  echo "== $name: $*" | tee -a "$OUT/log.txt"
  "$PYTHON" -m "$@" 2>&1 | tee -a "$OUT/log.txt" || failed+=("$name")
}

training_step() { # name, size, settings
  local name=$1 size=$2
  shift 2
  if [ -n "${SMOKE:-}" ]; then
    set -- benchmark_size.hidden_size=64 benchmark_size.length=256 benchmark_size.layers=1 repetitions=1 "$@"
  else
    set -- "benchmark_size=$size" device=cuda dtype=bfloat16 "peak_tflops=$PEAK_TFLOPS" chunk_rows=2048 "$@"
  fi
  run "$name" vita_audio_pl.benchmark what=training naive=false "output=$OUT/$name.json" "$@"
}

training() {
  local attention=flash liger=true
  if [ -n "${SMOKE:-}" ]; then attention=per_document liger=false; fi
  training_step training_0.5b gpu_0_5b "stages=[mtp1,mtp10,sft]" "attention=$attention" "liger=$liger"
  training_step training_7b gpu "stages=[mtp1,mtp10]" "attention=$attention"
  # weights, gradients and activations of all 7B parameters want more than one device: a shorter row shows the share
  training_step training_7b_sft gpu "stages=[sft]" "attention=$attention" benchmark_size.length=2048 \
    benchmark_size.heads=1 "objectives=[]"
}

attention() {
  local kernels="flash flex sdpa per_document"
  if [ -n "${SMOKE:-}" ]; then kernels="sdpa per_document"; fi
  for kernel in $kernels; do
    training_step "attention_$kernel" gpu_0_5b "stages=[mtp10]" "attention=$kernel" "objectives=[]"
  done
}

engines() {
  local settings=(trainer.devices=1) steps=20
  if [ -n "${SMOKE:-}" ]; then
    settings+=(trainer.accelerator=cpu trainer.precision=32-true)
    steps=2
  fi
  for trainer in fsdp2 deepspeed_zero2 deepspeed_zero3; do
    run "engine_$trainer" vita_audio_pl.train stage=chain data=spoken_world_smoke "trainer=$trainer" \
      "${settings[@]}" per_stage.{align,mtp1,mtp10,sft}.steps=$steps \
      "run_name=gpu-$trainer" "paths.runs=$OUT/runs" force=true
  done
}

decoding() {
  if [ -n "${SMOKE:-}" ]; then
    run decoding vita_audio_pl.benchmark what=decoding decoding_size.layers=2 decoding.new_tokens=24 \
      decoding.repetitions=1 decoding.first_chunks=1 "output=$OUT/decoding"
    return
  fi
  for size in 0_5b 7b; do
    for constrain in false true; do
      run "decoding_${size}_constrain_$constrain" vita_audio_pl.benchmark what=decoding decoding=published \
        "decoding_size=$size" device=cuda dtype=bfloat16 decoding.graphs=true "decoding.constrain=[$constrain]" \
        decoding.new_tokens=1024 "output=$OUT/decoding_${size}_constrain_$constrain"
    done
  done
  run decoding_7b_sessions vita_audio_pl.benchmark what=decoding decoding=published decoding_size=7b device=cuda \
    dtype=bfloat16 "decoding.sessions=[1,8]" "decoding.modes=[boost]" decoding.new_tokens=512 "output=$OUT/decoding_7b_sessions"
}

for part in "$@"; do
  case $part in
    training | attention | engines | decoding) "$part" ;;
    *)
      echo "gpu.sh: '$part' is no part; choose among training, attention, engines, decoding" >&2
      exit 2
      ;;
  esac
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "failed: ${failed[*]}; see $OUT/log.txt" >&2
  exit 1
fi
echo "all parts ran; numbers are in $OUT"
