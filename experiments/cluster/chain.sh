#!/bin/bash
# All stages of a variant as SLURM jobs, each waiting for the one before it: experiments/cluster/chain.sh [setting ...]
# Resources of all jobs: SBATCH_OPTIONS="--partition=gpu --nodes=4". A stage that is finished already ends at once, so a
# chain that broke is simply sent again.
set -euo pipefail
if [[ -n "${VENV:-}" ]]; then source "$VENV/bin/activate"; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
stages="${STAGES:-$(python -m vita_audio_pl.train scale=published "$@" --cfg job --package variant.stages | sed -n 's/^- //p')}"
before=()
for stage in $stages; do
    # shellcheck disable=SC2086  # several options in one variable
    job="$(sbatch --parsable "${before[@]}" ${SBATCH_OPTIONS:-} --job-name="vita-audio-$stage" \
        "$here/stage.sbatch" "stage=$stage" "$@")"
    job="${job%%;*}" # a federation adds its cluster's name
    echo "stage $stage: job $job"
    before=("--dependency=afterok:$job" "--kill-on-invalid-dep=yes")
done
