#!/usr/bin/env bash
# Everything that needs a GPU, in order of worth, one training at a time, within twelve minutes.
#
#   benchmarks/gpu_all.sh RESULTS [--corpora FOLDER] [--original PATH] [--nanogpt PATH]
#   benchmarks/gpu_all.sh RESULTS --rehearse [--corpora FOLDER]
#
# --rehearse: tiny sizes on a CPU. Does the script run to its end?
# Each part has its own time limit and writes into the folder RESULTS as it goes; a part that fails
# or runs out of time does not stop the next one.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

RESULTS=$(mkdir -p "$1" && cd "$1" && pwd)
shift
CORPORA="" PEERS=() REHEARSE=""
while [ $# -gt 0 ]; do
    case $1 in
        --corpora) CORPORA=$2; shift 2 ;;
        --original | --nanogpt) PEERS+=("$1" "$2"); shift 2 ;;
        --rehearse) REHEARSE=yes; shift ;;
        *) echo "unknown option: $1"; exit 2 ;;
    esac
done

part() {    # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    echo "=== $name: $*"
    timeout --signal=TERM --kill-after=10 "$limit" "$@" 2>&1 | tee "$RESULTS/$name.log" | tail -n 25
    echo "=== $name: exit code ${PIPESTATUS[0]}, $((SECONDS - started)) s"
}

if [ -n "$REHEARSE" ]; then
    part tests 300 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_gpu.py -k resumed
    if [ -n "$CORPORA" ]; then
        part bundled 300 "$PYTHON" voice/make_bundled_model.py "$CORPORA" --work "$RESULTS/bundled" \
            --rehearse
    fi
    part gpu 300 "$PYTHON" benchmarks/gpu.py --device cpu --tiny --rounds 1 \
        --output "$RESULTS/gpu.json" "${PEERS[@]}"
    if [ -n "$CORPORA" ]; then
        part ablation 300 "$PYTHON" benchmarks/ablations.py --only "+ tied head" --tokens 2000 \
            --epochs 1 --corpus "$CORPORA/fairytales.txt" --output "$RESULTS/ablations.json"
    fi
else
    part tests 100 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_gpu.py
    if [ -n "$CORPORA" ]; then
        part bundled 240 "$PYTHON" voice/make_bundled_model.py "$CORPORA" --work "$RESULTS/bundled"
    fi
    part gpu 200 "$PYTHON" benchmarks/gpu.py --output "$RESULTS/gpu.json" "${PEERS[@]}"
    if [ -n "$CORPORA" ]; then
        part ablation 210 "$PYTHON" benchmarks/ablations.py --size 124M \
            --only "ours, 8 passes, input noise 10%" --corpus "$CORPORA/fairytales.txt" \
            --output "$RESULTS/ablations.json"
    fi
fi
