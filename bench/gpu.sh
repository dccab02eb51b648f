#!/usr/bin/env bash
# Fill the results of every GPU stage in under ten minutes on a bare machine with a GPU.
#
#   bench/gpu.sh [OUTDIR]              tests marked gpu, then kernels, loader and step benches
#   bench/gpu.sh --cpu-check [OUTDIR]  the same road at tiny sizes without a GPU (CI, under a minute)
#
# Needs python3 >= 3.11 with torch and triton. Nothing is installed: the project is found through
# links in build/names, and wheels carried in .wheels/SET/piece-* (if any) are unpacked by their own
# .wheels/base/piece-0/unpack.sh. OUTDIR defaults to $OUT, then to ./gpu-results, and receives at
# most 8 files: summary.json, log.txt, tests.txt, kernels.json, kernels.md, roofline.png,
# loader.json, step.json. A stage that fails, is absent or runs out of time does not stop the next;
# summary.json says what became of each. Exit 1 if any stage failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

check=0
if [ "${1:-}" = --cpu-check ]; then check=1; shift; fi
out=${1:-${OUT:-gpu-results}}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
budget=$([ $check = 1 ] && echo 120 || echo 560)
began=$SECONDS
log=$out/log.txt
: >"$log"

mkdir -p build/names/mim3d
for room in kernels dataio engine bench; do ln -sfn "../../../$room" "build/names/mim3d/$room"; done
paths=$PWD/build/names
# Nothing is installed, so nothing built the loops in C: without a compiler numpy stands in, slower.
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
for loop in _crops _chunks; do
  [ "dataio/$loop$suffix" -nt "dataio/$loop.c" ] || ${CC:-cc} -shared -fPIC -O3 -ffp-contract=off \
    -I"$headers" "dataio/$loop.c" -o "dataio/$loop$suffix" >>"$log" 2>&1 || echo "$loop: not built" | tee -a "$log"
done
if ls .wheels/*/piece-* >/dev/null 2>&1; then
  sets=$(cd .wheels && ls -d -- */ | tr -d / | paste -sd, -)
  sh .wheels/base/piece-0/unpack.sh -n "$sets" .wheels/*/piece-* >>"$log" 2>&1 || echo "wheels: exit $?" | tee -a "$log"
  paths=/tmp/site:$paths
fi
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The project's root must stay off sys.path: a plain `kernels` would shadow Hugging Face's.
export PYTHONSAFEPATH=1

names=() codes=() times=()
stage() { # stage NAME LIMIT_S COMMAND...: run with a limit, keep the log, note the outcome
  local name=$1 limit=$2 left=$((budget - (SECONDS - began))) start=$SECONDS code
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  echo "== $name (at most ${limit} s)" | tee -a "$log"
  if [ "$limit" -lt 5 ]; then code=125; else
    timeout --kill-after=10 "$limit" "$@" >"$out/.stage" 2>&1
    code=$?
    cat "$out/.stage" >>"$log"
    tail -n 12 "$out/.stage"
  fi
  names+=("$name") codes+=("$code") times+=("$((SECONDS - start))")
}
absent() { names+=("$1") codes+=(absent) times+=(0); echo "== $1: not there yet" | tee -a "$log"; }
bench() { # bench STAGE LIMIT_S OPTIONS...
  local name=$1 limit=$2
  shift 2
  if [ -f "bench/$name.py" ]; then
    stage "$name" "$limit" "$python" -m mim3d.engine.cli bench "$name" --json "$out/$name.json" "$@"
  else absent "$name"; fi
}

"$python" - <<'PY' 2>&1 | tee -a "$log"
import platform, torch
from mim3d.kernels.backend import explain
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"{gpu}; python {platform.python_version()}, torch {torch.__version__}\n{explain()}")
PY

if [ $check = 1 ]; then
  stage tests 60 "$python" -m pytest -q -p no:cacheprovider tests/test_kernel_backend.py
  cp "$out/.stage" "$out/tests.txt"
  bench kernels 60 --size tiny --rounds 1 --out "$out"
else
  # Most of the time goes into compiling kernel variants, on the host: spread it over processes.
  workers=$("$python" -c 'import xdist; print("-n 6")' 2>/dev/null)
  # shellcheck disable=SC2086
  stage tests 150 "$python" -m pytest -q -p no:cacheprovider $workers -m gpu tests
  cp "$out/.stage" "$out/tests.txt"
  bench kernels 220 --out "$out"
  bench loader 90 --volumes 3 --crops 64 --rounds 2
  bench step 100
fi
rm -f "$out/.stage"

{
  echo "{"
  echo "  \"seconds\": $((SECONDS - began)),"
  echo "  \"cpu_check\": $([ $check = 1 ] && echo true || echo false),"
  echo "  \"stages\": {"
  failed=0
  for i in "${!names[@]}"; do
    case ${codes[$i]} in
      0) what=ok ;;
      absent) what=absent ;;
      124 | 125 | 137) what="out of time" failed=1 ;;
      *) what="failed, exit ${codes[$i]}" failed=1 ;;
    esac
    comma=$([ "$i" -lt $((${#names[@]} - 1)) ] && echo , || echo)
    echo "    \"${names[$i]}\": {\"outcome\": \"$what\", \"seconds\": ${times[$i]}}$comma"
  done
  echo "  }"
  echo "}"
} >"$out/summary.json"
cat "$out/summary.json"
exit "$failed"
