#!/bin/sh
# Regenerates the stubs beside the .proto files. Usage: proto/generate.sh [output folder, default: proto]
set -eu
cd "$(dirname "$0")"
out=${1:-.}
python -m grpc_tools.protoc -I. --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    drafthouse/v1/sampling.proto drafthouse/v1/generation.proto drafthouse/v1/shard.proto
