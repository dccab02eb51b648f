#!/usr/bin/env bash
# Fill the results of every GPU stage in under ten minutes on a bare machine with a GPU.
#
#   bench/gpu.sh [--stages LIST] [OUTDIR]               on a GPU
#   bench/gpu.sh --cpu-check [--stages LIST] [OUTDIR]   the same road at tiny sizes, without a GPU
#
#   bench/gpu.sh --sizes                                MiB that a transfer would carry
#
# Stages, in this order, what tells most first (LIST is some of them, separated by commas; all of
# them otherwise):
#   ready     each part of the machine once, on something tiny: what is broken, in half a minute
#   step      the training step in memory against MAE as others write it, MFU
#   feed      the same step fed by the real loader, MFU, data stall
#   loader    crops per second from each cache on the GPU: chunks or voxels that stay there, crops
#             that the host decodes; then on the CPU
#   kernels   every kernel against eager recipes, torch.compile and the measured copy bandwidth
#   tests     the tests marked gpu
#   compiled  the step against one in plain PyTorch that is compiled whole
#   dali      the tests that need DALI
#   profile   where the step's time goes; Nsight Compute's view of the loss and the gather
# Each has a time limit of its own; one that fails, is absent or runs out of time does not stop the
# next, and what is done so far is in OUTDIR after every stage, also where the script is stopped.
# Exit 1 if any stage failed.
#
# Needs python3 >= 3.11 with torch and triton. Nothing of the project is installed: it is found
# through links in build/names. Missing packages are taken from .wheels, where they lie as
#   .wheels/SET/NAME.whl     python3 -m pip download --no-deps --only-binary=:all: \
#                              --python-version 3.12 --platform manylinux_2_28_x86_64 \
#                              --platform manylinux2014_x86_64 --platform manylinux_2_24_x86_64 \
#                              --platform manylinux_2_27_x86_64 -r bench/gpu-wheels/SET.txt \
#                              -d .wheels/SET
#   .wheels/SET/piece-K/     cut into pieces with an unpack.sh of their own
# with SET one of base (needed), gpu (libnvcomp: chunks decoded on the GPU) and dali (rotations,
# zooms and pairs of views on the GPU). Only dali's is large: where a transfer is limited
# to 64 MiB with the working tree in it, what needs no DALI goes first, and the rest follows while
# the machine still has the first sets in /tmp:
#   1. with base, gpu:   bench/gpu.sh --stages ready,step,feed,loader,kernels,tests
#   2. with dali:        bench/gpu.sh --stages ready,compiled,dali,profile
# `bench/gpu.sh --sizes` says what that comes to, and exits 1 where the first call would not fit;
# bench/results is not needed there.
#
# OUTDIR defaults to $OUT, then to ./gpu-results, and receives at most 8 files: results.md (the page
# to read: stages, targets beside what was reached, what failed and how), summary.json, log.txt,
# figures.json, kernels.md, roofline.png, kernels-benchmark.json (for `pytest-benchmark compare`),
# profile.txt.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

