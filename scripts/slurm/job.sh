#!/usr/bin/env bash
#SBATCH --job-name=ntk-jax
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#
# Stages of one run as a Slurm job, or one shard of a stage as a task of a job array. Cut short by its time limit or a
# preemption, it goes back to the queue and later on from the last committed block.
#
# Slurm runs a copy of this file from its spool folder, so it can read no other file that lies beside it: what
# multinode.sh has in common with it stands in both.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: sbatch [SBATCH OPTIONS] scripts/slurm/job.sh --config FILE --out DIR [OPTIONS] [STAGE ...] [-- --key=value ...]

  sbatch scripts/slurm/job.sh --config my.yaml --out /scratch/run warmup gradient
  sbatch --array=0-15 scripts/slurm/job.sh --config my.yaml --out /scratch/run --shards 16 score
  sbatch scripts/slurm/job.sh --config my.yaml --out /scratch/run --merge score select align

Runs `ntk-jax STAGE` for each stage, in the order given, and stops at the first that fails, with its exit code.
What stands behind -- overrides the config, as with ntk-jax itself.

Option             Variable            Meaning
--config FILE      NTK_CONFIG          the config
--out DIR          NTK_OUT             the run directory, on a file system that all nodes see, or gs://... or s3://...
--shards N                             of one stage, compute only shard i of N, i being the array task's index
--merge STAGE                          first put the shards of this stage together: preselect, score, sketch,
                                       embed, losses or pool; repeat it for several
--setup FILE       NTK_SETUP           a shell file to source first: module load, the virtual environment
--max-requeues N   NTK_MAX_REQUEUES    give up after so many returns to the queue (default 50)
--dry-run                              print the commands, run nothing
HELP
}

fail() {
  echo "job.sh: error: $*; see --help" >&2
  exit 2
}

show() { # the command as one would type it
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

dry_run=no
config=${NTK_CONFIG:-} out=${NTK_OUT:-} shards='' setup=${NTK_SETUP:-}
max_requeues=${NTK_MAX_REQUEUES:-50}
stages=() merges=() overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --dry-run) dry_run=yes ;;
    --merge)
      [ $# -ge 2 ] || fail "$1 needs a value"
      merges+=("$2")
      shift
      ;;
    --config | --out | --shards | --setup | --max-requeues)
      [ $# -ge 2 ] || fail "$1 needs a value"
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift
      ;;
    --)
      shift
      overrides=("$@")
      break
      ;;
    -*) fail "unknown option $1 (overrides of the config stand behind --)" ;;
    *) stages+=("$1") ;;
  esac
  shift
done
[ -n "$config" ] || fail "no config: give --config FILE or set NTK_CONFIG"
[ -n "$out" ] || fail "no run directory: give --out DIR or set NTK_OUT"
[ $((${#stages[@]} + ${#merges[@]})) -gt 0 ] || fail "nothing to do: name a stage, such as score"
[[ $max_requeues =~ ^[0-9]+$ ]] || fail "--max-requeues $max_requeues: give a number"
if [ -n "$shards" ]; then
  [[ $shards =~ ^[1-9][0-9]*$ ]] || fail "--shards $shards: give a number of at least 1"
  [ ${#stages[@]} = 1 ] && [ ${#merges[@]} = 0 ] || fail "--shards is of one stage: name one, and merge in a later job"
  shard=${SLURM_ARRAY_TASK_ID:-}
  if [ "$dry_run" = yes ]; then shard=${shard:-0}; fi
  [ -n "$shard" ] || fail "--shards needs a job array: submit with sbatch --array=0-$((shards - 1))"
  [ "$shard" -lt "$shards" ] || fail "array task $shard of $shards shards: submit with sbatch --array=0-$((shards - 1))"
fi

child=
requeue() {
  trap '' USR1
  echo "job.sh: Slurm is about to end this job; it stops here" >&2
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null || true # every committed block is on disk
    for _ in {1..100}; do # 20 s: of several processes, jax answers SIGTERM itself, and does not end
      kill -0 "$child" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  # A task must be named by array and index: the plain job id of one task is that of the whole array.
  local id=${SLURM_JOB_ID:?}
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then
    echo "job.sh: error: $id was requeued $max_requeues times already; give it more time, or raise --max-requeues" >&2
    exit 1
  fi
  scontrol requeue "$id"
  exit 0
}

run() {
  if [ "$dry_run" = yes ]; then
    show "$@"
    return
  fi
  # In the background, because bash answers a signal only between commands or in `wait`.
  "$@" &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=
  [ "$code" = 0 ] || exit "$code"
}

trap requeue USR1
if [ -n "$setup" ]; then
  if [ "$dry_run" = yes ]; then
    show . "$setup"
  else
    set +u # the activation scripts of others may not bear it
    # shellcheck disable=SC1090
    . "$setup"
    set -u
  fi
fi
for stage in "${merges[@]}"; do run ntk-jax "$stage" "$config" --out "$out" --merge "${overrides[@]}"; done
for stage in "${stages[@]}"; do
  if [ -n "$shards" ]; then
    run ntk-jax "$stage" "$config" --out "$out" --shard "$shard/$shards" "${overrides[@]}"
  else
    run ntk-jax "$stage" "$config" --out "$out" "${overrides[@]}"
  fi
done
