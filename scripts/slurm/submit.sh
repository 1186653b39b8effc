#!/usr/bin/env bash
# A whole run as a chain of Slurm jobs: training in one job, the pool in arrays of shards, each job begun when the one
# before has ended well.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'HELP'
Usage: scripts/slurm/submit.sh --config FILE --shards N [OPTIONS] [-- --key=value ...]

  scripts/slurm/submit.sh --config my.yaml --out /scratch/run --shards 32 --setup env.sh \
    --sbatch --partition=gpu --sbatch --time=12:00:00 --sbatch --gpus-per-node=1 -- --score.objective=probe

Submits, each job depending on the one before:
  1. warmup, and gradient (with select.methods kernel)
  2. preselect, an array of shards, then its merge (with preselect.method votes, or select.methods votes)
  3. what select.methods need of score, sketch, embed and losses, an array of shards each; pool, if neither of these
     nor preselect looks at the pool
  4. the merge of the shards, select, and align
  5. finetune, evaluate and report
The config says which of these there are: ntk_jax must be installed here too. Each job computes with the model, and gets
the same devices. When a chain has ended, the same command goes on: what is finished is skipped. While one of the same
run directory's name is in the queue, another is refused.

Option               Variable               Meaning
--config FILE        NTK_CONFIG             the config
--out DIR            NTK_OUT                the run directory (default: `out` of the config): a folder that all nodes see,
                                            gs://BUCKET/FOLDER or s3://BUCKET/FOLDER
--shards N           NTK_SHARDS             tasks of each array
--at-once N          NTK_AT_ONCE            at most so many tasks of an array at a time (default: no limit)
--setup FILE         NTK_SETUP              a shell file each job sources first: module load, virtual environment
--max-requeues N     NTK_MAX_REQUEUES       a job gives up after so many returns to the queue (default 50)
--sbatch OPTION      NTK_SBATCH             an option of sbatch for every job; repeat it (the variable: with spaces)
--logs DIR           NTK_LOGS               where the jobs' output goes (default: DIR of --out, and .logs; for a bucket
                                            its last part, here)
--python PROGRAM     NTK_PYTHON             a Python that has ntk_jax, to read the config (default python3)
--dry-run                                   print the commands and what each job runs, submit nothing
HELP
}

fail() {
  echo "submit.sh: error: $*; see --help" >&2
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
config=${NTK_CONFIG:-} out=${NTK_OUT:-} shards=${NTK_SHARDS:-} at_once=${NTK_AT_ONCE:-} setup=${NTK_SETUP:-}
max_requeues=${NTK_MAX_REQUEUES:-50} logs=${NTK_LOGS:-} python=${NTK_PYTHON:-python3}
read -ra everywhere <<<"${NTK_SBATCH:-}"
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --dry-run) dry_run=yes ;;
    --sbatch)
      [ $# -ge 2 ] || fail "$1 needs an option of sbatch"
      everywhere+=("$2")
      shift
      ;;
    --config | --out | --shards | --at-once | --setup | --max-requeues | --logs | --python)
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
[ -n "$shards" ] || fail "no number of shards: give --shards N or set NTK_SHARDS"
[[ $shards =~ ^[1-9][0-9]*$ ]] || fail "--shards $shards: give a number of at least 1"
[[ -z $at_once || $at_once =~ ^[1-9][0-9]*$ ]] || fail "--at-once $at_once: give a number of at least 1"
[ "$dry_run" = yes ] || command -v sbatch >/dev/null || fail "no sbatch here: run this where Slurm is, or give --dry-run"

