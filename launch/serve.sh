#!/usr/bin/env bash
# Start a server, here or under SLURM, with the flags of the older launchers.
#
#   launch/serve.sh --local --model-path GSAI-ML/LLaDA-8B-Instruct
#   launch/serve.sh --local --gpus 4 --model-path GSAI-ML/LLaDA-8B-Instruct --engine dinfer --batch-size 16
#   launch/serve.sh --local --dcp-path step_1000 --base-model GSAI-ML/LLaDA-8B-Instruct --revision COMMIT
#   ACCOUNT=mine launch/serve.sh --gpus 8 --model-path GSAI-ML/LLaDA-8B-Instruct --time 8:00:00 --mem 128G
#
#   --local                run on this machine; otherwise the server is a SLURM job (launch/serve.sbatch)
#   --model-path NAME      a folder, a hub id, or a choice of conf/model such as llada_8b_instruct; a hub id in conf/model
#                          uses the commit pinned there, others need --revision
#   --revision COMMIT      of the hub id in --model-path or --base-model
#   --dcp-path FOLDER      weights of torch.distributed.checkpoint, with --base-model for the configuration
#   --base-model NAME      folder or hub id
#   --engine NAME          dinfer (algorithm dinfer_blockwise), fast-dllm (dual_cache), nemotron (nemotron)
#   --algorithm NAME       one of the engine's, or any of python -m dlm.serve (default: auto, the model family's own)
#   --gpus N, --num-gpus N one worker per GPU, and a router in front of several
#   --gpu-ids 0,2          use these GPUs (with --local)
#   --batch-size N, --max-wait-time SECONDS, --port N, --worker-base-port N, --host ADDRESS
#   --health-check-interval SECONDS             between the router's health checks of a worker
#   --streaming            accepted: every server here supports "stream": true, with batching
#   --nodes N, --mem SIZE, --time TIME, --account NAME ($ACCOUNT), --partition NAME ($PARTITION), --container-image IMAGE,
#   --container-mounts HOST:CONTAINER,...       SLURM only
#   --dry-run              print the command and exit
#
# Other key=value arguments go to python -m dlm.serve unchanged. HF_TOKEN and DLM_API_KEY stay in the environment.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() {
  printf 'serve.sh: %s\n' "$*" >&2
  exit 2
}
number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 $2 is no whole number above 0"; }

local='' model_path='' revision='' dcp_path='' base_model='' engine='' algorithm='' devices='' gpu_ids='' dry_run=''
settings=() extra=() job=() image='' mounts='' account=${ACCOUNT:-} partition=${PARTITION:-}
while [ $# -gt 0 ]; do
  case $1 in
    --*=*) # --port=9000 is --port 9000
      flag=${1%%=*} value=${1#*=}
      shift
      set -- "$flag" "$value" "$@"
      ;;
  esac
  case $1 in
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --local) local=yes ;;
    --dry-run) dry_run=yes ;;
    --streaming) printf 'serve.sh: --streaming: every server here streams where a request says so; nothing to switch\n' >&2 ;;
    --model-path | --revision | --dcp-path | --base-model | --engine | --algorithm | --gpus | --num-gpus | --gpu-ids | \
      --batch-size | --max-wait-time | --health-check-interval | --port | --worker-base-port | --host | --nodes | --mem | \
      --time | --account | --partition | --container-image | --container-mounts)
      [ $# -gt 1 ] && [ -n "$2" ] || die "$1 needs a value"
      case $1 in
        --model-path) model_path=$2 ;;
        --revision) revision=$2 ;;
        --dcp-path) dcp_path=$2 ;;
        --base-model) base_model=$2 ;;
        --engine) engine=$2 ;;
        --algorithm) algorithm=$2 ;;
        --gpus | --num-gpus)
          number "$1" "$2"
          [ -z "$devices" ] || [ "$devices" = "$2" ] || die "--gpus and --num-gpus differ: $devices and $2"
          devices=$2
          ;;
        --gpu-ids)
          [[ $2 =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--gpu-ids $2 is no list such as 0,2"
          gpu_ids=$2
          ;;
        --batch-size | --port | --worker-base-port)
          number "$1" "$2"
          flag=${1#--}
          settings+=("${flag//-/_}=$2")
          ;;
        --max-wait-time | --health-check-interval)
          [[ $2 =~ ^[0-9]*\.?[0-9]+$ ]] || die "$1 $2 is no number of seconds"
          flag=${1#--}
          settings+=("${flag//-/_}=$2")
          ;;
        --host) settings+=("host=$2") ;;
        --nodes)
          number "$1" "$2"
          job+=("--nodes=$2")
          ;;
        --mem | --time) job+=("$1=$2") ;;
        --account) account=$2 ;;
        --partition) partition=$2 ;;
        --container-image) image=$2 ;;
        --container-mounts) mounts=$2 ;;
      esac
      shift
      ;;
    -*) die "$1 is no flag; see launch/serve.sh --help" ;;
    api_key=* | hf_token=* | token=*) die "${1%%=*}=...: a secret on a command line is seen by everyone on the machine; \
export DLM_API_KEY or HF_TOKEN instead" ;;
    *=*) extra+=("$1") ;;
    *) die "$1 is neither a flag nor key=value; see launch/serve.sh --help" ;;
  esac
  shift
