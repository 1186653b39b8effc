#!/usr/bin/env bash
#SBATCH --job-name=ntk-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#
# One run over several nodes: one process a node, all of them one program on one mesh of all devices. For a model that
# does not fit on one node; to score a large pool faster, the job arrays of submit.sh need no network between nodes.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: sbatch --nodes=N [SBATCH OPTIONS] scripts/slurm/multinode.sh --config FILE --out DIR [OPTIONS] [-- --key=value ...]

  sbatch --nodes=4 --gpus-per-node=8 scripts/slurm/multinode.sh --config my.yaml --out /scratch/run -- --mesh.fsdp=8

Runs `ntk-jax run`, or another command, once on each node. What stands behind -- overrides the config.

Option             Variable            Meaning
--config FILE      NTK_CONFIG          the config
--out DIR          NTK_OUT             the run directory, on a file system that all nodes see
--command NAME     NTK_COMMAND         run (default), or one stage
--gpus N           NTK_GPUS            GPUs of a node (default: as Slurm says)
--setup FILE       NTK_SETUP           a shell file to source first: module load, the virtual environment
--max-requeues N   NTK_MAX_REQUEUES    give up after so many returns to the queue (default 50)
--dry-run                              print the commands, run nothing
HELP
}

fail() {
  echo "multinode.sh: error: $*; see --help" >&2
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
config=${NTK_CONFIG:-} out=${NTK_OUT:-} command=${NTK_COMMAND:-run} setup=${NTK_SETUP:-}
gpus=${NTK_GPUS:-${SLURM_GPUS_ON_NODE:-0}} max_requeues=${NTK_MAX_REQUEUES:-50}
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --dry-run) dry_run=yes ;;
    --config | --out | --command | --gpus | --setup | --max-requeues)
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
    *) fail "unknown argument $1 (overrides of the config stand behind --)" ;;
  esac
  shift
done
[ -n "$config" ] || fail "no config: give --config FILE or set NTK_CONFIG"
[ -n "$out" ] || fail "no run directory: give --out DIR or set NTK_OUT"
[[ $gpus =~ ^[0-9]+$ ]] || fail "--gpus $gpus: give the number of GPUs of a node"
[[ $max_requeues =~ ^[0-9]+$ ]] || fail "--max-requeues $max_requeues: give a number"

child=
requeue() { # as in job.sh
  trap '' USR1
  echo "multinode.sh: Slurm is about to end this job; it stops here" >&2
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null || true # srun passes it on to every node
    for _ in {1..100}; do # 20 s: of several processes, jax answers SIGTERM itself, and does not end
      kill -0 "$child" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then
    echo "multinode.sh: error: requeued $max_requeues times already; give it more time, or raise --max-requeues" >&2
    exit 1
  fi
  scontrol requeue "${SLURM_JOB_ID:?}"
  exit 0
}
trap requeue USR1

if [ -n "$setup" ] && [ "$dry_run" = yes ]; then
  show . "$setup"
elif [ -n "$setup" ]; then
  set +u # the activation scripts of others may not bear it
  # shellcheck disable=SC1090
  . "$setup"
  set -u
fi

# No --coordinator, --processes or --process: jax reads them from the variables that srun gives every task, the address
# of the coordinator being the first node of the step. Only the devices must be said: under Slurm jax takes one GPU for
# each process unless it is said otherwise (jax.distributed.initialize, local_device_ids), and here a process has them all.
if [ "$gpus" -gt 0 ]; then
  ids=$(seq -s, 0 $((gpus - 1)))
  if [ "$dry_run" = yes ]; then show export "JAX_LOCAL_DEVICE_IDS=$ids"; fi
  export JAX_LOCAL_DEVICE_IDS=$ids
fi
# Newer Slurm does not hand the CPUs of the job on to its steps (since 22.05, see --cpus-per-task in its manual).
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
# --kill-on-bad-exit: where one process has failed, the others would wait for it in the next collective.
line=(srun --ntasks-per-node=1 --kill-on-bad-exit=1 ntk-jax "$command" "$config" --out "$out" "${overrides[@]}")
if [ "$dry_run" = yes ]; then
  show "${line[@]}"
  exit 0
fi
"${line[@]}" & # in the background, because bash answers a signal only between commands or in `wait`
child=$!
code=0
wait "$child" || code=$?
if [ "$code" != 0 ]; then exit "$code"; fi
