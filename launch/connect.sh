#!/usr/bin/env bash
# Connect to a server started by launch/serve.sbatch: wait until it is ready, open an SSH tunnel, test it.
#
#   launch/connect.sh 12345                          # on the login machine, in the folder where sbatch was run
#   launch/connect.sh 12345 --login me@cluster       # from elsewhere; queries the login machine over SSH
#   launch/connect.sh 12345 -- python launch/examples/openai_client.py   # run this through the tunnel, then close it
#
#   --job-id ID         same as ID
#   --port N            port on this machine (default: the server's own)
#   --run-dir FOLDER    the server's run folder (default: $DLM_RUN_DIR, else outputs/serve/slurm-ID in the folder where
#                       the job was submitted)
#   --login USER@HOST   where squeue and the run folder are, and through which the tunnel goes
#   --wait SECONDS      how long to wait until the server is ready (1800)
#   --print             print how to connect, and exit
#
# A command after -- gets DLM_BASE_URL and OPENAI_BASE_URL. If the server has a key, export DLM_API_KEY.
# Exit codes: 0 success; 2 usage error; 3 no such job, or it ended; 4 not ready in time; 5 no connection; else the command's.
set -euo pipefail

die() {
  printf 'connect.sh: %s\n' "${*:2}" >&2
  exit "$1"
}
say() { printf '%s\n' "$*" >&2; }

job='' local_port='' run_dir=${DLM_RUN_DIR:-} login='' patience=1800 print='' command=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --job-id | --port | --run-dir | --login | --wait)
      [ $# -gt 1 ] || die 2 "$1 needs a value"
      case $1 in
        --job-id) job=$2 ;;
        --port) local_port=$2 ;;
        --run-dir) run_dir=$2 ;;
        --login) login=$2 ;;
        --wait) patience=$2 ;;
      esac
      shift
      ;;
    --print) print=yes ;;
    --)
      command=("${@:2}")
      [ ${#command[@]} -gt 0 ] || die 2 "-- is followed by a command"
      break
      ;;
    -*) die 2 "$1 is no option; see launch/connect.sh --help" ;;
    *)
      [ -z "$job" ] || die 2 "$1: there is a job already, $job"
      job=$1
      ;;
  esac
  shift
done
[ -n "$job" ] || die 2 "which job? launch/connect.sh JOB_ID"
[[ $job =~ ^[0-9]+$ ]] || die 2 "JOB_ID is a number, not $job"
[[ -z $local_port || $local_port =~ ^[0-9]+$ ]] || die 2 "--port $local_port is no number"
[[ $patience =~ ^[0-9]+$ ]] || die 2 "--wait $patience is no number of seconds"

# Runs a command on the cluster: here, or on the login machine.
there() {
  if [ -z "$login" ]; then
    "$@"
  else
    local words
    printf -v words '%q ' "$@"
    # shellcheck disable=SC2029  # the words are quoted for the remote shell
    ssh -n "$login" "$words"
  fi
}
for tool in ssh curl; do
  command -v "$tool" >/dev/null || die 2 "$tool is not on the PATH"
done
[ -n "$login" ] || command -v squeue >/dev/null ||
  die 2 "squeue is not on the PATH: run this on the login machine, or say --login USER@HOST"

# A flat field of server.json, read without Python, which a login machine may not have.
field() { sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p' <<<"${server//,/$'\n'}" | head -n 1; }

until_ready=$((SECONDS + patience)) told='' folder='' status='' node='' remote_port='' host=''
while :; do
  code=0
  found=$(there squeue --noheader --jobs "$job" --format '%T|%N|%Z' 2>&1) || code=$?
  [ -z "$login" ] || [ "$code" -ne 255 ] || die 5 "ssh $login does not work: $found"
  IFS='|' read -r state nodes workdir < <(sed -n '/|/{p;q}' <<<"$found") || :
  case $code,$found in
    0,*'|'*) ;;
    0,* | *'Invalid job id'*) die 3 "there is no job $job, or it has ended; its log tells why" ;;
    *) state=UNKNOWN ;;
  esac
  case $state in
    RUNNING)
      folder=${run_dir:-$workdir/outputs/serve/slurm-$job}
      server=$(there cat "$folder/server.json" 2>/dev/null) || server=''
      server=${server//$'\n'/ }
      status=$(field status)
      now="${status:-starting}"
      ;;
    PENDING | CONFIGURING) now="$state in the queue" ;;
    UNKNOWN) now="squeue does not know: ${found//$'\n'/ }" ;; # the controller may be busy or away for a while
    *) die 3 "job $job is $state" ;;
  esac
  [ "$now" = "$told" ] || say "job $job: $now"
  told=$now
  case $status in
    ready | degraded) break ;; # degraded: a worker is being restarted, the others answer
    stopped | draining) die 3 "the server of job $job is $status; see $folder/logs" ;;
  esac
  [ "$SECONDS" -lt "$until_ready" ] ||
    die 4 "job $job was not ready within $patience s (--wait): $now${folder:+; see its log and $folder}"
  sleep 2
