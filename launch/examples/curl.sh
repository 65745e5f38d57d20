#!/usr/bin/env bash
# Query a server with curl: its models, an answer, a stream, its algorithms, its load.
#
#   python -m dlm.serve &            # or launch/connect.sh JOB_ID
#   launch/examples/curl.sh "What is 17 plus 25?"
#
# The server's address is DLM_BASE_URL (http://127.0.0.1:8000/v1), its key DLM_API_KEY: it goes to curl through a pipe,
# because a command line is visible to everyone on the machine.
set -euo pipefail

case ${1:-} in
  -h | --help)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
base=${DLM_BASE_URL:-http://127.0.0.1:8000/v1}
question=${*:-What is 17 plus 25?}

ask() { # path, then curl's arguments
  { [ -z "${DLM_API_KEY:-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$DLM_API_KEY"; } |
    curl --silent --show-error --fail-with-body --config - "${@:2}" "${base%/v1}$1"
  printf '\n'
}
# The question as JSON: escape backslashes, quotes, line ends and tabs.
json=${question//\\/\\\\} json=${json//\"/\\\"} json=${json//$'\n'/\\n} json=${json//$'\t'/\\t}
body='{"messages": [{"role": "user", "content": "'$json'"}], "max_tokens": 64, "temperature": 0'

ask /v1/models
ask /v1/chat/completions --header 'Content-Type: application/json' --data "$body}"
ask /v1/chat/completions --no-buffer --header 'Content-Type: application/json' --data "$body, \"stream\": true}"
ask /generation/algorithms
ask /batch/stats
