#!/usr/bin/env bash
# What only a GPU can show: training steps at real sizes, attention kernels, Liger, engines on one device, decoding.
#
#   benchmarks/gpu.sh                    all parts on one GPU of 80 GB; about 25 minutes
#   benchmarks/gpu.sh training decoding  some parts: training, liger, attention, engines, decoding
#   SMOKE=1 benchmarks/gpu.sh            the same commands at toy sizes on a CPU, to see that they run
#
# Random weights; nothing is downloaded. PYTHON chooses the interpreter, OUT the folder of the results (a table in
# OUT/log.txt, JSON files beside it), PEAK_TFLOPS what the device can do in bfloat16 (989: H100 and H200, dense), DATA the
# folder of the data. A machine that has no network needs, beside torch>=2.11 and transformers>=5.17 with what they need:
#
#   all parts   hydra-core omegaconf antlr4-python3-runtime==4.9.3 rich soundfile soxr cffi fsspec jinja2
#   liger       liger-kernel>=0.8.5 (and triton, which torch brings)
#   decoding    matplotlib
#   engines     lightning lightning-utilities torchmetrics psutil tensorboard matplotlib; for its ZeRO runs
#               deepspeed hjson py-cpuinfo einops msgpack ninja pydantic
#               (webdataset and braceexpand are for what=data alone, wandb for none of this)
#   data        engines: the whole folder spoken_world_smoke, made by python -m vita_audio_pl.prepare
#               data=spoken_world_smoke, in DATA (./data unless told); git ignores it, so it has to be carried to a machine
#               that has no espeak-ng and flite to make it with
#
# What is missing is said at the start, and only the parts that need it are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/benchmark/gpu}
DATA=${DATA:-data}
PEAK_TFLOPS=${PEAK_TFLOPS:-989}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1
PARTS="training liger attention engines decoding"
if [ "$#" -eq 0 ]; then
  # shellcheck disable=SC2086
  set -- $PARTS
fi
for part in "$@"; do
  case " $PARTS " in
    *" $part "*) ;;
    *)
      echo "gpu.sh: '$part' is no part; choose among ${PARTS// /, }" >&2
      exit 2
      ;;
  esac
done
mkdir -p "$OUT"
failed=()
left_out=()

run() { # name, arguments of python -m: a part that fails leaves the others running
  local name=$1
  shift
  echo "== $name: $*" | tee -a "$OUT/log.txt"
  "$PYTHON" -m "$@" 2>&1 | tee -a "$OUT/log.txt" || failed+=("$name")
}

has() { # what for, modules: whether all can be imported; says which cannot
  local what=$1 missing=()
  shift
  for module in "$@"; do
    "$PYTHON" -c "import importlib.util as i, sys; sys.exit(i.find_spec('$module') is None)" || missing+=("$module")
  done
  if [ "${#missing[@]}" -eq 0 ]; then return 0; fi
  echo "gpu.sh: $what is left out, because $PYTHON has no ${missing[*]}" | tee -a "$OUT/log.txt" >&2
  left_out+=("$what")
  return 1
}

can_run() { # part
  case $1 in
    liger)
      if [ -n "${SMOKE:-}" ]; then return 1; fi # Liger has no CPU kernel
      has liger liger_kernel
      ;;
    decoding) has decoding matplotlib ;;
    engines)
      if [ ! -d "$DATA/spoken_world_smoke/shards" ] && ! command -v flite >/dev/null; then
        echo "gpu.sh: engines is left out, because $DATA/spoken_world_smoke/shards is not there, nor flite and espeak-ng to make it" |
          tee -a "$OUT/log.txt" >&2
        left_out+=(engines)
        return 1
      fi
      has engines lightning torchmetrics psutil
      ;;
  esac
}

training_step() { # name, size, settings
  local name=$1 size=$2
  shift 2
  if [ -n "${SMOKE:-}" ]; then
    set -- benchmark_size.hidden_size=64 benchmark_size.length=256 benchmark_size.layers=1 repetitions=1 "$@"
  else
    set -- "benchmark_size=$size" "peak_tflops=$PEAK_TFLOPS" "$@"
  fi
  run "$name" vita_audio_pl.benchmark what=training naive=false "paths.data=$DATA" "output=$OUT/$name.json" "$@"
}

training() {
  local attention=flash
  if [ -n "${SMOKE:-}" ]; then attention=per_document; fi
  training_step training_0.5b gpu_0_5b "stages=[mtp1,mtp10,sft]" "attention=$attention"
  training_step training_7b gpu "stages=[mtp1,mtp10]" "attention=$attention"
  # weights, gradients and activations of all 7B parameters want more than one device: a shorter row shows the share
  training_step training_7b_sft gpu "stages=[sft]" "attention=$attention" benchmark_size.length=2048 \
    benchmark_size.heads=1 "objectives=[]"
}

liger() {
  training_step liger_0.5b gpu_0_5b "stages=[mtp10,sft]" "objectives=[]" liger=true
}

attention() {
  local kernels="flash flex sdpa per_document"
  if [ -n "${SMOKE:-}" ]; then kernels="sdpa per_document"; fi
  for kernel in $kernels; do
    training_step "attention_$kernel" gpu_0_5b "stages=[mtp10]" "attention=$kernel" "objectives=[]"
  done
}

engines() {
  local settings=(trainer.devices=1) trainers=(fsdp2) steps=20
  if [ -n "${SMOKE:-}" ]; then
    settings+=(trainer.accelerator=cpu trainer.precision=32-true)
    steps=2
  fi
  if has "engines' ZeRO" deepspeed; then trainers+=(deepspeed_zero2 deepspeed_zero3); fi
  for trainer in "${trainers[@]}"; do
    run "engine_$trainer" vita_audio_pl.train stage=chain data=spoken_world_smoke "trainer=$trainer" logger=csv \
      "${settings[@]}" per_stage.{align,mtp1,mtp10,sft}.steps=$steps \
      "run_name=gpu-$trainer" "paths.data=$DATA" "paths.runs=$OUT/runs" force=true
  done
}

decoding() {
  if [ -n "${SMOKE:-}" ]; then
    run decoding vita_audio_pl.benchmark what=decoding decoding_size.layers=2 decoding.new_tokens=24 \
      decoding.repetitions=1 decoding.first_chunks=1 "output=$OUT/decoding"
    return
  fi
  local on_gpu=(what=decoding decoding=published device=cuda dtype=bfloat16)
  for size in 0_5b 7b; do
    for constrain in false true; do
      run "decoding_${size}_constrain_$constrain" vita_audio_pl.benchmark "${on_gpu[@]}" "decoding_size=$size" \
        "decoding.constrain=[$constrain]" decoding.new_tokens=1024 "output=$OUT/decoding_${size}_constrain_$constrain"
    done
  done
  run decoding_7b_sessions vita_audio_pl.benchmark "${on_gpu[@]}" decoding_size=7b "decoding.sessions=[1,8]" \
    "decoding.modes=[boost]" decoding.new_tokens=512 "output=$OUT/decoding_7b_sessions"
}

has "every part" torch transformers hydra omegaconf antlr4 rich soundfile soxr || exit 1
ready=()
for part in "$@"; do
  if can_run "$part"; then ready+=("$part"); fi
done
for part in ${ready[@]+"${ready[@]}"}; do
  "$part"
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "failed: ${failed[*]}; see $OUT/log.txt" >&2
  exit 1
fi
if [ "${#left_out[@]}" -gt 0 ]; then
  echo "left out: ${left_out[*]}; numbers of the others are in $OUT"
else
  echo "all parts ran; numbers are in $OUT"
fi