all=ready,step,feed,loader,kernels,tests,compiled,dali,profile
transfer=64 # MiB
mib() { xargs -0 -r stat -c %s -- 2>/dev/null | awk '{ n += $1 } END { printf "%.1f\n", n / 2^20 }'; }
sizes() { # MiB of the working tree that git does not ignore, and of each set of wheels
  echo "tree $(git ls-files -co --exclude-standard -z | mib)"
  echo "of-which-bench/results $(git ls-files -co --exclude-standard -z bench/results | mib)"
  for one in .wheels/*/; do
    [ -d "$one" ] && echo "$(basename "$one") $(find "$one" -type f -print0 | mib)"
  done
  local first
  first=$({
    git ls-files -co --exclude-standard -z
    for one in .wheels/base .wheels/gpu; do [ -d $one ] && find $one -type f -print0; done
  } | mib)
  echo "first-call $first"
  awk "BEGIN { exit $first >= $transfer }" && return 0
  echo "gpu.sh: more than the $transfer MiB of a transfer; leave out bench/results" >&2
  return 1
}
check=0 stages=$all out=${OUT:-gpu-results}
while [ $# -gt 0 ]; do case $1 in
  -h | --help) sed -n '2,/^set -uo/{/^set -uo/d;s/^# \{0,1\}//;p}' bench/gpu.sh; exit 0 ;;
  --cpu-check) check=1; shift ;;
  --sizes) sizes; exit ;;
  --stages) stages=${2:?--stages needs a list: some of $all}; shift 2 ;;
  -*) echo "gpu.sh: unknown option $1; see --help" >&2; exit 2 ;;
  *) out=$1; shift ;;
esac; done
for one in ${stages//,/ }; do
  case ",$all," in *",$one,"*) ;; *) echo "gpu.sh: no stage $one; some of $all" >&2; exit 2 ;; esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
python=${PYTHON:-python3} site=${SITE:-/tmp/site}
# Without a GPU nothing is lent by the minute, and the machine may be busy: limits are longer.
budget=570 patience=1
[ $check = 1 ] && budget=1500 patience=5
began=$SECONDS
log=$out/log.txt
: >"$log"
say() { echo "$@" | tee -a "$log"; }

mkdir -p build/names/mim3d
for room in kernels dataio engine bench; do ln -sfn "../../../$room" "build/names/mim3d/$room"; done
for file in engine/face/*.py engine/face/*.pyi engine/face/py.typed; do
  ln -sfn "../../../$file" "build/names/mim3d/$(basename "$file")"
done
# What asks for the project's version finds it as if it were installed.
rm -rf build/names/mim3d-*.dist-info
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
mkdir -p "build/names/mim3d-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: mim3d\nVersion: %s\n' "$version" \
  >"build/names/mim3d-$version.dist-info/METADATA"
paths=$PWD/build/names
# Nothing is installed, so nothing built the loops in C: without a compiler numpy stands in, slower.
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
native=dataio/native
newest=$(ls -t $native/*.[ch] | head -n 1)
for source in $native/*.c; do
  loop=_$(basename "$source" .c)
  [ "$native/$loop$suffix" -nt "$newest" ] || ${CC:-cc} -shared -fPIC -O3 -ffp-contract=off \
    -I"$headers" "$source" -o "$native/$loop$suffix" >>"$log" 2>&1 || say "$loop: not built"
done
if compgen -G '.wheels/*/*.whl' >/dev/null; then
  timeout 120 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" .wheels/*/*.whl >>"$log" 2>&1 || say "wheels: pip exit $?"
fi
if compgen -G '.wheels/*/piece-*' >/dev/null; then
  sets=$(cd .wheels && ls -d -- */ | tr -d / | paste -sd, -)
  unpack=$(ls .wheels/*/piece-*/unpack.sh | head -n 1)
  SITE=$site timeout 120 sh "$unpack" -n "$sets" .wheels/*/piece-* >>"$log" 2>&1 ||
    say "wheels: unpack.sh exit $?: $(tail -n 1 "$log")"
fi
[ -d "$site" ] && paths=$site:$paths
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The project's root must stay off sys.path: a plain `kernels` would shadow Hugging Face's.
export PYTHONSAFEPATH=1

names=() codes=() times=() failed=0
summarise() { # what is known so far: summary.json by the shell alone, the rest by python
  failed=0
  {
    echo "{"
    echo "  \"seconds\": $((SECONDS - began)),"
    echo "  \"cpu_check\": $([ $check = 1 ] && echo true || echo false),"
    echo "  \"stages\": {"
    for i in "${!names[@]}"; do
      case ${codes[$i]} in
        0) what=ok ;;
        absent) what=absent ;;
        stopped) what="stopped from outside" failed=1 ;;
        3) what="incomplete" failed=1 ;;
        124 | 125 | 137) what="out of time" failed=1 ;;
        *) what="failed, exit ${codes[$i]}" failed=1 ;;
      esac
      comma=$([ "$i" -lt $((${#names[@]} - 1)) ] && echo , || echo)
      echo "    \"${names[$i]}\": {\"outcome\": \"$what\", \"seconds\": ${times[$i]}}$comma"
    done
    echo "  }"
    echo "}"
  } >"$out/summary.json"
  timeout 20 "$python" bench/gpu/summary.py "$work" "$out" >>"$log" 2>&1 && return
  { # without a python that works the page is the shell's
    echo "# Results of bench/gpu.sh"
    sed 's/^/    /' "$out/summary.json"
    echo "The end of the log:"
    tail -n 20 "$log" | sed 's/^/    /'
  } >"$out/results.md"
}
running='' current=''
finish() { # the page is there whatever happened; a stage that was stopped is named
  local code=$?
  trap - EXIT INT TERM
  [ -n "$running" ] && kill -INT "$running" 2>/dev/null && wait "$running"
  if [ -n "$current" ]; then
    names+=("$current") codes+=(stopped) times+=("$((SECONDS - start))")
    summarise
  fi
  [ ${#names[@]} -gt 0 ] || summarise
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
stage() { # stage NAME LIMIT_S COMMAND...: run with a limit, keep the log, note the outcome
  local name=$1 limit=$(($2 * patience)) left=$((budget - (SECONDS - began))) code
  start=$SECONDS current=$1
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  say "== $name (at most ${limit} s)"
  if [ "$limit" -lt 5 ]; then code=125; else
    # SIGINT, also where this script was started deaf to it: pytest tells what it has and goes.
    timeout --signal=INT --kill-after=10 "$limit" env --default-signal=INT "$@" \
      >"$work/output" 2>&1 &
    running=$!
    wait "$running"
    code=$? running=''
    cat "$work/output" >>"$log"
    tail -n 12 "$work/output"
    [ "$code" = 0 ] || tail -n 15 "$work/output" >"$work/$name.tail"
  fi
  current=''
  names+=("$name") codes+=("$code") times+=("$((SECONDS - start))")
  summarise
}
absent() { # absent NAME WHY
  names+=("$1") codes+=(absent) times+=(0)
  say "== $1: absent: $2"
  summarise
}
wanted() { case ",$stages," in *",$1,"*) return 0 ;; *) return 1 ;; esac; }
has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
bench() { # bench STAGE BENCH LIMIT_S OPTIONS...
  local name=$1 what=$2 limit=$3
  shift 3
  stage "$name" "$limit" "$python" -m mim3d bench "$what" --json "$work/$name.json" "$@"
}

"$python" - <<'PY' 2>&1 | tee -a "$log"
import platform, torch
from mim3d.kernels.backend import explain
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"{gpu}; python {platform.python_version()}, torch {torch.__version__}\n{explain()}")
PY

if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit \
    --format=csv,noheader 2>&1 | tee -a "$log"
fi

if [ $check = 1 ]; then
  test_words=(tests/kernels/test_kernel_backend.py)
  dali_words=(tests/dataio/transforms/test_dali_graph.py)
  kernel_words=(--size tiny --rounds 1)
  loader_words=(--volumes 1 --crops 8 --rounds 1)
  step_words=(--steps 1 --warmup 1 --global-batch 2) rounds=(--rounds 1)
  feed_words=("${step_words[@]}" "${rounds[@]}")
else
  # Most of the time goes into compiling kernel variants, on the host: spread it over processes.
  workers=()
  has xdist && workers=(-n 6)
  mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v test_dali_gpu)
  test_words=(${workers[@]+"${workers[@]}"} -m gpu "${marked[@]}")
  dali_words=(-m gpu tests/dataio/transforms/test_dali_gpu.py)
  kernel_words=(--seconds 90)
  loader_words=(--crops 64 --rounds 3)
  step_words=(--steps 10) rounds=(--rounds 5)
  # The corpus stays on the GPU where nvCOMP is there to inflate it.
  cache=$(has nvidia.libnvcomp && echo device || echo host)
  feed_words=(--steps 20 --rounds 5 --cache "$cache")
fi

has zarr || say "the set base is missing: no stage will get far without it (see --help)"
wanted ready && stage ready 40 "$python" -m mim3d.bench.gpu.ready "$work/ready.json"
wanted step && bench step step 75 --no-loader --peers --no-compiled "${step_words[@]}" "${rounds[@]}"
wanted feed && bench feed step 75 "${feed_words[@]}"
wanted loader && bench loader loader 85 "${loader_words[@]}"
wanted kernels && bench kernels kernels 130 --out "$out" "${kernel_words[@]}"
# A line for each test: what failed is known even where there is no time for the whole story.
pytest=("$python" -m pytest -v --tb=short -p no:cacheprovider)
wanted tests && stage tests 130 "${pytest[@]}" "${test_words[@]}"
wanted compiled && bench compiled step 120 --no-loader --peers --compiled "${step_words[@]}" "${rounds[@]}"
if wanted dali; then
  if has nvidia.dali; then
    stage dali 60 "${pytest[@]}" "${dali_words[@]}"
  else
    absent dali "no DALI"
  fi
fi
if wanted profile; then
  bench profile step 80 --no-loader --peers --no-compiled --profile "$out" "${step_words[@]}" \
    --rounds 1
  if [ $check = 0 ] && command -v ncu >/dev/null; then
    # Clocks are left alone; the counters tell the share of the memory's peak and what limits it.
    stage ncu 60 bash -c 'ncu --clock-control none --kernel-name "regex:loss_kernel|gather_kernel" \
      --launch-count 6 --kill yes --section SpeedOfLight --section MemoryWorkloadAnalysis \
      --section LaunchStats --section Occupancy "$0" -m mim3d bench kernels \
      --no-compiled --rounds 1 --only int16 >"$1/ncu.txt" 2>&1
      cat "$1/ncu.txt" >>"$2/profile.txt"; grep -q "Memory Throughput" "$1/ncu.txt"' \
      "$python" "$work" "$out"
  fi
fi
cat "$out/results.md"
exit "$failed"
