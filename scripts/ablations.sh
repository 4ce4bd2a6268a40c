#!/bin/sh
# Makes docs/quality/ablations anew: what becomes of a policy when one of its ideas is taken away, on the house model. About a quarter
# of an hour on two cores; what is in the file already is not run again.
set -e
cd "$(dirname "$0")/.."
out=docs/quality/ablations
mkdir -p $out
kvasir() { node --import tsx src/cli/main.ts "$@"; }
rows() { kvasir eval -t 1 --tasks "$1" --mode multi-request --compress-at question --lengths 1024 --limit 10 --shared-prompts --budgets 0.25 --policies "$2" --out $out/"$1".jsonl; }
policies=full,snapkv
# Which heads vote, and whether layers share by measured error.
policies="$policies,compresskv,compresskv?voters=1,compresskv?voters=64,compresskv?layers=uniform"
# Whether entropy tells which heads need more.
policies="$policies,uncomp?pruning=false,uncomp?grouping=random&pruning=false,uncomp?grouping=reversed&pruning=false"
# The row in place of dropped ones; which heads keep all.
policies="$policies,razorattention,razorattention?compensation=plain,razorattention?compensation=none,razorattention?heads=random,razorattention?heads=reversed"
policies="$policies,lacache,lacache?pattern=contiguous,lacache?pattern=strided"
# The variance; the layers' preferences.
policies="$policies,cake,cake?gamma=0,cake?layers=uniform"
# Who is salient.
policies="$policies,zipcache?lo=0&hi=16,zipcache?lo=0&hi=16&scores=accumulated,zipcache?lo=0&hi=16&scores=random"
policies="$policies,mikv?hi=8,mikv?hi=8&balancer=false,mikv?hi=8&scores=random"
# What makes up for rounding.
policies="$policies,gear,gear?outliers=0,gear?outliers=0&rank=0&decodeRank=0"
policies="$policies,kvmerger,kvmerger?pivot=random,kvmerger?valueMode=mean,kvmerger?valueMode=paper"
rows niah_multikey "$policies" &
rows rag "$policies"
wait
kvasir report $out/*.jsonl --out $out
