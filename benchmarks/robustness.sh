#!/usr/bin/env bash
# What is claimed of kills, double starts, flipped bits and damaged files, measured on this machine and on this code.
#
#   benchmarks/robustness.sh                    all parts, one after another; hours on a laptop
#   benchmarks/robustness.sh preparation speed  some of them:
#
#   preparation   a preparation killed 20 times at random moments, and one in a store killed before each of its writes, are
#                 bit-equal to those that were not
#   starts        10 starts of two processes on one folder, one of eight, and as many where the holder is dead
#   killed        a chain with two ranks and four workers, killed, stopped and interrupted; two commands for one run
#   bits          60 flips in every stored file of a source, 10 in every file of a parent's model folder
#   speed         seconds a GB to verify from the page cache
#   folders       thousands of damaged model and codec folders of eight kinds
#   chain         20 kills of a chain of four stages, bit-equal
#   corpora       100,000 damaged corpora, recipes and mixtures
#   signals       SIGNALS (10) signals at random moments of a chain by itself, under torchrun and under srun, bit-equal; SEED (1)
#   slurm         a real SLURM of two nodes (as root): preemptions, cancelling, a lost node, the end of a job's time, an array
#   nodes         nodes that come and go: torchrun's, and one of a Ray cluster that prepares a source
#
# PYTHON chooses the interpreter, with the package's `dev` extra; GB (1) is how much `speed` reads, in TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
GB=${GB:-1}
PARTS="preparation starts killed bits speed folders chain corpora signals slurm nodes"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck disable=SC2086
[ "$#" -gt 0 ] || set -- $PARTS
for part in "$@"; do
  case " $PARTS " in
    *" $part "*) ;;
    *)
      echo "robustness.sh: '$part' is no part; choose among ${PARTS// /, }" >&2
      exit 2
      ;;
  esac
done
failed=()

tests() { # arguments of pytest; -s, since tests print what they measured
  "$PYTHON" -m pytest -n 0 -s -q -p no:cacheprovider -o console_output_style=classic -m "slow or not slow" "$@"
}

speed() { # a folder of one file, written once and then compared three times
  local folder
  folder=$(mktemp -d)
  head -c "${GB}000000000" /dev/urandom >"$folder/weights.bin"
  "$PYTHON" -m vita_audio_pl.checksums folder="$folder" write=true
  for _ in 1 2 3; do "$PYTHON" -m vita_audio_pl.checksums folder="$folder" || return 1; done
  rm -r "$folder"
}

echo "$(date -u '+%Y-%m-%d %H:%M') UTC, $(git rev-parse --short HEAD 2>/dev/null || echo 'no commit')," \
  "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1) x $(nproc --all), load $(cut -d' ' -f1-3 /proc/loadavg)"
for part in "$@"; do
  echo "== $part"
  before=$SECONDS
  case $part in
    preparation) tests tests/data/test_prepare_source.py tests/data/test_remote.py -k "killed_anywhere or killed_before" ;;
    starts) tests tests/storage/test_lease.py -k start_together ;;
    killed) tests tests/end_to_end/test_stopping.py ;;
    bits) tests tests/data/test_stored_bytes.py tests/training/test_damaged_models.py tests/storage/test_checksums.py -k flipped ;;
    speed) speed ;;
    folders) tests tests/foreign/test_mutated_folders.py -k 4000 ;;
    chain) tests tests/end_to_end/test_killed_chain.py ;;
    corpora) tests tests/data/test_mutated_corpora.py -k 100000 ;;
    signals) tests tests/cluster/test_random_signals.py ;;
    slurm) tests tests/cluster/test_real_slurm.py tests/cluster/test_real_slurm_long.py tests/data/test_prepare_command.py -k real_slurm ;;
    nodes) tests tests/cluster/test_elastic.py tests/data/test_ray_cluster.py ;;
  esac || failed+=("$part")
  echo "== $part: $((SECONDS - before)) s by the clock"
done
times >"${TMPDIR:-/tmp}/times.$$" # in a pipe it would be another shell's
echo "processor, user and system, of all parts: $(tail -1 "${TMPDIR:-/tmp}/times.$$")"
rm "${TMPDIR:-/tmp}/times.$$"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "robustness.sh: failed: ${failed[*]}" >&2
  exit 1
fi