done

# The choice in conf/model for a hub id, with its pinned commit; empty if there is none.
known() {
  local file
  for file in "$here"/../conf/model/*.yaml; do
    if [ -f "$file" ] && grep -q "^path: $1\( \|$\)" "$file" 2>/dev/null; then
      basename "$file" .yaml
      return
    fi
  done
}
pinned() { sed -n 's/^revision: \([0-9a-f]*\).*/\1/p' "$here/../conf/model/$1.yaml"; }

if [ -n "$dcp_path$model_path" ] && [[ " ${extra[*]} " == *" model="* ]]; then
  die "--model-path or --dcp-path, and model=...: two models; leave one out"
fi
if [ -n "$dcp_path" ]; then
  [ -z "$model_path" ] || die "--model-path and --dcp-path are two models: the configuration of --dcp-path is --base-model"
  [ -n "$base_model" ] || die "--dcp-path needs --base-model, a folder or hub id with the configuration and tokenizer"
  model=(model=checkpoint "model.dcp_path=$dcp_path" "model.base_model=$base_model")
  choice=$(known "$base_model")
  [ -n "$revision" ] || [ -z "$choice" ] || revision=$(pinned "$choice")
elif [ -n "$model_path" ]; then
  [ -z "$base_model" ] || die "--base-model goes with --dcp-path"
  choice=''
  [ -n "$revision" ] || [ -d "$model_path" ] || choice=$(known "$model_path")
  if [[ -z $choice && $model_path =~ ^[a-z0-9_]+$ && -f $here/../conf/model/$model_path.yaml ]]; then
    choice=$model_path
  fi
  if [ -n "$choice" ]; then model=("model=$choice"); else model=(model=checkpoint "model.path=$model_path"); fi
elif [[ " ${extra[*]} " == *" model="* ]]; then
  model=()
else
  die "which model? --model-path NAME, or --dcp-path FOLDER --base-model NAME"
fi
[ -z "$revision" ] || model+=("model.revision=$revision")

case $engine in
  '') : "${algorithm:=auto}" ;;
  dinfer) engine_algorithms='dinfer_*' default=dinfer_blockwise ;;
  fast-dllm) engine_algorithms='basic|prefix_cache|dual_cache' default=dual_cache ;;
  nemotron) engine_algorithms='nemotron' default=nemotron ;;
  *) die "--engine $engine is none of dinfer, fast-dllm, nemotron" ;;
esac
if [ -n "$engine" ]; then
  algorithm=${algorithm:-$default}
  [[ $algorithm =~ ^(${engine_algorithms//\*/[a-z]+})$ ]] ||
    die "--algorithm $algorithm is none of --engine $engine ($engine_algorithms): leave --engine out, or take one of these"
fi

if [ -n "$gpu_ids" ]; then
  commas=${gpu_ids//[0-9]/}
  count=$((${#commas} + 1))
  [ "${devices:-$count}" -eq "$count" ] || die "--gpus $devices and --gpu-ids $gpu_ids differ"
  devices=$count
  if [ "$count" -eq 1 ]; then settings+=("device=cuda:$gpu_ids"); else settings+=("gpu_ids=[$gpu_ids]"); fi
fi
: "${devices:=1}"
arguments=("${model[@]}" "algorithm=$algorithm" "${settings[@]}" "${extra[@]}")

if [ -n "$local" ]; then
  [ ${#job[@]} -eq 0 ] || die "${job[*]}: for SLURM, and --local is this machine: leave one out"
  [ -z "$image$mounts" ] || die "--container-image, --container-mounts: for SLURM; here: see launch/Dockerfile"
  command=(python -m dlm.serve "devices=$devices" "${arguments[@]}")
else
  [ -z "$gpu_ids" ] || die "--gpu-ids: SLURM hands out GPUs; say --gpus $devices, or --local"
  [ -z "$mounts" ] || [ -n "$image" ] || die "--container-mounts needs --container-image"
  job+=("--gpus-per-node=$devices")
  [ -z "$account" ] || job+=("--account=$account")
  [ -z "$partition" ] || job+=("--partition=$partition")
  [ -z "$image" ] || export DLM_CONTAINER_IMAGE=$image
  [ -z "$mounts" ] || export DLM_CONTAINER_MOUNTS=$mounts
  command=(sbatch --parsable "${job[@]}" "$here/serve.sbatch" "${arguments[@]}")
fi

if [ -n "$dry_run" ]; then
  printf -v shown '%q ' "${command[@]}"
  printf '%s\n' "${shown% }"
  exit 0
fi
if [ -n "$local" ]; then
  command -v python >/dev/null || die "python is not on the PATH: activate the environment in which dlm is installed"
  python -c 'import dlm, fastapi, uvicorn' || die "dlm or its server is not installed here: pip install 'dlm[serve,router]'"
  exec "${command[@]}"
fi
command -v sbatch >/dev/null || die "sbatch is not on the PATH: run this on a SLURM login machine, or say --local"
id=$("${command[@]}")
id=${id%%;*}
printf 'job %s; when it runs:\n  launch/connect.sh %s\nto end it, requests in hand first:\n  scancel --batch --signal=TERM %s\n' \
  "$id" "$id" "$id"
