#!/usr/bin/env bash
# A Ray cluster of two nodes on this machine, on loopback only, to try raydiff on more than one node.
#
#   launch/local.sh start [--cpus-per-node 2] [--nodes 2] [--object-store-mb 512]
#   raydiff train configs/demo.yaml --address auto generator.count=3
#   launch/local.sh status | env | stop
#
# PYTHON names the interpreter that raydiff is installed for; by default the one beside `raydiff`, then python3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ] && raydiff=$(command -v raydiff); then
  PYTHON="$(dirname "$raydiff")/python"
fi
exec "${PYTHON:-python3}" "$here/local_cluster.py" "$@"
