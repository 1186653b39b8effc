#!/usr/bin/env bash
# What happens on a TPU host: `setup` makes the environment, `run` runs ntk-jax with the run directory kept in a bucket.
# queue.sh calls both on all hosts of a slice over ssh; they can be used by hand as well.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'HELP'
Usage: tpu/worker.sh setup [--python 3.12] [--nfs SERVER:/PATH] [--data gs://BUCKET/FOLDER]
       tpu/worker.sh run --config FILE --out DIR [--bucket gs://BUCKET/FOLDER] [OPTIONS] [-- --key=value ...]

setup: makes .venv in the checkout with ntk_jax[tpu,buckets], and what is asked for:
--python VERSION   of the environment (default 3.12; uv fetches it where the system has none)
--nfs SERVER:/PATH mount this NFS share (Filestore) at /mnt/ntk_jax, for run directories that all hosts see
--data ADDRESS     copy this folder of a bucket to data/ in the checkout

run: one `ntk-jax run` on this host, from the checkout's folder.
--config FILE      the config
--out DIR          the run directory: a folder or gs://BUCKET/FOLDER; with several hosts one that all see: --nfs at setup,
                   then /mnt/ntk_jax/...
--bucket ADDRESS   bring the run directory from there at the start, and keep a copy there: every so often and at the end
--every SECONDS    how often (default 300)
--command NAME     run (default), or one stage
--dry-run          print the commands, run nothing
HELP
}

fail() {
  echo "worker.sh: error: $*; see --help" >&2
  if [ "${verb:-}" = run ] && [ "$dry_run" = no ]; then mkdir -p "$state" && echo 2 >"$state/exit"; fi
  exit 2
}

die() { # not the user's mistake: worth another attempt
  echo "worker.sh: error: $*" >&2
  if [ "$verb" = run ]; then echo 1 >"$state/exit"; fi
  exit 1
}

show() { # the command as one would type it
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

do_it() {
  if [ "$dry_run" = yes ]; then show "$@"; else "$@"; fi
}

state=${NTK_STATE:-$HOME/.ntk_jax} # pid and exit code of the run, for queue.sh and the next run
verb=${1:-}
[ $# -eq 0 ] || shift
dry_run=no config='' out='' bucket='' every=300 command=run python=3.12 nfs='' data=''
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) verb=help ;;
    --dry-run) dry_run=yes ;;
    --config | --out | --bucket | --every | --command | --python | --nfs | --data)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
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