# A mistake in the config ends here, in one line, and not in the queue.
facts=$("$python" - "$config" "${overrides[@]}" <<'PYTHON'
import sys

try:
    from ntk_jax.engine.config import load_config
    from ntk_jax.errors import UserError
    from ntk_jax.pipelines import all_pipelines, pipeline
    from ntk_jax.pipelines.select import arms
    from ntk_jax.selection.rankers import ranker_of
except ImportError as error:
    sys.exit(f"submit.sh: error: {sys.executable} has no ntk_jax ({error}); activate its environment or give --python")
select = pipeline("select")
others = [each.config.resolve() for each in all_pipelines() if each is not select]
try:
    config = load_config(sys.argv[1], select.config.resolve(), sys.argv[2:], others)
    for method in config.select.methods:
        ranker_of(method)
    arms.check(config)
except UserError as error:
    sys.exit(f"submit.sh: error: {error}")
stages = select.of(config)
before, after = stages[: stages.index("select")], stages[stages.index("select") :]
sharded = [name for name in before if select.stage(name).stores(config)]
print(config.out)
print(*(name for name in before if name not in sharded))
print(*sharded)
print(*(name for name in after if name not in ("finetune", "evaluate")))
PYTHON
) || exit 2
{
  read -r config_out
  read -ra first # a job of its own, before the pool is looked at
  read -ra sharded
  read -ra chosen # select and what follows from it alone
} <<<"$facts"
out=${out:-$config_out}
[ -n "$out" ] || fail "no run directory: give --out DIR, or set NTK_OUT or \`out\` in the config"
out=${out%/}
case $out in
  gs://*/* | s3://*/*) logs=${logs:-${out##*/}.logs} ;;
  *://*) fail "--out $out: give a folder that all nodes see, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER" ;;
  *) logs=${logs:-$out.logs} ;;
esac

previous=
chain=ntk-jax-$(basename "$out") # begins the name of every job
submit() { # submit NAME SBATCH_OPTIONS... -- ARGUMENTS_OF_JOB_SH...: sets `previous` to the job's id
  local name=$1 line
  shift
  # --parsable prints the id alone. kill-on-invalid-dep: when a job has failed, those that wait for it go too.
  line=(sbatch --parsable --job-name "$chain.$name" --kill-on-invalid-dep=yes "${everywhere[@]}")
  if [ -n "$previous" ]; then line+=("--dependency=afterok:$previous"); fi
  while [ "$1" != -- ]; do
    line+=("$1")
    shift
  done
  shift
  local job=("$here/job.sh" --config "$config" --out "$out" --max-requeues "$max_requeues")
  if [ -n "$setup" ]; then job+=(--setup "$setup"); fi
  job+=("$@")
  if [ ${#overrides[@]} -gt 0 ]; then job+=(-- "${overrides[@]}"); fi
  if [ "$dry_run" = yes ]; then
    previous="<id of $name>"
    show "${line[@]}" "${job[@]}"
    env -u SLURM_ARRAY_TASK_ID bash "${job[0]}" --dry-run "${job[@]:1}" | sed 's/^/  /'
    return
  fi
  previous=$("${line[@]}" "${job[@]}")
  previous=${previous%%;*} # behind it stands the cluster, where there are several
  echo "$previous  $name"
}

array=--array=0-$((shards - 1))${at_once:+%$at_once}
one=(--output "$logs/%x-%j.log")
many=(--output "$logs/%x-%A_%a.log")

if [ "$dry_run" = yes ]; then show mkdir -p "$logs"; else mkdir -p "$logs"; fi
# Two chains on one run directory would find it in use, and end each other.
if [ "$dry_run" = no ] && queued=$(squeue --noheader --user "$(id -un)" --format='%i %j' | grep -F " $chain."); then
  fail "jobs of $chain are in the queue (${queued%%$'\n'*}); wait, or cancel them: scancel --name or the job's id"
fi
if [ ${#first[@]} -gt 0 ]; then submit train "${one[@]}" -- "${first[@]}"; fi
merges=()
for stage in "${sharded[@]}"; do
  submit "$stage" "$array" "${many[@]}" -- --shards "$shards" "$stage"
  if [ "$stage" = preselect ]; then
    # the stages after it need it closed; its merge counts the votes, for which the model runs once more over the domain
    submit preselect-merge "${one[@]}" -- --merge preselect
  else
    merges+=(--merge "$stage")
  fi
done
submit select "${one[@]}" -- "${merges[@]}" "${chosen[@]}"
submit finetune "${one[@]}" -- finetune evaluate report
