#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster: fills in jobset.yaml and applies it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'HELP'
Usage: tpu/jobset.sh --name NAME --image IMAGE --accelerator LABEL --topology AxB --chips N --claim PVC --config FILE
                     --out DIR [OPTIONS] [-- --key=value ...]

  tpu/jobset.sh --name qwen3 --image us-docker.pkg.dev/me/repo/ntk_jax --accelerator tpu-v6e-slice --topology 4x4 \
    --chips 4 --claim runs --config /runs/qwen3.yaml --out /runs/qwen3 --spot

The cluster must have JobSet (v0.6 or newer) and a node pool with that accelerator and topology. The same command again
changes nothing while the JobSet is there; `kubectl delete jobset NAME`, then again, starts a finished one anew, and it
goes on from the run directory.

Option               Variable            Meaning
--name NAME          TPU_NAME            of the JobSet
--image IMAGE        IMAGE               a container image with ntk-jax, such as tpu/Dockerfile makes
--accelerator LABEL  TPU_ACCELERATOR     tpu-v6e-slice, tpu-v5p-slice, tpu-v5-lite-podslice or tpu-v4-podslice
--topology AxB       TPU_TOPOLOGY        of the slice: 2x4, 4x4 ... (v4 and v5p: 2x2x2 ...)
--chips N            TPU_CHIPS           of one host: 4, or 1 or 8 on hosts of that kind
--claim PVC          NTK_CLAIM           a ReadWriteMany volume claim (Filestore), mounted at /runs
--config FILE        NTK_CONFIG          the config, in the image or under /runs
--out DIR            NTK_OUT             the run directory, under /runs; on one host also gs://BUCKET/FOLDER, with the
                                         credentials of the pod's service account (Workload Identity)
--command NAME                           run (default), or one stage
--namespace NAME                         of the cluster (default: default)
--max-restarts N                         how many preemptions and other failures it survives (default 100)
--spot                                   on spot nodes
--dry-run                                print the command with the manifest, apply nothing
HELP
}

fail() {
  echo "jobset.sh: error: $*; see --help" >&2
  exit 2
}

dry_run=no spot=no name=${TPU_NAME:-} image=${IMAGE:-} accelerator=${TPU_ACCELERATOR:-} topology=${TPU_TOPOLOGY:-}
chips=${TPU_CHIPS:-} claim=${NTK_CLAIM:-} config=${NTK_CONFIG:-} out=${NTK_OUT:-} command=run namespace=default
max_restarts=100
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --dry-run) dry_run=yes ;;
    --spot) spot=yes ;;
    --name | --image | --accelerator | --topology | --chips | --claim | --config | --out | --command | --namespace | \
      --max-restarts)
      [ $# -ge 2 ] || fail "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
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

need() { # need VALUE WHAT OPTION VARIABLE PATTERN: what goes into the manifest must be what it seems
  [ -n "$1" ] || fail "no $2: give $3 or set $4"
  [[ $1 =~ ^$5$ ]] || fail "$3: $1 is no $2"
}
need "$name" "name" "--name NAME" TPU_NAME '[a-z]([a-z0-9-]*[a-z0-9])?'
need "$image" "image" "--image IMAGE" IMAGE '[A-Za-z0-9./:@_-]+'
need "$accelerator" "accelerator label" "--accelerator LABEL" TPU_ACCELERATOR 'tpu-[a-z0-9-]+'
need "$topology" "topology" "--topology AxB" TPU_TOPOLOGY '[1-9][0-9]*(x[1-9][0-9]*){1,2}'
need "$chips" "number of chips" "--chips N" TPU_CHIPS '[1-9][0-9]*'
need "$claim" "volume claim" "--claim PVC" NTK_CLAIM '[a-z0-9]([a-z0-9.-]*[a-z0-9])?'
need "$config" "config" "--config FILE" NTK_CONFIG '[^"\\]+'
need "$out" "run directory" "--out DIR" NTK_OUT '[^"\\]+'
need "$command" "command" "--command NAME" NTK_COMMAND '[a-z]+'
need "$namespace" "namespace" "--namespace NAME" "the default" '[a-z0-9-]+'
need "$max_restarts" "number" "--max-restarts N" "the default" '[0-9]+'
case $out in
  /runs/?* | gs://?*/?*) ;;
  gs://*) fail "--out $out: give gs://BUCKET/FOLDER, or a folder under /runs" ;;
  *) fail "--out $out would vanish with the pod: give a folder under /runs, or gs://BUCKET/FOLDER on one host" ;;
esac
dimensions=$(tr -dc x <<<"$topology" | wc -c)
case $accelerator in
  tpu-v4-podslice | tpu-v5p-slice) wanted=2 ;;
  tpu-v5-lite-podslice | tpu-v6e-slice) wanted=1 ;;
  *) wanted=$dimensions ;;
esac
[ "$dimensions" = "$wanted" ] || fail "--topology $topology: $accelerator has $((wanted + 1)) numbers in its topologies"
all=$((${topology//x/*}))
[ $((all % chips)) = 0 ] || fail "--topology $topology has $all chips, which $chips a host do not divide"
if [[ $out == gs://* ]] && [ "$all" != "$chips" ]; then
  fail "--out $out: the $((all / chips)) hosts need a run directory that all of them see; give a folder under /runs"
fi
[ "$dry_run" = yes ] || command -v kubectl >/dev/null || fail "no kubectl here: install it, or give --dry-run"

quoted() { # a string as JSON, which is YAML
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  echo "\"$text\""
}

list=
for word in ntk-jax "$command" "$config" --out "$out" "${overrides[@]}"; do list+=", $(quoted "$word")"; done
# shellcheck source=tpu/flags.env
. "$here/flags.env"
environment=
for variable in LIBTPU_INIT_ARGS JAX_DEFAULT_MATMUL_PRECISION; do
  [ -z "${!variable:-}" ] || environment+=", {name: $variable, value: $(quoted "${!variable}")}"
done

declare -A values=([NAME]=$name [NAMESPACE]=$namespace [MAX_RESTARTS]=$max_restarts [HOSTS]=$((all / chips))
  [CHIPS]=$chips [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology [IMAGE]=$image [CLAIM]=$claim
  [ENVIRONMENT]="[${environment#, }]" [COMMAND]="[${list#, }]")
fill() {
  local line key
  while IFS= read -r line; do
    if [[ $line == *'# --spot' ]]; then
      [ "$spot" = yes ] || continue
      line=${line%% # --spot}
    fi
    for key in NAME NAMESPACE MAX_RESTARTS HOSTS CHIPS ACCELERATOR TOPOLOGY IMAGE CLAIM ENVIRONMENT COMMAND; do
      line=${line//"\${$key}"/"${values[$key]}"} # COMMAND comes last, for it may hold anything
    done
    [[ $line == '#'* ]] || echo "$line"
  done <"$here/jobset.yaml"
}

if [ "$dry_run" = yes ]; then
  echo "kubectl apply --filename - <<'MANIFEST'"
  fill
  echo MANIFEST
else
  fill | kubectl apply --filename -
fi
