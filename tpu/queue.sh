#!/usr/bin/env bash
# A run on a TPU slice from the queue of Cloud TPU, kept alive over preemptions: request, wait, set up, run, and from the
# start again when the slice is taken away, until the run is finished. The run goes on from the copy of its run directory.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'HELP'
Usage: tpu/queue.sh COMMAND [OPTIONS] [-- --key=value ...]

  tpu/queue.sh loop --name my-run --zone us-east5-a --type v6e-8 --spot \
    --config configs/qwen3_8b.yaml --out gs://my-bucket/runs/qwen3

COMMAND is one of
  loop     everything below until the run is finished, over again after every preemption; then the slice is deleted
  create   request the slice, unless it is requested already
  wait     until it is ACTIVE; a request that FAILED or was SUSPENDED is deleted and made anew
  setup    copy the code to all hosts and make the environment there
  run      run ntk-jax on all hosts, once
  state    print the state of the request, or NONE
  delete   delete the slice and its request

Option               Variable            Meaning
--name NAME          TPU_NAME            of the request, and of its one slice
--zone ZONE          ZONE                where
--project PROJECT    PROJECT_ID          whose (default: gcloud's)
--type TYPE          ACCELERATOR_TYPE    v6e-8, v5litepod-16, v5p-8, v4-8 ...
--runtime VERSION    RUNTIME_VERSION     software of the hosts (default: what the type needs)
--spot               SPOT=yes            a spot slice: cheaper, and may be taken away at any time
--create OPTION                          one more option of `queued-resources create`; repeat it
--config FILE        NTK_CONFIG          the config, as a path inside the checkout
--out DIR            NTK_OUT             the run directory: gs://BUCKET/FOLDER, which outlives the slice; on several hosts
                                         /mnt/ntk_jax/..., with --nfs
--bucket ADDRESS     NTK_BUCKET          gs://BUCKET/FOLDER that keeps a copy of a run directory on the hosts
--every SECONDS      NTK_EVERY           how often it is copied there (default 300)
--nfs SERVER:/PATH   NTK_NFS             an NFS share, mounted on all hosts at /mnt/ntk_jax
--data ADDRESS       NTK_DATA            gs://BUCKET/FOLDER copied to data/ in the checkout of every host
--source DIR         NTK_SOURCE          the checkout to copy (default: the one this script is in)
--git URL@REF        NTK_GIT             instead of copying a checkout, clone this
--python VERSION     NTK_PYTHON_VERSION  of the hosts' environment (default 3.12)
--poll SECONDS                           between two looks at the state (default 60)
--requests N                             loop gives up after so many requests (default 100)
--attempts N                             and after so many failures on a slice that is there (default 3)
--keep                                   do not delete the slice at the end
--dry-run                                print the commands in order, run nothing
HELP
}

fail() {
  echo "queue.sh: error: $*; see --help" >&2
  exit 2
}

die() {
  echo "queue.sh: error: $*" >&2
  exit 1
}

say() { echo "queue.sh: $*" >&2; }

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

verb=${1:-}
[ $# -eq 0 ] || shift
dry_run=no keep=no spot=${SPOT:-no}
name=${TPU_NAME:-} zone=${ZONE:-} project=${PROJECT_ID:-} type=${ACCELERATOR_TYPE:-} runtime=${RUNTIME_VERSION:-}
config=${NTK_CONFIG:-} out=${NTK_OUT:-} bucket=${NTK_BUCKET:-} every=${NTK_EVERY:-300} nfs=${NTK_NFS:-}
data=${NTK_DATA:-} source=${NTK_SOURCE:-$(dirname "$here")} git=${NTK_GIT:-} python=${NTK_PYTHON_VERSION:-3.12}
poll=60 requests=100 attempts=3
create_options=() overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) verb=help ;;
    --dry-run) dry_run=yes ;;
    --keep) keep=yes ;;
    --spot) spot=yes ;;
    --create)
      [ $# -ge 2 ] || fail "--create needs an option of queued-resources create"
      create_options+=("$2")
      shift
      ;;
    --name | --zone | --project | --type | --runtime | --config | --out | --bucket | --every | --nfs | --data | --source | \
      --git | --python | --poll | --requests | --attempts)
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
case $verb in
  loop | create | wait | setup | run | state | delete) ;;
  help | -h | --help)
    usage
    exit 0
    ;;
  *) fail "say what to do: loop, create, wait, setup, run, state or delete" ;;
esac

