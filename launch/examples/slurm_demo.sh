#!/usr/bin/env bash
# From nothing to an answer and back under SLURM: submit a server, wait until it is ready, ask it through an SSH tunnel,
# end it. On a login machine, with a Python that has the package openai:
#
#   ACCOUNT=mine launch/examples/slurm_demo.sh --gpus 1 --model-path GSAI-ML/LLaDA-8B-Instruct
#   launch/examples/slurm_demo.sh --gpus 1 model=demo      # the bundled checkpoint, nothing to fetch
#
# Arguments are those of launch/serve.sh. A key is made for this server where DLM_API_KEY is not set. The job is ended
# whatever happens, also by Ctrl-C.
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
  scancel --state=RUNNING --batch --signal=TERM "$job" || : # the batch script lets requests in hand finish
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