done

host=$(field host) remote_port=$(field port)
[[ $remote_port =~ ^[0-9]+$ ]] || die 5 "$folder/server.json names no port"
node=$(there scontrol show hostnames "$nodes" 2>/dev/null) || node=''
node=${node%%$'\n'*} node=${node:-$nodes}
local_port=${local_port:-$remote_port}

# A server on loopback is reached from its own machine; one on the network, through the login machine too.
tunnel=(ssh -N -o ExitOnForwardFailure=yes -o ServerAliveInterval=30 -L)
case $host in
  127.* | localhost | ::1 | '')
    user=''
    [[ $login != *@* ]] || user=${login%@*}@
    tunnel+=("127.0.0.1:$local_port:127.0.0.1:$remote_port" ${login:+-J "$login"} "$user$node")
    ;;
  0.0.0.0 | ::) tunnel+=("127.0.0.1:$local_port:$node:$remote_port" "${login:-$node}") ;;
  *) tunnel+=("127.0.0.1:$local_port:$host:$remote_port" "${login:-$node}") ;;
esac
url=http://127.0.0.1:$local_port
printf -v shown '%q ' "${tunnel[@]}"
say "server: $node:$remote_port, model $(field model)"
say "tunnel: ${shown% }"
[ -n "$login" ] || say "from elsewhere: launch/connect.sh $job --login ${USER:-you}@$(hostname -f 2>/dev/null || hostname)"
if [ -n "$print" ]; then
  say "then:   curl $url/health"
  exit 0
fi

if (: <"/dev/tcp/127.0.0.1/$local_port") 2>/dev/null; then
  die 5 "something listens on port $local_port of this machine already: say --port N"
fi
"${tunnel[@]}" </dev/null &
pid=$!
children=("$pid")
trap 'kill "${children[@]}" 2>/dev/null || :' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for _ in $(seq 60); do
  kill -0 "$pid" 2>/dev/null || die 5 "the tunnel closed at once: what ssh said is above"
  code=$(curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' "$url/health") && break || code=''
  sleep 0.5
done
[ "${code:-}" = 200 ] || die 5 "the tunnel is open, and $url/health answers ${code:-nothing}"
# The key goes to curl through a pipe: a command line is visible to everyone on the machine.
key=${DLM_API_KEY:-} key=${key//\\/\\\\} key=${key//\"/\\\"}
code=$({ [ -z "$key" ] || printf 'header = "Authorization: Bearer %s"\n' "$key"; } |
  curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' --config - "$url/v1/models") || code=''
case $code in
  200) say "tested: $url/v1 answers" ;;
  401) die 5 "the server wants a key, and DLM_API_KEY is $([ -n "${DLM_API_KEY:-}" ] && echo another || echo not set): export it" ;;
  *) die 5 "$url/v1/models answers ${code:-nothing}" ;;
esac
export DLM_BASE_URL=$url/v1 OPENAI_BASE_URL=$url/v1
if [ ${#command[@]} -gt 0 ]; then
  "${command[@]}" <&0 & # in the background, so that a signal reaches it at once
  children+=("$!")
  code=0
  wait "$!" || code=$?
  exit "$code"
fi
say "open until Ctrl-C: export DLM_BASE_URL=$url/v1"
code=0
wait "$pid" || code=$?
die 5 "the tunnel closed (ssh: $code)"
