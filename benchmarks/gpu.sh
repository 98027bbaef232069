#!/usr/bin/env bash
# What RESULTS.md lists as unmeasured on a GPU, in three calls of less than ten minutes each.
#
#   benchmarks/gpu.sh wheels              where packages can be had: wheels/, to be carried along
#   benchmarks/gpu.sh 1 OUT               at the GPU: ours beside PyTorch, five networks, bfloat16
#   benchmarks/gpu.sh 2 OUT               over the batch size; the heavy policy; ConvNeXt Base
#   benchmarks/gpu.sh 3 OUT pbc96.zip     time to 0.97 on real cells; the study `full`, as far as it gets
#
# The machine with the GPU has Python 3.12 (PYTHON_VERSION=3.11 for another), JAX, PyTorch, timm and
# matplotlib, and needs no network. A table goes to OUT/part_N.md row by row, so what a limit cuts
# is there as far as it came, and what is said on the way to OUT/part_N.log. SMALL=1 rehearses it
# on a CPU: one network, few images, a twentieth of the time.
set -euo pipefail
case "${1:-} $#" in "wheels 1" | "1 2" | "2 2" | "3 3") ;; *)
    echo "benchmarks/gpu.sh: wheels, 1 OUT, 2 OUT or 3 OUT SOURCE; see its head" >&2
    exit 2 ;;
esac
[ $# -lt 3 ] || [ -e "$3" ] || { echo "benchmarks/gpu.sh: no file $3" >&2; exit 2; }
part=$1
out=$([ $# -lt 2 ] || { mkdir -p "$2" && realpath "$2"; })
source=${3:+$(realpath "$3")}
cd "$(dirname "$(realpath "$0")")/.."
export PYTHONPATH="$PWD:$PWD/.gpu/site" KERAS_BACKEND=jax JAX_COMPILATION_CACHE_DIR="$PWD/.gpu/jax"

# what our part of requirements.lock needs and such a machine lacks
LACKING="annotated-types asttokens bleach comm defusedxml entrypoints executing fastcore
fastjsonschema ImageHash imbalanced-learn ipykernel ipython ipython_pygments_lexers jedi jsonschema
jsonschema-specifications jupyter_client jupyter_core jupyterlab_pygments keras matplotlib-inline mistune
namex nbclient nbconvert nbformat nest-asyncio2 optree pandocfilters papermill parso pexpect platformdirs
pooch prompt_toolkit ptyprocess pure_eval pydantic pydantic_core PyWavelets pyzmq referencing rpds-py
sklearn-compat stack-data tenacity tinycss2 tornado traitlets typing-inspection wcwidth webencodings
beautifulsoup4 soupsieve filelock debugpy"

if [ "$part" = wheels ]; then
    mkdir -p wheels
    for name in $LACKING; do grep -i "^$name==" requirements.lock; done > wheels/lacking.txt
    echo "albumentations albucore stringzilla numkong" | tr ' ' '\n' >> wheels/lacking.txt
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest wheels \
        --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -r wheels/lacking.txt
    du -sh wheels
    exit
fi

if [ ! -d .gpu/site ]; then
    [ -f wheels/lacking.txt ] || { echo "benchmarks/gpu.sh: no wheels/; run 'benchmarks/gpu.sh wheels' first" >&2; exit 2; }
    rm -rf .gpu/site.partial
    python3 -m pip install --quiet --no-deps --no-index --find-links wheels --target .gpu/site.partial -r wheels/lacking.txt
    mv .gpu/site.partial .gpu/site
fi

table=$out/part_$part.md measured=0
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
echo "# Part $part, $(date -u '+%Y-%m-%d %H:%M'), commit $commit${SMALL:+, a rehearsal}" >> "$table"

rows() { grep -c '^| ' "$table" || true; }
measure() {  # a title, seconds at the most, a command: its table, as far as it comes
    local before ended=0
    echo "## $1" >> "$table"
    before=$(rows)
    timeout -k 5 "$2" "${@:3}" >> "$table" 2>> "$out/part_$part.log" || ended=$?
    # the first row is a table's head; a study prints none
    [ $ended != 0 ] && [ "$(rows)" -lt $((before + 2)) ] || measured=$((measured + 1))
    [ $ended = 0 ] || echo "*Ended by $ended after at most $2 s (124: out of time).*" >> "$table"
    echo >> "$table"
}
bench() { measure "$1" "$2" python3 "benchmarks/$3.py" "${@:4}"; }

networks="EfficientNetLite0 ConvNeXtAtto EfficientNetB0 ConvNeXtTiny EfficientNetB2"
sizes="--images 12000 --rounds 3 --seconds 3" batch=128 batches="32 128 512 2048" seeds="0 1 2"
if [ -n "${SMALL:-}" ]; then
    networks=EfficientNetLite0 sizes="--images 64 --rounds 1 --seconds 1" batch=8 batches="8 16" seeds=0
fi
case $part in
1)  for network in $networks; do
        bench "$network" 100 throughput --networks "$network" --policies none --batch $batch --bfloat16 $sizes
    done ;;
2)  bench "EfficientNetLite0 over the batch size" 140 throughput --batches $batches $sizes
    bench "heavy policy" 220 throughput --networks EfficientNetLite0 --policies heavy --batch $batch --bfloat16 $sizes
    bench "ConvNeXtBase" 170 throughput --networks ConvNeXtBase --policies none --batch $batch --bfloat16 $sizes ;;
3)  rm -f .gpu/full/results.csv "$out/results.csv"  # of an earlier call
    bench "time to 0.97" 270 time_to_accuracy "$source" --out "$out/curves.jsonl" --seeds $seeds --bfloat16
    measure "the study full" 260 python3 -c "import sys; from bloodcell_nb.cli import main; sys.exit(main())" \
        run --study full --data "$source" --set weights=none --set augmentation_library=native --budget 4 --out .gpu/full
    [ ! -f .gpu/full/results.csv ] || cp .gpu/full/results.csv "$out/" ;;
esac
[ $measured != 0 ] || { echo "benchmarks/gpu.sh: nothing was measured; $out/part_$part.log says why" >&2; exit 1; }