need() { # need VALUE WHAT OPTION VARIABLE
  [ -n "$1" ] || fail "no $2: give $3 or set $4"
}
need "$name" "name" "--name NAME" TPU_NAME
need "$zone" "zone" "--zone ZONE" ZONE
if [[ $verb == loop || $verb == create || $verb == wait ]]; then
  need "$type" "accelerator type" "--type TYPE" ACCELERATOR_TYPE
  # https://docs.cloud.google.com/tpu/docs/runtimes
  case ${runtime:-$type} in
    "$runtime") ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) fail "--type $type: its software version is not known here; give --runtime VERSION" ;;
  esac
fi
if [[ $verb == loop || $verb == run ]]; then
  need "$config" "config" "--config FILE" NTK_CONFIG
  need "$out" "run directory" "--out DIR" NTK_OUT
  if [[ $out == *://* && $out != gs://?*/?* ]]; then fail "--out $out: give a folder, or gs://BUCKET/FOLDER"; fi
  if [[ $out == gs://* && -n $bucket ]]; then fail "--out $out is in a bucket already; leave --bucket out"; fi
  [[ -z $bucket || $bucket == gs://?* ]] || fail "--bucket $bucket: give gs://BUCKET/FOLDER"
fi
if [ "$verb" = loop ] && [ "$spot" = yes ] && [ -z "$bucket" ] && [[ $out != /mnt/* && $out != gs://* ]]; then
  fail "a spot slice takes its disks with it: give --out gs://BUCKET/FOLDER, or --nfs and --out /mnt/ntk_jax/..."
fi
for number in every poll requests attempts; do
  [[ ${!number} =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--$number ${!number}: give a number"
done
if [[ $verb == loop || $verb == setup ]]; then
  if [ -n "$git" ]; then
    [[ $git == ?*@?* ]] || fail "--git $git: give URL@REF, such as https://example.org/ntk_jax.git@main"
  elif ! git -C "$source" rev-parse --git-dir >/dev/null 2>&1 || [ ! -f "$source/pyproject.toml" ]; then
    fail "--source $source is not a checkout of ntk_jax; give one, or --git URL@REF"
  fi
fi
[ "$dry_run" = yes ] || command -v gcloud >/dev/null || fail "no gcloud here: install the Google Cloud CLI, or give --dry-run"

place=(--zone "$zone")
if [ -n "$project" ]; then place+=(--project "$project"); fi
queue=(gcloud compute tpus queued-resources)
on_hosts() { # on_hosts WORKER COMMAND_LINE: a shell command on one host, or on all
  do_it gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --quiet --command="$2"
}

create() {
  local line=("${queue[@]}" create "$name" "${place[@]}" --node-id "$name" --accelerator-type "$type"
    --runtime-version "$runtime")
  if [ "$spot" = yes ]; then line+=(--spot); fi
  do_it "${line[@]}" "${create_options[@]}"
}

delete() { # --force: the slice too. Returns when both are gone
  do_it "${queue[@]}" delete "$name" "${place[@]}" --force --quiet
}

# The state of the request in `now`, or NONE. Only an answer that says so means that there is none: after a mere failure
# of the network a second slice must not be asked for.
look() {
  local said failures=0
  until said=$("${queue[@]}" describe "$name" "${place[@]}" --format='value(state.state)' 2>&1); do
    if [[ $said == *NOT_FOUND* || $said == *"not found"* ]]; then
      now=NONE
      return
    fi
    failures=$((failures + 1))
    [ "$failures" -lt 5 ] || die "gcloud cannot tell the state of $name: ${said##*$'\n'}"
    sleep "$poll"
  done
  now=${said##*$'\n'}
}

# `loop` asks whether these two succeeded, and there bash does not stop at a command that fails: hence the `return 1`.
setup() {
  local packed options=(--python "$python") line
  if [ -n "$nfs" ]; then options+=(--nfs "$nfs"); fi
  if [ -n "$data" ]; then options+=(--data "$data"); fi
  if [ -n "$git" ]; then
    local url=${git%@*} ref=${git##*@}
    line="test -d ntk_jax/.git || git clone --quiet ${url@Q} ntk_jax; cd ntk_jax && git fetch --quiet origin ${ref@Q} &&"
    line+=" git checkout --quiet --force FETCH_HEAD && cd .."
  else
    # What git knows of, as it is in the working tree: no environments, no runs.
    local listed=(git -C "$source" ls-files -z --cached --others --exclude-standard)
    local pack=(tar -C "$source" --ignore-failed-read --null --files-from=- --gzip --create --file)
    if [ "$dry_run" = yes ]; then
      packed=/tmp/ntk_jax.tar.gz
      echo "$(show "${listed[@]}") | $(show "${pack[@]}" "$packed")"
    else
      packed=$(mktemp -d)/ntk_jax.tar.gz
      "${listed[@]}" | "${pack[@]}" "$packed" || return 1
    fi
    do_it gcloud compute tpus tpu-vm scp "$packed" "$name:ntk_jax.tar.gz" "${place[@]}" --worker=all --quiet || return 1
    if [ "$dry_run" = no ]; then rm -r "$(dirname "$packed")"; fi
    line="mkdir -p ntk_jax && tar -xzf ntk_jax.tar.gz -C ntk_jax"
  fi
  on_hosts all "$line && bash ntk_jax/tpu/worker.sh setup $(show "${options[@]}")" || return 1
  if [ "$dry_run" = yes ]; then on_each setup "${options[@]}"; fi
}

run() {
  local options=(--config "$config" --out "$out" --every "$every")
  if [ -n "$bucket" ]; then options+=(--bucket "$bucket"); fi
  if [ ${#overrides[@]} -gt 0 ]; then options+=(-- "${overrides[@]}"); fi
  on_hosts all "bash ntk_jax/tpu/worker.sh run $(show "${options[@]}")" || return 1
  if [ "$dry_run" = yes ]; then on_each run "${options[@]}"; fi
}

on_each() { # what worker.sh does there
  local verb=$1
  shift
  echo "# on each host, in ~/ntk_jax:"
  bash "$here/worker.sh" "$verb" --dry-run "$@" | sed 's/^/  /'
}

wait_active() { # until ACTIVE; asks anew whenever the request is gone, has failed or was preempted
  local before=
  while :; do
    look
    [ "$now" = "$before" ] || say "$name: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      NONE)
        requested=$((requested + 1))
        [ "$requested" -le "$requests" ] || die "gave up on $name after $requests requests"
        # The first refusal is a mistake in the options or a quota; a later one may pass, as the request was good once.
        create || [ "$requested" -gt 1 ] || die "gcloud refused the request for $name; its message stands above"
        ;;
      # Neither will be served again: https://docs.cloud.google.com/tpu/docs/queued-resources
      FAILED | SUSPENDED) delete || say "$name could not be deleted yet" ;;
    esac
    [ "$now" = ACTIVE ] || sleep "$poll"
  done
}

gone() { # has the slice been taken away? Its own state says so before that of the request does
  local node
  look
  [ "$now" = ACTIVE ] || return 0
  node=$(gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(state)' 2>/dev/null || echo UNKNOWN)
  [ "$node" != READY ] && [ "$node" != UNKNOWN ]
}

loop() {
  local failures=0 code
  while :; do
    wait_active
    code=
    if setup; then
      if run; then
        say "$name: the run is finished"
        if [ "$keep" = no ]; then delete; fi
        return
      fi
      code=unknown
    fi
    if gone; then
      say "$name: preempted ($now); the run goes on when there is a slice again"
      if [ "$now" = ACTIVE ]; then delete || true; fi
      continue
    fi
    if [ -n "$code" ]; then code=$(on_hosts 0 'cat .ntk_jax/exit' 2>/dev/null | tr -dc 0-9 || true); fi
    if [ "$code" = 2 ]; then
      say "error: ntk-jax says above what to correct; the slice is still there (queue.sh run, or queue.sh delete)"
      exit 2
    fi
    failures=$((failures + 1))
    [ "$failures" -lt "$attempts" ] || die "failed $failures times on a slice that is there; the slice is still there"
    say "$name: failed (exit ${code:-unknown}), attempt $failures of $attempts"
    sleep "$poll"
  done
}

requested=0
if [ "$dry_run" = yes ]; then
  case $verb in
    loop)
      create
      show "${queue[@]}" describe "$name" "${place[@]}" "--format=value(state.state)"
      echo "# ... every $poll s until ACTIVE; FAILED or SUSPENDED: deleted as below, and from the start"
      setup
      run
      echo "# ... preempted meanwhile: deleted as below, and from the start"
      if [ "$keep" = no ]; then delete; fi
      ;;
    wait | state) show "${queue[@]}" describe "$name" "${place[@]}" "--format=value(state.state)" ;;
    *) "$verb" ;;
  esac
  exit 0
fi
case $verb in
  loop) loop ;;
  wait) wait_active ;;
  state)
    look
    echo "$now"
    ;;
  create)
    look
    if [ "$now" = NONE ]; then create; else say "$name is there already: $now"; fi
    ;;
  delete)
    look
    if [ "$now" = NONE ]; then say "there is no $name"; else delete; fi
    ;;
  setup | run) "$verb" ;;
esac
