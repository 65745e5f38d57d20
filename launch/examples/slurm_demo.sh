#!/usr/bin/env bash
# A full round under SLURM: submit a server, wait until it is ready, query it through an SSH tunnel, stop it. Run it on a
# login machine, with a Python that has the openai package:
#
#   ACCOUNT=mine launch/examples/slurm_demo.sh --gpus 1 --model-path GSAI-ML/LLaDA-8B-Instruct
#   launch/examples/slurm_demo.sh --gpus 1 model=demo      # the bundled checkpoint, nothing to download
#
# Arguments are those of launch/serve.sh. If DLM_API_KEY is not set, a key is generated. The job is ended in any
# case, also on Ctrl-C.
set -euo pipefail

case ${1:-} in
  -h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for argument in "$@"; do
  if [ "$argument" = --local ]; then
    printf 'slurm_demo.sh: --local: this shows SLURM; launch/serve.sh --local starts a server here\n' >&2
    exit 2
  fi
done

if [ -z "${DLM_API_KEY:-}" ]; then
  DLM_API_KEY=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
fi
export DLM_API_KEY

submitted=$("$launch/serve.sh" "$@")
job=$(sed -n 's/^job \([0-9]*\);.*/\1/p' <<<"$submitted")
[ -n "$job" ] || {
  printf 'slurm_demo.sh: no job was submitted: %s\n' "$submitted" >&2
  exit 1
}
printf 'job %s is submitted\n' "$job"
connection=''
# shellcheck disable=SC2329  # the trap calls it
end() {
  [ -z "$connection" ] || kill "$connection" 2>/dev/null || :
  scancel --state=PENDING "$job" || :
  scancel --state=RUNNING --batch --signal=TERM "$job" || : # the batch script lets running requests finish
  printf 'job %s is told to end\n' "$job"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$launch/connect.sh" "$job" --wait "${DLM_WAIT_SECONDS:-1800}" -- \
  python "$launch/examples/openai_client.py" "What is 17 plus 25?" &
connection=$!
code=0
wait "$connection" || code=$?
connection=''
exit "$code"
