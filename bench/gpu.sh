#!/usr/bin/env bash
# Fill the results of every GPU stage in under ten minutes on a bare machine with a GPU.
#
#   bench/gpu.sh [--stages LIST] [OUTDIR]               on a GPU
#   bench/gpu.sh --cpu-check [--stages LIST] [OUTDIR]   the same road at tiny sizes, without a GPU
#
#   bench/gpu.sh --sizes                                MiB that a transfer would carry
#
# Stages, in this order (LIST is some of them, separated by commas; all of them otherwise):
#   ready     each part of the machine once, on something tiny: what is broken, in half a minute
#   tests     the tests marked gpu
#   dali      those of them that need DALI
#   kernels   every kernel against eager recipes, torch.compile and the measured copy bandwidth
#   loader    crops per second, from each cache on the GPU, then on the CPU
#   step      the training step in memory against its eager formulation, MFU
#   feed      the same step fed by the real loader, MFU, data stall
#   profile   where the step's time goes; Nsight Compute's view of the loss and the gather
# Each has a time limit of its own; one that fails, is absent or runs out of time does not stop the
# next, and what is done so far is in OUTDIR after every stage. Exit 1 if any stage failed.
#
# Needs python3 >= 3.11 with torch and triton. Nothing of the project is installed: it is found
# through links in build/names. Missing packages are taken from .wheels, where they lie as
#   .wheels/SET/NAME.whl     python3 -m pip download --no-deps --only-binary=:all: \
#                              --python-version 3.12 --platform manylinux_2_28_x86_64 \
#                              --platform manylinux2014_x86_64 --platform manylinux_2_24_x86_64 \
#                              --platform manylinux_2_27_x86_64 -r bench/gpu-wheels/SET.txt \
#                              -d .wheels/SET
#   .wheels/SET/piece-K/     cut into pieces with an unpack.sh of their own
# with SET one of base (needed), gpu (libnvcomp: chunks decoded on the GPU) and dali (loaders with
# other caches on the GPU, rotations and zooms). Only dali's is large: where a transfer is limited
# to 64 MiB with the working tree in it, what needs no DALI goes first, and the rest follows while
# the machine still has the first sets in /tmp:
#   1. with base, gpu:   bench/gpu.sh --stages ready,tests,kernels,loader,step,feed
#   2. with dali:        bench/gpu.sh --stages ready,dali,loader,profile
# `bench/gpu.sh --sizes` says what that comes to; bench/results is most of the tree, and is not
# needed there.
#
# OUTDIR defaults to $OUT, then to ./gpu-results, and receives at most 8 files: summary.json,
# summary.txt (targets beside what was reached), log.txt, figures.json, kernels.md, roofline.png,
# kernels-benchmark.json (for `pytest-benchmark compare`), profile.txt.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

all=ready,tests,dali,kernels,loader,step,feed,profile
mib() { xargs -0 -r stat -c %s -- 2>/dev/null | awk '{ n += $1 } END { printf "%.1f\n", n / 2^20 }'; }
sizes() { # MiB of the working tree that git does not ignore, and of each set of wheels
  echo "tree $(git ls-files -co --exclude-standard -z | mib)"
  echo "of-which-bench/results $(git ls-files -co --exclude-standard -z bench/results | mib)"
  for one in .wheels/*/; do
    [ -d "$one" ] && echo "$(basename "$one") $(find "$one" -type f -print0 | mib)"
  done
  return 0
}
check=0 stages=$all out=${OUT:-gpu-results}
while [ $# -gt 0 ]; do case $1 in
  -h | --help) sed -n '2,/^set -uo/{/^set -uo/d;s/^# \{0,1\}//;p}' bench/gpu.sh; exit 0 ;;
  --cpu-check) check=1; shift ;;
  --sizes) sizes; exit 0 ;;
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
trap 'rm -rf "$work"' EXIT
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
  timeout 20 "$python" bench/gpu/summary.py "$work" "$out" >>"$log" 2>&1 || true
}
stage() { # stage NAME LIMIT_S COMMAND...: run with a limit, keep the log, note the outcome
  local name=$1 limit=$(($2 * patience)) left=$((budget - (SECONDS - began))) start=$SECONDS code
  shift 2
  [ "$left" -lt "$limit" ] && limit=$left
  say "== $name (at most ${limit} s)"
  if [ "$limit" -lt 5 ]; then code=125; else
    # SIGINT, also where this script was started deaf to it: pytest tells what it has and goes.
    timeout --signal=INT --kill-after=10 "$limit" env --default-signal=INT "$@" \
      >"$work/output" 2>&1
    code=$?
    cat "$work/output" >>"$log"
    tail -n 12 "$work/output"
  fi
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
  dali_words=(tests/dataio/loader/test_dali_graph.py)
  kernel_words=(--size tiny --rounds 1)
  loader_words=(--volumes 1 --crops 8 --rounds 1)
  step_words=(--steps 1 --rounds 1 --warmup 1 --global-batch 2)
  feed_words=("${step_words[@]}")
else
  # Most of the time goes into compiling kernel variants, on the host: spread it over processes.
  workers=()
  has xdist && workers=(-n 6)
  mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | grep -v test_dali_gpu)
  test_words=(${workers[@]+"${workers[@]}"} -m gpu "${marked[@]}")
  dali_words=(-m gpu tests/dataio/loader/test_dali_gpu.py)
  kernel_words=(--seconds 120)
  loader_words=(--volumes 8 --crops 64 --rounds 2)
  step_words=(--steps 10 --rounds 3)
  # The corpus stays compressed on the GPU where nvCOMP is there to inflate it.
  cache=$(has nvidia.libnvcomp && echo device || echo host)
  feed_words=(--steps 20 --rounds 3 --cache "$cache")
fi

has zarr || say "the set base is missing: no stage will get far without it (see --help)"
wanted ready && stage ready 90 "$python" -m mim3d.bench.gpu.ready "$work/ready.json"
# A line for each test: what failed is known even where there is no time for the whole story.
pytest=("$python" -m pytest -v --tb=short -p no:cacheprovider)
wanted tests && stage tests 150 "${pytest[@]}" "${test_words[@]}"
if wanted dali; then
  if has nvidia.dali; then
    stage dali 60 "${pytest[@]}" "${dali_words[@]}"
  else
    absent dali "no DALI"
  fi
fi
wanted kernels && bench kernels kernels 165 --out "$out" "${kernel_words[@]}"
wanted loader && bench loader loader 110 "${loader_words[@]}"
wanted step && bench step step 80 --no-loader --peers "${step_words[@]}"
if wanted feed; then
  if has nvidia.dali || { [ $check = 0 ] && has nvidia.libnvcomp; }; then
    bench feed step 80 "${feed_words[@]}"
  else
    absent feed "neither DALI nor libnvcomp"
  fi
fi
if wanted profile; then
  bench profile step 90 --no-loader --peers --profile "$out" "${step_words[@]}" --rounds 1
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
cat "$out/summary.json"
[ -f "$out/summary.txt" ] && cat "$out/summary.txt"
exit "$failed"