attribute() { # an attribute of this VM, where jax looks too; fails elsewhere
  curl --silent --fail --max-time 20 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

setup() {
  # The systems of TPU VMs come with Python 3.10, ntk_jax needs 3.11: uv brings a newer one.
  do_it python3 -m pip install --quiet --user --upgrade uv
  do_it python3 -m uv venv --quiet --allow-existing --python "$python" "$root/.venv"
  do_it python3 -m uv pip install --quiet --python "$root/.venv/bin/python" --editable "${root}[tpu,buckets]"
  if [ -n "$nfs" ]; then
    do_it sudo apt-get install --yes --quiet nfs-common
    do_it sudo mkdir -p /mnt/ntk_jax
    if [ "$dry_run" = yes ] || ! mountpoint --quiet /mnt/ntk_jax; then do_it sudo mount -t nfs "$nfs" /mnt/ntk_jax; fi
    do_it sudo chmod 1777 /mnt/ntk_jax
  fi
  if [ -n "$data" ]; then
    do_it mkdir -p "$root/data"
    do_it gcloud storage rsync --recursive "$data" "$root/data"
  fi
}

pull() { # the run directory from the bucket, if there is one
  local said
  if [ "$dry_run" = no ] && ! said=$(gcloud storage ls "$bucket/" 2>&1); then
    # Only what is known to be empty is begun anew: where the bucket cannot be reached, the run is there and not here.
    [[ $said == *"matched no objects"* ]] || die "cannot read $bucket: ${said##*$'\n'}"
    echo "worker.sh: nothing in $bucket yet" >&2
    return
  fi
  do_it mkdir -p "$out"
  do_it gcloud storage rsync --recursive "$bucket" "$out"
}

# A manifest says that its stage is finished, so it must not reach the bucket before the files it speaks of: the manifests
# are set aside before the rest is listed, and copied last. Half of anything else is harmless: a chunk that is not there is
# computed again, a checkpoint that does not read back is passed over. Left out: locks, and what is written to be renamed.
not_copied=('.*\.lock$' '(.*/)?\.shards/.*' '(.*/)?\..*\.tmp$' '.*orbax-checkpoint-tmp.*')
manifest='(.*/)?manifest\.json$'
exclude() { local IFS=, && echo "--exclude=$*"; }

push() {
  if [ "$dry_run" = yes ]; then
    show gcloud storage rsync --recursive "$(exclude "${not_copied[@]}" "$manifest")" "$out" "$bucket"
    echo "gcloud storage rsync --recursive <manifests of $out, as they were before> $bucket"
    return
  fi
  local aside path code=0
  [ -d "$out" ] || return 0
  aside=$(mktemp -d)
  while IFS= read -r -d '' path; do
    mkdir -p "$aside/$(dirname "$path")" && cp -p "$out/$path" "$aside/$path" || code=1
  done < <(cd "$out" && find . -name manifest.json -print0)
  [ "$code" = 0 ] &&
    gcloud storage rsync --recursive "$(exclude "${not_copied[@]}" "$manifest")" "$out" "$bucket" &&
    gcloud storage rsync --recursive "$aside" "$bucket" || code=$?
  rm -rf "$aside"
  return "$code"
}

children() { pgrep -P "$1" || true; }

stop_pushing() { # the copy under way with it: it would go on beside the last one
  [ -n "$pushing" ] || return 0
  local each
  for each in $(children "$pushing") "$pushing"; do kill "$each" 2>/dev/null || true; done
  wait "$pushing" 2>/dev/null || true
  pushing=
}

end() { # of several processes, jax answers SIGTERM itself and does not end: 10 s, then SIGKILL
  kill -TERM "$1" 2>/dev/null || true
  for _ in {1..50}; do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.2
  done
  kill -KILL "$1" 2>/dev/null || true
}

end_earlier() { # a run that outlived the ssh connection it was started by would hold the run directory
  local pid
  pid=$(cat "$state/pid" 2>/dev/null || true)
  if [ -n "$pid" ] && grep -q ntk-jax "/proc/$pid/cmdline" 2>/dev/null; then
    echo "worker.sh: ending the earlier run, process $pid" >&2
    end "$pid"
  fi
}

stopped() { # a machine that is preempted says so half a minute before: perhaps enough for a last copy
  trap '' TERM HUP INT
  end "$child"
  wait "$child" 2>/dev/null || true
  stop_pushing
  if [ -n "$bucket" ] && [ "$index" = 0 ]; then push || true; fi
  exit 143
}

run() {
  [ -n "$config" ] || fail "no config: give --config FILE"
  [ -n "$out" ] || fail "no run directory: give --out DIR"
  if [[ $out == *://* && $out != gs://?*/?* ]]; then fail "--out $out: give a folder, or gs://BUCKET/FOLDER"; fi
  if [[ $out == gs://* && -n $bucket ]]; then fail "--out $out is in a bucket already; leave --bucket out"; fi
  [[ -z $bucket || $bucket == gs://?* ]] || fail "--bucket $bucket: give gs://BUCKET/FOLDER"
  [[ $every =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--every $every: give a number of seconds"
  bucket=${bucket%/}
  local line=(ntk-jax "$command" "$config" --out "$out" "${overrides[@]}")
  # with several hosts also --coordinator, --processes and --process, below
  if [ "$dry_run" = yes ]; then
    show cd "$root"
    show . tpu/flags.env
    if [ -n "$bucket" ]; then pull; fi
    show "${line[@]}"
    if [ -n "$bucket" ]; then push; fi
    return
  fi

  local addresses first hosts=1 code=0
  mkdir -p "$state"
  rm -f "$state/exit"
  # Who there is on the slice, from where jax looks too (jax/_src/clusters/cloud_tpu_cluster.py). Not a TPU VM: one host.
  index=$(attribute agent-worker-number || echo 0)
  addresses=$(attribute worker-network-endpoints || true)
  if [[ $addresses == *,* ]]; then
    hosts=$(tr ',' '\n' <<<"$addresses" | wc -l)
    [[ $out == /mnt/* ]] ||
      fail "this slice has $hosts hosts, and $out is for one: give --nfs at setup and --out /mnt/ntk_jax/..."
    first=${addresses%%,*} # an address, or name:id:address
    line+=(--coordinator "${first##*:}:8482" --processes "$hosts" --process "$index")
  fi
  cd "$root"
  PATH=$root/.venv/bin:$PATH
  # shellcheck source=tpu/flags.env
  . "$root/tpu/flags.env"
  end_earlier
  # Where all hosts see one folder, the first brings it and keeps its copy; the others' processes wait for it in jax.
  if [ -n "$bucket" ] && [ "$index" = 0 ]; then pull; fi

  pushing=
  if [ -n "$bucket" ] && [ "$index" = 0 ]; then
    # A preempted machine is gone with its disk: what was copied before is what the next one goes on from.
    while sleep "$every"; do push || echo "worker.sh: the copy to $bucket failed; tried again in $every s" >&2; done &
    pushing=$!
  fi
  "${line[@]}" &
  child=$!
  echo "$child" >"$state/pid"
  trap stopped TERM HUP INT
  wait "$child" || code=$?
  stop_pushing
  if [ -n "$bucket" ] && [ "$index" = 0 ]; then push || { [ "$code" != 0 ] || code=1; }; fi
  echo "$code" >"$state/exit" # queue.sh asks for it: what ssh returns for many hosts is not documented
  return "$code"
}

case $verb in
  setup) setup ;;
  run) run ;;
  help | -h | --help) usage ;;
  *) fail "say what to do: setup or run" ;;
esac
